"""mlx-sidecar: one daemon that owns every MLX model's weights and one prefix KV cache."""

__version__ = "0.1.0"
