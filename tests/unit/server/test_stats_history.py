"""The history: samples of an hour, taken as snapshots arrive."""

from __future__ import annotations

from daemon.server.admission import Admission
from daemon.server.callers import Callers
from daemon.server.stats import INTERVAL_SECONDS, SAMPLES, History, Stats
from daemon.server.supervision.call_router import CallRouter
from daemon.server.supervision.supervisor import Supervisor
from daemon.shared.durations import seconds
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb


def snapshot(tokens: int = 0) -> pb.StatsResponse:
    """Return figures as the engine sends them."""
    return pb.StatsResponse(
        engine=pb.EngineStats(prefilling=2, decoding=3, generated_tokens=tokens),
        prefix_cache=pb.PrefixCacheStats(lookups=9, hits=8, tokens_looked_up=70, tokens_reused=60),
        memory=pb.MemoryStats(weights_bytes=5, trie_bytes=4, live_kv_bytes=3),
    )


def test_history_sample_is_taken_at_its_interval() -> None:
    """However often figures arrive."""
    now = 0.0
    history = History(lambda: now, Admission(1))
    for now in (0.0, 1.0, INTERVAL_SECONDS - 0.1, INTERVAL_SECONDS, 11.0):
        history.note(snapshot(tokens=int(10 * now)))
    assert [(sample.generated_tokens, seconds(sample.age)) for sample in history.samples()] == [(0, 11.0), (100, 1.0)]


def test_history_sample_has_every_field() -> None:
    """Requests in flight are those that wait, prefill or decode; only the parent knows how many wait."""
    admission = Admission(1)
    history = History(lambda: 0.0, admission)
    with admission.admit():
        history.note(snapshot(tokens=7))
    (sample,) = history.samples()
    assert (sample.in_flight, sample.generated_tokens, sample.lookups, sample.hits) == (6, 7, 9, 8)
    assert (sample.tokens_looked_up, sample.tokens_reused) == (70, 60)
    assert (sample.weights_bytes, sample.trie_bytes, sample.live_kv_bytes) == (5, 4, 3)


def test_a_request_that_waits_for_its_model_is_in_flight() -> None:
    """The engine's own queue begins where its model is loaded, so that the parent's counts, there and in `queued`."""
    now = 0.0
    admission = Admission(1)
    history = History(lambda: now, admission)
    router = CallRouter(lambda: now, history.note)
    stats = Stats(Supervisor(["engine"], lambda: now, router), router, admission, Callers(dict), history, lambda: now)
    with admission.admit() as place:
        router.note_snapshot(pb.StatsResponse())
        assert stats.response(pb.StatsRequest()).engine.queued == 1
        admission.began(place)
        now = INTERVAL_SECONDS
        router.note_snapshot(pb.StatsResponse(engine=pb.EngineStats(decoding=1)))
    answer = stats.response(pb.StatsRequest(include_history=True))
    assert answer.engine.queued == 0
    assert [sample.in_flight for sample in answer.history] == [1, 1]


def test_history_keeps_one_hour() -> None:
    """In number and in age: a daemon that was silent for long shows nothing old."""
    now = 0.0
    history = History(lambda: now, Admission(1))
    for step in range(2 * SAMPLES):
        now = step * INTERVAL_SECONDS
        history.note(snapshot())
    assert len(history.samples()) == SAMPLES
    now += 100 * INTERVAL_SECONDS
    assert len(history.samples()) == SAMPLES - 100
    now += SAMPLES * INTERVAL_SECONDS
    assert history.samples() == []


def test_stats_include_history_only_on_request() -> None:
    """It is two orders of magnitude larger than the rest; latency always comes."""
    admission = Admission(1)
    history = History(lambda: 0.0, admission)
    router = CallRouter(lambda: 0.0, history.note)
    stats = Stats(Supervisor(["engine"], lambda: 0.0, router), router, admission, Callers(dict), history, lambda: 0.0)
    router.note_snapshot(ipc.Event(snapshot=snapshot()).snapshot)
    assert not stats.response(pb.StatsRequest()).history
    full = stats.response(pb.StatsRequest(include_history=True))
    assert len(full.history) == 1
    assert full.latency.total.bounds
