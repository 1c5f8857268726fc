"""mlx-sidecar: one daemon that owns every MLX model's weights and one prefix KV cache."""

from mlx_sidecar._version import __version__

__all__ = ["DISTRIBUTION", "__version__"]

DISTRIBUTION = "mlx-sidecar"
"""Says that this package is ours; others have the same name."""
