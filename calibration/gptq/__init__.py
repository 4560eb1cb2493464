"""GPTQ on a whole model, layer by layer."""
