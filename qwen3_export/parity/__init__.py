"""Parity: prove that an artifact computes what the checkpoint computes."""
