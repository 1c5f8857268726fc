"""The searches of one call for its model: more than one if files turn out to hold something else than expected."""

from __future__ import annotations

from typing import Any

from daemon.cache.mlx.loader import MisnamedError
from daemon.cache.resolver import Wanted
from daemon.engine.calls.model_lookup import ModelLookup, Waiter

_MOST = 3


class Searches:
    """
    Runs on the MLX thread.

    Args:
        finder: Finds models.
        wanted: What the call asks for.
    """

    def __init__(self, finder: ModelLookup, wanted: Wanted) -> None:
        self._finder = finder
        self._wanted = wanted
        self._count = 0

    def begin(self, seeker: Waiter[Any]) -> None:
        """Look for the model."""
        self._count += 1
        self._finder.find(self._wanted, seeker)

    def again(self, seeker: Waiter[Any], error: Exception) -> bool:
        """
        Look for it again, under its right name, if a load ended because files were misnamed; tell whether that is so.

        Its caller may have asked for a sound copy, whose load was shared with that of a misnamed one.
        """
        if not isinstance(error, MisnamedError) or self._count >= _MOST:
            return False
        self.begin(seeker)
        return True
