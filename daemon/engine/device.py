"""The device that MLX computes on; `python -m daemon.engine.device` reports it as a line of JSON."""

from __future__ import annotations

import ctypes
import json
import os
import time
from pathlib import Path

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
    """
    Return what `mlx-sidecar doctor` reports of the device.

    That is its name and memory in bytes, whether it computes, what multiplies on a CPU and how fast, and the source of
    the memory pressure.
    """
    size = 64
    product = mx.ones((size, size)) @ mx.ones((size, size))
    return {
        "device": device_name(),
        "metal": mx.metal.is_available(),
        "memory_bytes": memory_size(),
        "working_set_bytes": working_set(),
        "computes": bool(mx.all(product == size).item()),
        "gflops": None if device_name() != "cpu" else _gflops(),
        "kernels": kernels(),
        "vectors": vectors(),
        "pressure": sysctl_level() if sysctl_level() is not None else ("psi" if PSI.exists() else None),
    }


def _gflops() -> float:
    """Return the speed of a matrix multiplication in float32, in billions of operations a second: the best of three."""
    size, seconds = 384, []
    left, right = mx.ones((size, size)), mx.ones((size, size))
    mx.eval(left, right)
    for _ in range(3):
        began = time.perf_counter()
        mx.eval(left @ right)
        seconds.append(time.perf_counter() - began)
    return round(2 * size**3 / min(seconds) / 1e9, 1)


def kernels() -> str | None:
    """Return the processor that OpenBLAS has chosen its kernels for; None if another library multiplies."""
    try:
        corename = ctypes.CDLL(None).openblas_get_corename
    except AttributeError:  # no library that is loaded for all has it
        return None
    corename.restype = ctypes.c_char_p
    return str(corename().decode())


def vectors(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the wider of two instruction sets that Linux reports for an x86 processor; None if it has neither."""
    flags = cpuinfo.read_text(errors="replace").split() if cpuinfo.exists() else []
    return next((name for name in ("avx512f", "avx2") if name in flags), None)


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
