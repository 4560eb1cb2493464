"""GPTQ: choosing stored values so that the output of a linear weight changes least."""
