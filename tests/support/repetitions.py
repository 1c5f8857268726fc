"""The number of repetitions of slow tests: MLX_SIDECAR_TEST_SCALE=0.1 reduces all of them to a tenth."""

from __future__ import annotations

import os

SCALE = float(os.environ.get("MLX_SIDECAR_TEST_SCALE", "1"))


def scaled(times: int) -> int:
    """Return a number of repetitions multiplied by the scale, at least one."""
    return max(1, round(times * SCALE))
