"""The device that MLX computes on; `python -m daemon.engine.device` reports it as a line of JSON."""

from __future__ import annotations

import json
import os

import mlx.core as mx

from daemon.engine.memory.memory_budget import machine_memory
from daemon.engine.memory.pressure import PSI, sysctl_level


def working_set() -> int | None:
    """Return the bytes that a GPU allows: what Metal recommends, or the memory of a CUDA card; None without a GPU."""
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    return _card_memory()


def memory_size() -> int:
    """Return the bytes of the memory that MLX computes in: the machine's, or that of a CUDA card."""
    if mx.metal.is_available():
        return int(mx.device_info()["memory_size"])
    return _card_memory() or machine_memory()


def device_name() -> str:
    """Return the device that MLX computes on, as Stats shows it."""
    kind = "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"
    name = mx.device_info().get("device_name", "") if kind == "gpu" else ""
    return f"{kind}: {name}" if name else kind


def probe() -> dict[str, object]:
    """Return the device, its memory in bytes if known, whether it computes, and the source of the memory pressure."""
    size = 64
    product = mx.ones((size, size)) @ mx.ones((size, size))
    return {
        "device": device_name(),
        "metal": mx.metal.is_available(),
        "memory_bytes": memory_size(),
        "working_set_bytes": working_set(),
        "computes": bool(mx.all(product == size).item()),
        "pressure": sysctl_level() if sysctl_level() is not None else ("psi" if PSI.exists() else None),
    }


def _card_memory() -> int | None:
    """Return the bytes of a CUDA card's memory, which the machine's memory is no part of; None without a card."""
    if mx.default_device() != mx.Device(mx.gpu):
        return None
    return int(mx.device_info().get("total_memory", 0)) or None


if __name__ == "__main__":
    report = probe()
    mx.clear_streams()
    print(json.dumps(report), flush=True)  # noqa: T201 - doctor reads this line
    os._exit(0)  # as the engine does: the clean-up of mlx can abort a process that ends
