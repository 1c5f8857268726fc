"""Loads of the tests, each to its end."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from pathlib import Path

import pytest

from daemon.cache.identity import identify
from daemon.cache.load import Loaded, Progress
from daemon.cache.mlx.loader import LoadedModel, LoadSetup, load
from daemon.shared.errors import SidecarError


def start(
    path: Path, warmup_tokens: int = 0, adapter: Path | None = None
) -> Generator[Progress, None, Loaded[LoadedModel]]:
    """Begin the load of a model."""
    ticks = itertools.count()
    return load(identify("tiny", path, adapter), warmup_tokens, LoadSetup(lambda: float(next(ticks))))


def run(steps: Generator[Progress, None, Loaded[LoadedModel]]) -> tuple[list[Progress], Loaded[LoadedModel]]:
    """Run a load to its end."""
    progress = []
    while True:
        try:
            progress.append(next(steps))
        except StopIteration as end:
            return progress, end.value


def refusal(path: Path, adapter: Path | None = None) -> SidecarError:
    """Return why a model is not loaded."""
    with pytest.raises(SidecarError) as caught:
        run(start(path, adapter=adapter))
    return caught.value
