"""The part of the model cache that touches MLX."""
