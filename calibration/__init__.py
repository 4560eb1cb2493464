"""Text to tokens, tokens to statistics, layer by layer."""
