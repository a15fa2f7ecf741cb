"""How good a model is, next to compressors and other models."""
