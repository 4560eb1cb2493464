"""Parity: proving that a written file computes what the checkpoint computes."""
