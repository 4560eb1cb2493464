"""Generate tokens and text from an artifact in its real runtime, or from a checkpoint in the reference."""
