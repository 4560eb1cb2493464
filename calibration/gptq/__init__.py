"""GPTQ over a whole model, layer by layer."""
