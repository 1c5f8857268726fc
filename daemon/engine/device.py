"""The device that MLX computes on."""

from __future__ import annotations

import mlx.core as mx


def working_set() -> int | None:
    """Return what Metal recommends to use at most, in bytes; None where there is no Metal."""
    if not mx.metal.is_available():
        return None
    return int(mx.device_info()["max_recommended_working_set_size"])


def device_name() -> str:
    """Return the device that MLX computes on, as Stats shows it."""
    kind = "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"
    name = mx.device_info().get("device_name", "") if kind == "gpu" else ""
    return f"{kind}: {name}" if name else kind
