"""GPTQ: the stored values under which a linear weight's output changes least."""
