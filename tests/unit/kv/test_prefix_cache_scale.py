"""The cost of a request depends on the length of its prompt, and not on the number of stored blocks."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from tests.unit.kv.fake_kv import FakePrefixes, prompt

LONG = 2048
"""Blocks of a prompt of 32k tokens."""


def _lines_run(act: Callable[[], object]) -> int:
    """
    Return how many lines of the daemon an act runs: unlike seconds, they are the same on every machine, give or take a
    few that CPython 3.11 counts twice while it adapts its bytecode.
    """
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace if str(frame.f_globals.get("__name__")).startswith("daemon.") else None

    before = sys.gettrace()
    gc.collect()
    gc.disable()  # what other tests left behind is not finalised here
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def _filled(blocks: int, limit: int) -> FakePrefixes:
    """Return a cache that holds `blocks` blocks of other prompts, 64 blocks each."""
    prefixes = FakePrefixes(blocks=limit, nbytes=10**9, buffers=10**6)
    for first in range(0, blocks, 64):
        prefixes.store("n", prompt(*range(10_000 + first, 10_000 + first + 64)))
    assert prefixes.cache.trie.blocks == blocks
    return prefixes


def _request(prefixes: FakePrefixes, tokens: list[int]) -> int:
    """Return the number of lines run to look up a prompt, to store it, and to find it again."""
    cold = _lines_run(lambda: prefixes.lookup("n", tokens).release())
    store = _lines_run(lambda: prefixes.store("n", tokens))
    warm = _lines_run(lambda: prefixes.cache.runs(prefixes.lookup("n", tokens), prefixes.parts))
    return cold + store + warm


def test_lookup_cost_is_independent_of_stored_blocks() -> None:
    tokens = prompt(*range(LONG))

    few, many = (_request(_filled(blocks, 10**6), tokens) for blocks in (0, 16_384))

    assert few == pytest.approx(many, rel=0.001)


def test_eviction_cost_is_independent_of_stored_blocks() -> None:
    tokens = prompt(*range(LONG))

    few, many = (_request(_filled(blocks, blocks), tokens) for blocks in (4_096, 16_384))

    assert few == pytest.approx(many, rel=0.001)


def test_request_cost_is_linear_in_its_length() -> None:
    short = _request(_filled(0, 10**6), prompt(*range(LONG // 8)))
    long = _request(_filled(0, 10**6), prompt(*range(LONG)))

    assert long < 8.2 * short


@pytest.mark.parametrize("diverges_at", [1, 64, 1024])
def test_early_divergence_costs_only_the_prompts_keys(diverges_at: int) -> None:
    prefixes = _filled(0, 10**6)
    prefixes.store("n", prompt(*range(LONG)))
    diverging = prompt(*range(diverges_at), *range(50_000, 50_000 + LONG - diverges_at))
    unknown = prompt(*range(90_000, 90_000 + LONG))

    extra = _lines_run(lambda: prefixes.lookup("n", diverging)) - _lines_run(lambda: prefixes.lookup("n", unknown))

    assert extra < 10 * diverges_at + 40  # and the comparison with what is stored behind the last common block
