"""A Hugging Face checkpoint: where it is, its weights as a graph, its tokenizer."""
