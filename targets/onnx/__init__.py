"""ONNX: one graph in two flavours, for onnxruntime-genai (and plain onnxruntime) and for transformers.js."""
