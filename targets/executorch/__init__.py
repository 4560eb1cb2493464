"""ExecuTorch: a .pte for the LLM runners on phones, lowered to XNNPACK."""
