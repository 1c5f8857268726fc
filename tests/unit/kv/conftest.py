"""Lets the tests of the prefix cache compute on the CPU, where a warm run must give the bits of a cold run."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import pytest


@pytest.fixture(scope="module", autouse=True)
def _cpu() -> Iterator[None]:
    with mx.stream(mx.cpu):
        yield
