"""The fp32 reference, which computes a Qwen3 graph exactly."""
