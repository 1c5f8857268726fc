"""Giants run a few at a time, so that a thread is always left for the others."""

from __future__ import annotations

from collections.abc import Callable

from daemon.engine.calls.giants import GIANT_BYTES, Giants


def _begin(giants: Giants, started: list[str], name: str, nbytes: int | None) -> Callable[[], None]:
    return giants.begin(nbytes, lambda: started.append(name))


def test_giant_reads_are_limited_and_oldest_is_next() -> None:
    giants, started = Giants(2), list[str]()
    ends = [_begin(giants, started, name, GIANT_BYTES + 1) for name in "abcd"]
    assert started == ["a", "b"]

    ends[1]()
    assert started == ["a", "b", "c"]
    ends[0]()
    assert started == ["a", "b", "c", "d"]


def test_small_reads_never_wait_behind_giants() -> None:
    giants, started = Giants(1), list[str]()
    for name, nbytes in (("download", None), ("giant", GIANT_BYTES + 1), ("small", GIANT_BYTES), ("other", 1)):
        _begin(giants, started, name, nbytes)

    assert started == ["download", "small", "other"]


def test_giant_read_end_counts_once() -> None:
    giants, started = Giants(1), list[str]()
    end = _begin(giants, started, "a", None)
    for name in "bc":
        _begin(giants, started, name, None)
    _begin(giants, started, "small", 1)()
    assert started == ["a", "small"]

    end()
    end()
    assert started == ["a", "small", "b"]
