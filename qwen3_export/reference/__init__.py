"""The fp32 reference: what a Qwen3 graph computes."""
