"""Scheduling and the ledger: who starts, how much is computed at a time, and what fits."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.engine import scheduler
from daemon.engine.ledger import DECODE_ROOM, Ledger, Use, kv_need, memory_limit
from daemon.engine.scheduler import CHUNK_SECONDS, MAX_CHUNK, MIN_CHUNK, ChunkSizer, startable
from daemon.errors import Reason, SidecarError


@dataclass(frozen=True)
class Request:
    """A request that waits."""

    model_key: str
    size: int = 1


def test_requests_start_in_order_of_arrival() -> None:
    """One whose model has no free slot lets those of other models pass."""
    a, b, c = Request("full"), Request("free"), Request("free")
    running = {"full": 2, "free": 1}
    assert startable([a, b, c], lambda key: running[str(key)], 2, lambda _: True) is b
    assert startable([a], lambda key: running[str(key)], 2, lambda _: True) is None
    assert startable([], lambda _: 0, 2, lambda _: True) is None


def test_one_that_does_not_fit_is_not_overtaken() -> None:
    """Smaller ones would starve it."""
    big, small = Request("m", 10), Request("m", 1)
    assert startable([big, small], lambda _: 0, 2, lambda request: request.size < 5) is None


@given(st.floats(1e-5, 10), st.integers(1, 30))
def test_chunks_settle_at_their_time(seconds_per_token: float, rounds: int) -> None:
    """Within a factor of two at each step, between the smallest and the largest."""
    sizer = ChunkSizer()
    last = sizer.size("m")
    for _ in range(rounds):
        sizer.measured("m", last, last * seconds_per_token)
        size = sizer.size("m")
        assert MIN_CHUNK <= size <= MAX_CHUNK
        assert last // 2 <= size <= 2 * last + 1
        last = size
    if rounds > 12:
        ideal = min(MAX_CHUNK, max(MIN_CHUNK, CHUNK_SECONDS / seconds_per_token))
        assert last == pytest.approx(ideal, rel=0.1, abs=1)


def test_a_chunk_that_was_cut_short_teaches_nothing() -> None:
    """Nor does one model teach another."""
    sizer = ChunkSizer()
    first = sizer.size("m")
    sizer.measured("m", first - 1, 1e-9)
    sizer.measured("other", first, 1e-9)
    assert sizer.size("m") == first == scheduler._FIRST_CHUNK
    assert sizer.size("other") > first


def test_need_counts_the_prompt_and_the_first_room_to_decode_twice() -> None:
    """The cache, and the copy while it grows."""
    assert kv_need(100, 10, 8) == 2 * 8 * 110
    assert kv_need(100, 10**6, 8) == 2 * 8 * (100 + DECODE_ROOM)


def test_the_ledger_adds_up() -> None:
    """What is left, what is missing, and what can never be."""
    ledger = Ledger(1000)
    use = Use(weights=500, trie=200, live_kv=100)
    assert ledger.headroom(use) == 200
    assert ledger.shortfall(200, use) == 0
    assert ledger.shortfall(201, use) == 1
    assert ledger.shortfall(1, Use(900, 200, 0)) == 101
    ledger.refuse_if_never(500, 500)
    with pytest.raises(SidecarError) as refused:
        ledger.refuse_if_never(501, 500)
    assert refused.value.reason is Reason.REQUEST_EXCEEDS_MEMORY
    assert refused.value.metadata == {"needed_bytes": "501", "available_bytes": "500"}


def test_the_limit_is_a_share_of_what_metal_recommends_or_of_the_ram() -> None:
    """Never all of it."""
    assert memory_limit(1000) == 900
    assert 0 < memory_limit(None) == memory_limit(0)
