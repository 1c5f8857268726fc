"""Repeats the search and load of a call's model where its files turn out to hold something else than expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from daemon.cache.mlx.loader import MisnamedError
from daemon.engine.background.task import Waiting

_MOST = 3
"""Searches of one call for one model."""

T = TypeVar("T")


def searched(attempt: Callable[[], Waiting[T]]) -> Waiting[T]:
    """
    Run an attempt to find and load a model; run it again after a MisnamedError, which it raises if that stays.

    The load that failed has corrected the name of the content, so the next search finds it by its right name. The
    caller's own copy may even be sound: its load was shared with that of a misnamed copy.
    """
    for _ in range(_MOST - 1):
        try:
            return (yield from attempt())
        except MisnamedError:
            continue
    return (yield from attempt())
