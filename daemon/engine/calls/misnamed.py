"""Repeats the search and the load of a model where its files turn out to hold other weights than expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from daemon.cache.mlx.loader import MisnamedError
from daemon.engine.background.task import Waiting

_MOST_ATTEMPTS = 3
"""Attempts of one call to find and load one model."""

T = TypeVar("T")


def retry_misnamed(attempt: Callable[[], Waiting[T]]) -> Waiting[T]:
    """
    Find and load a model by `attempt`. After a MisnamedError it is tried again, `_MOST_ATTEMPTS` times in all.

    The load that failed has corrected the name of the content, so the next search finds it by its right name. The
    caller's own copy may even be sound: its load was shared with that of a misnamed copy.

    Raises:
        MisnamedError: That of the last attempt.
    """
    for _ in range(_MOST_ATTEMPTS - 1):
        try:
            return (yield from attempt())
        except MisnamedError:
            continue
    return (yield from attempt())
