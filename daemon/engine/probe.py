"""
What MLX finds on this machine, as a line of JSON: `python -m daemon.engine.probe`.

A process of its own, because the doctor is part of the command line, which never loads MLX, and because a driver that
aborts should not take the doctor along.
"""

from __future__ import annotations

import json
import os

import mlx.core as mx

from daemon.engine.device import device_name, working_set
from daemon.engine.pressure import PSI, sysctl_level


def probe() -> dict[str, object]:
    """Return the device, its memory in bytes where it tells, whether it computes, and the memory pressure's source."""
    info = mx.device_info() if mx.metal.is_available() else {}
    size = 64
    product = mx.ones((size, size)) @ mx.ones((size, size))
    return {
        "device": device_name(),
        "metal": mx.metal.is_available(),
        "memory_bytes": info.get("memory_size"),
        "working_set_bytes": working_set(),
        "computes": bool(mx.all(product == size).item()),
        "pressure": sysctl_level() if sysctl_level() is not None else ("psi" if PSI.exists() else None),
    }


if __name__ == "__main__":
    found = probe()
    mx.clear_streams()
    print(json.dumps(found), flush=True)  # noqa: T201 - this is what it is for
    os._exit(0)  # as the engine does: nothing of mlx's own end is needed
