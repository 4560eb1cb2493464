"""qwen3-export: Qwen3 checkpoints to the file an on-device app loads, proven to compute what it should."""

__version__ = "0.1.0"
