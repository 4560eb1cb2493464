"""Calibration: text to tokens, tokens to statistics, and solvers that run layer by layer."""
