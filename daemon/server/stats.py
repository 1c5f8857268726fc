"""Statistics: the engine's last snapshot, what the parent adds, an hour of history, and latency histograms."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import deque
from collections.abc import Callable

from daemon import __version__
from daemon.server.admission import Admission
from daemon.server.supervision.supervisor import State, Supervisor
from daemon.shared.durations import duration, seconds
from mlx_sidecar.v1 import sidecar_pb2 as pb

_STATES = {
    State.STARTING: pb.ENGINE_STATE_STARTING,
    State.WARMING: pb.ENGINE_STATE_STARTING,
    State.READY: pb.ENGINE_STATE_READY,
    State.STALLED: pb.ENGINE_STATE_STALLED,
    State.RESTARTING: pb.ENGINE_STATE_RESTARTING,
    State.STOPPED: pb.ENGINE_STATE_STOPPED,
}


class Stats:
    """
    Answers Stats without asking the engine.

    Args:
        supervisor: Knows the engine and its last snapshot.
        admission: Knows what waits and what was refused.
        clock: Seconds that never go back.

    Attributes:
        cancelled: Calls that their client cancelled.
        draining: Whether the daemon finishes its last streams.
        latency: How long requests took; the servicer adds to it.
        history: What the figures were; the supervisor's snapshots go into it.
    """

    def __init__(self, supervisor: Supervisor, admission: Admission, clock: Callable[[], float]) -> None:
        self.cancelled = 0
        self.draining = False
        self.latency = Latency()
        self.history = History(clock)
        supervisor.on_snapshot = self.history.note
        self._supervisor = supervisor
        self._admission = admission
        self._clock = clock
        self._began = clock()

    def response(self, request: pb.StatsRequest) -> pb.StatsResponse:
        """Return the state of the daemon now, as far as it was asked for."""
        supervisor = self._supervisor
        answer = pb.StatsResponse()
        answer.CopyFrom(supervisor.snapshot)
        answer.daemon.CopyFrom(
            pb.DaemonStats(
                version=__version__,
                pid=os.getpid(),
                uptime=duration(self._clock() - self._began),
                draining=self.draining,
                mlx_version=supervisor.hello.mlx_version,
                mlx_lm_version=supervisor.hello.mlx_lm_version,
                device=supervisor.hello.device,
            )
        )
        engine = answer.engine
        engine.state = _STATES[supervisor.state]
        engine.pid = supervisor.pid
        engine.restarts = supervisor.restarts
        engine.step_age.CopyFrom(duration(supervisor.step_age))
        engine.queued = self._admission.waiting
        engine.rejected = self._admission.rejected
        engine.cancelled = self.cancelled
        answer.latency.CopyFrom(self.latency.message())
        if request.include_history:
            answer.history.extend(self.history.samples())
        return answer


INTERVAL_SECONDS = 10.0
SAMPLES = 360
"""An hour."""


class History:
    """
    Samples the engine's figures as they arrive, so that an idle daemon is not woken for it.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, pb.HistorySample]] = deque(maxlen=SAMPLES)

    def note(self, snapshot: pb.StatsResponse) -> None:
        """Take a sample, if the last one is old enough."""
        now = self._clock()
        if not self._samples or now - self._samples[-1][0] >= INTERVAL_SECONDS:
            self._samples.append((now, _sample(snapshot)))

    def samples(self) -> list[pb.HistorySample]:
        """Return the samples of the last hour, oldest first."""
        now = self._clock()
        oldest = now - INTERVAL_SECONDS * SAMPLES
        return [_aged(sample, now - taken) for taken, sample in self._samples if taken > oldest]


def _sample(snapshot: pb.StatsResponse) -> pb.HistorySample:
    cache, engine, memory = snapshot.prefix_cache, snapshot.engine, snapshot.memory
    return pb.HistorySample(
        lookups=cache.lookups,
        hits=cache.hits,
        tokens_looked_up=cache.tokens_looked_up,
        tokens_reused=cache.tokens_reused,
        prompt_tokens=engine.prompt_tokens,
        generated_tokens=engine.generated_tokens,
        in_flight=engine.queued + engine.prefilling + engine.decoding,
        weights_bytes=memory.weights_bytes,
        trie_bytes=memory.trie_bytes,
        live_kv_bytes=memory.live_kv_bytes,
    )


def _aged(sample: pb.HistorySample, age: float) -> pb.HistorySample:
    answer = pb.HistorySample(age=duration(age))
    answer.MergeFrom(sample)
    return answer


BOUNDS = tuple(0.001 * 2 ** (step / 2) for step in range(38))
"""Upper bounds in seconds: two for each doubling, from 1 ms to six minutes."""


class Histogram:
    """Counts spans of time in buckets."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0

    def add(self, span: float) -> None:
        """Count a span, in seconds."""
        self._counts[bisect_left(BOUNDS, span)] += 1
        self._sum += span

    def message(self) -> pb.LatencyHistogram:
        """Return it as the API shows it."""
        return pb.LatencyHistogram(bounds=map(duration, BOUNDS), counts=self._counts, sum=duration(self._sum))


class Latency:
    """The histograms of completed Generate calls."""

    def __init__(self) -> None:
        self._histograms = {field.name: Histogram() for field in pb.LatencyStats.DESCRIPTOR.fields}

    def finished(self, end: pb.Finished) -> None:
        """Count a request by what its last event says."""
        timings = end.timings
        first, decode = seconds(timings.first_token), seconds(timings.decode)
        spans = {
            "queue": seconds(timings.queue),
            "prefill": seconds(timings.prefill),
            "first_token": first,
            "total": first + decode,
        }
        if timings.load.ToNanoseconds():
            spans["load"] = seconds(timings.load)
        if end.usage.completion_tokens > 1:
            spans["per_token"] = decode / (end.usage.completion_tokens - 1)
        for name, span in spans.items():
            self._histograms[name].add(span)

    def message(self) -> pb.LatencyStats:
        """Return all histograms as the API shows them."""
        return pb.LatencyStats(**{name: histogram.message() for name, histogram in self._histograms.items()})
