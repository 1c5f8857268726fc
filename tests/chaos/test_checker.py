"""The checker of chaos runs finds each kind of violation; a history without one passes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.chaos.asks import Ask
from tests.chaos.checker import violations
from tests.chaos.history import CUT, OK, History, Invalidation, Sample, Stream
from tests.chaos.world import QUIET

ASK = Ask("embedded", tuple(range(40)), 2, salt="a")
SOLO = {ASK.answer: "one two"}


def started(cached: int = 0) -> pb.GenerateResponse:
    return pb.GenerateResponse(started=pb.Started(prompt_tokens=40, cached_tokens=cached))


def delta(text: str, seq: int = 1) -> pb.GenerateResponse:
    return pb.GenerateResponse(seq=seq, delta=pb.Delta(text=text, token_ids=[1]))


def finished(seq: int, cached: int = 0) -> pb.GenerateResponse:
    usage = pb.Usage(prompt_tokens=40, completion_tokens=2, cached_tokens=cached)
    return pb.GenerateResponse(seq=seq, finished=pb.Finished(usage=usage))


def whole(at: float = 1.0, cached: int = 0, ask: Ask = ASK) -> Stream:
    """Return a stream without a fault."""
    return Stream(
        ask, at, [started(cached), delta("one ", 1), delta("two", 2), finished(3, cached)], at + 0.5, [OK], cached
    )


def found(*streams: Stream, invalidations: tuple[Invalidation, ...] = (), samples: tuple[Sample, ...] = ()) -> str:
    history = History()
    history.streams += streams
    history.invalidations += invalidations
    history.samples += samples
    return "\n".join(violations(history, SOLO))


def test_checker_passes_a_history_without_a_fault() -> None:
    """The history has whole streams, cut streams, refused calls, and a stream that reuses another call's prefix."""
    cut = Stream(ASK, 1.0, [started(), delta("on")], 1.1, [CUT])
    refused = Stream(ASK, 1.0, [], None, ["RESOURCE_EXHAUSTED QUEUE_FULL"])
    assert found(whole(), whole(2.0, cached=32), cut, refused) == ""


@pytest.mark.parametrize(
    ("events", "ends", "what"),
    [
        ([started(), delta("one two", 2), finished(3)], [OK], "seq is"),
        ([started(), delta("one ", 1), delta("one ", 1), finished(2)], [OK], "seq is"),
        ([started(), delta("one two")], [OK], "no finished event"),
        ([started(), delta("one ", 1), delta("two", 2), finished(3)], ["UNAVAILABLE"], "a finished event"),
        ([started(), delta("one ", 1), delta("two", 2), finished(3)], [OK, OK], "has 2 ends"),
        ([started(), delta("one ")], [], "has no end"),
        ([started(), finished(1), delta("one two", 2)], [OK], "events after its end"),
        ([delta("one", 0)], [CUT], "does not begin with started"),
        ([started(), delta("two")], [CUT], "alone it says"),
        ([started(), delta("one ", 1), delta("twoo", 2), finished(3)], [OK], "alone it says"),
        ([started(), delta("one two", 1), finished(2)], [OK], "sent 1 token ids of 2"),
        ([started(16), delta("one ", 1), delta("two", 2), finished(3)], [OK], "were asked for and reused"),
        ([], ["UNKNOWN 'oh'"], "ended with UNKNOWN"),
    ],
)
def test_checker_finds_a_torn_or_wrong_stream(events: list[pb.GenerateResponse], ends: list[str], what: str) -> None:
    """Each fault of a stream is reported under its own name."""
    stream = Stream(ASK, 1.0, ends=ends)
    for event in events:
        stream.add(event)
    assert what in found(stream)


@pytest.mark.parametrize(("kill", "text", "right"), [(1.2, "two", True), (0.9, "two", False), (1.2, "", False)])
def test_killed_parent_may_leave_a_whole_stream_without_status(kill: float, text: str, right: bool) -> None:
    """If it was killed while the stream ran, and nothing else is missing."""
    history = History()
    history.kills.append(kill)
    events = [started(), delta("one ", 1), delta(text, 2), finished(3)]
    history.streams.append(Stream(ASK, 1.0, events, 1.1, ["UNAVAILABLE"], ended=1.3))
    assert (violations(history, SOLO) == []) == right


def test_checker_finds_reuse_of_an_invalidated_prefix() -> None:
    """The call that stored the prefix began before the Invalidate, which names a model, a prefix or everything."""
    everything = Invalidation(called=3.0, returned=3.1)
    of_model = replace(everything, model="embedded")
    of_prefix = replace(of_model, salt="a", prefix=ASK.prompt[:8])
    for invalidation in (everything, of_model, of_prefix):
        assert "were invalidated" in found(whole(1.0), whole(4.0, cached=32), invalidations=(invalidation,))


def test_checker_allows_reuse_stored_after_invalidate() -> None:
    """Reuse is also right in another namespace, for tokens outside the prefix, and before the Invalidate's answer."""
    everything = Invalidation(called=3.0, returned=3.1)
    other = replace(everything, model="embedded", salt="b")
    assert found(whole(1.0), whole(3.5), whole(4.0, cached=32), invalidations=(everything,)) == ""
    assert found(whole(1.0), whole(4.0, cached=32), invalidations=(other,)) == ""
    assert found(whole(1.0), whole(3.05, cached=32), invalidations=(everything,)) == ""
    shared_beginning = Invalidation(3.0, 3.1, "embedded", "a", ASK.prompt[:40])
    assert found(whole(1.0), whole(4.0, cached=32), invalidations=(shared_beginning,)) == ""


@pytest.mark.parametrize(
    ("figures", "what"),
    [
        (pb.StatsResponse(prefix_cache=pb.PrefixCacheStats(bytes=65 << 20)), "prefix bytes"),
        (pb.StatsResponse(prefix_cache=pb.PrefixCacheStats(blocks=100_001)), "prefix blocks"),
        (pb.StatsResponse(model_cache=pb.ModelCacheStats(cached_models=5)), "models"),
        (pb.StatsResponse(model_cache=pb.ModelCacheStats(total_memory_bytes=65 << 20)), "weights"),
        (pb.StatsResponse(engine=pb.EngineStats(queued=65)), "waiting requests"),
        (pb.StatsResponse(engine=pb.EngineStats(decoding=1)), "decoding requests"),
        (pb.StatsResponse(memory=pb.MemoryStats(live_kv_bytes=2 << 30)), "memory in use"),
    ],
)
def test_checker_finds_stats_beyond_a_budget(figures: pb.StatsResponse, what: str) -> None:
    """Stats are compared with the settings of the daemon's start."""
    figures.memory.limit_bytes = 1 << 30
    assert f"{what}: " in found(samples=(Sample(QUIET, figures),))
