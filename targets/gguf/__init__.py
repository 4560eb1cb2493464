"""GGUF: the file that llama.cpp, Ollama and LM Studio load."""
