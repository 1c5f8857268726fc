"""mlx-sidecar: one daemon that owns every MLX model's weights and one prefix KV cache."""

try:
    from mlx_sidecar._version import __version__
except ModuleNotFoundError:
    __version__ = ""
    """Empty without the client's distribution, `mlx-sidecar-client`; the command line then says so."""

__all__ = ["DISTRIBUTION", "__version__"]

DISTRIBUTION = "mlx-sidecar"
"""Says that this package is ours; others have the same name."""
