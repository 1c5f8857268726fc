"""How often the slow tests repeat themselves: `MLX_SIDECAR_TEST_SCALE=0.1` makes it a tenth, for a first look."""

from __future__ import annotations

import os

SCALE = float(os.environ.get("MLX_SIDECAR_TEST_SCALE", "1"))


def often(times: int) -> int:
    """Return how many of so many times are wanted, at least one."""
    return max(1, round(times * SCALE))
