"""The part of the prefix cache that touches MLX."""
