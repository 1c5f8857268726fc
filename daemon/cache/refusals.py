"""What a caller is told when there is no room for its model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from daemon.cache.entry import Entry
from daemon.errors import Reason, SidecarError
from daemon.wording import size, sizes_apart

RETRY_IN_USE = 2.0
"""Seconds after which a caller may ask again for room that others use."""


def oversize(name: str, needed: int, budget: int, allowed_by: str = "model_cache_mb") -> SidecarError:
    """Return the refusal of a model that can never fit."""
    needs, allowed = sizes_apart(needed, budget)
    return SidecarError(
        Reason.MODEL_EXCEEDS_BUDGET,
        f"{name} needs {needs} but {allowed_by} allows {allowed}; raise it or use a smaller model",
        metadata={"needed_bytes": str(needed), "budget_bytes": str(budget)},
    )


def in_use(name: str, needed: int, budget: int, holders: Iterable[Entry[Any]]) -> SidecarError:
    """Return the refusal of a model that does not fit now, because others are in use or pinned."""
    held: Counter[str] = Counter()
    for entry in holders:
        held[" = ".join(entry.names)] += entry.nbytes
    listing = ", ".join(f"{holder} ({size(nbytes)})" for holder, nbytes in held.items())
    return SidecarError(
        Reason.BUDGET_IN_USE,
        f"no room for {name} ({size(needed)}): in use or pinned are {listing}",
        metadata={
            "needed_bytes": str(needed),
            "budget_bytes": str(budget),
            **{holder: str(nbytes) for holder, nbytes in held.items()},
        },
        retry_after=RETRY_IN_USE,
    )


def not_loaded(name: str, *, kept: bool) -> SidecarError:
    """Return the refusal of a request that wants a loaded model; `kept` tells whether models stay loaded at all."""
    advice = "GetOrLoad it first" if kept else "with model_cache_mb 0 no model stays loaded: unset require_loaded"
    return SidecarError(Reason.MODEL_NOT_CACHED, f"{name} is not loaded and require_loaded is set; {advice}")
