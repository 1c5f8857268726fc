"""MLX's cache of freed buffers: how large it may get, and when it is emptied."""

from __future__ import annotations

import mlx.core as mx

CLEAR_TURNS = 512
"""
Turns after which buffers are freed although requests run. The KV of each grows by a token a turn, and leaves buffers of
sizes that no later turn asks for.
"""

_MOST_BYTES = 2 << 30
_MOST_SHARE = 20
"""The cache gets a twentieth of the memory limit, or `_MOST_BYTES` if that is less."""


class BufferCache:
    """
    Empties MLX's cache of freed buffers. Runs on the MLX thread.

    Args:
        memory_limit: Bytes that weights, prefix cache and running requests may use together.
    """

    def __init__(self, memory_limit: int) -> None:
        self._turns = 0
        mx.set_cache_limit(min(_MOST_BYTES, memory_limit // _MOST_SHARE))

    def turned(self) -> None:
        """Count a turn that computed something."""
        self._turns += 1
        if self._turns % CLEAR_TURNS == 0:
            self.clear()

    def clear(self) -> None:
        """Give all buffers back to the system."""
        mx.clear_cache()
