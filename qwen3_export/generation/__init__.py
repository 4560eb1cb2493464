"""Generation: tokens and text from any artifact through its real runtime, or from a checkpoint by the reference."""
