"""
Statistics for the Stats RPC: current figures, an hour of history, and latency histograms.

* `Stats` lays the parent's own figures over the engine's latest snapshot. It never asks the engine: a hung engine must
  not hide its own state.
* `History` keeps an hour of samples. They are taken as snapshots arrive, so that an idle daemon is not woken for them.
* `Latency` counts the durations of completed Generate calls in histograms.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import deque
from collections.abc import Callable

from daemon import __version__
from daemon.server.admission import Admission
from daemon.server.callers import Callers
from daemon.server.supervision.call_router import CallRouter
from daemon.server.supervision.supervisor import State, Supervisor
from daemon.shared.durations import duration, seconds
from mlx_sidecar.v1 import sidecar_pb2 as pb

INTERVAL_SECONDS = 10.0
"""At least between two samples of the history."""
SAMPLES = 360
"""An hour of them."""

BOUNDS = tuple(0.001 * 2 ** (step / 2) for step in range(38))
"""Upper bounds of the latency buckets in seconds: two for each doubling, from 1 ms to six minutes."""

STATES = {
    State.STARTING: pb.ENGINE_STATE_STARTING,
    State.WARMING: pb.ENGINE_STATE_STARTING,
    State.READY: pb.ENGINE_STATE_READY,
    State.STALLED: pb.ENGINE_STATE_STALLED,
    State.RESTARTING: pb.ENGINE_STATE_RESTARTING,
    State.STOPPED: pb.ENGINE_STATE_STOPPED,
}


class Stats:
    """
    The state of the daemon, as the API shows it.

    Args:
        supervisor: Knows the engine process.
        router: Has the engine's latest snapshot.
        admission: Knows how many calls wait and were refused.
        callers: Knows which processes call.
        history: Has the samples of the last hour.
        clock: Seconds that never go back.
        http: Returns the state of the process that serves HTTP.
        group: Adds the figures of the group to an answer, if there is one.

    Attributes:
        cancelled: Calls that their client cancelled.
        draining: Whether the daemon finishes its last streams.
        latency: How long requests took; the servicer adds to it.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        router: CallRouter,
        admission: Admission,
        callers: Callers,
        history: History,
        clock: Callable[[], float],
        http: Callable[[], pb.HttpStats] = pb.HttpStats,
        group: Callable[[pb.StatsResponse], None] = lambda _: None,
    ) -> None:
        self.cancelled = 0
        self.draining = False
        self.latency = Latency()
        self._supervisor = supervisor
        self._router = router
        self._admission = admission
        self._callers = callers
        self._history = history
        self._clock = clock
        self._http = http
        self._group = group
        self._began = clock()

    def response(self, request: pb.StatsRequest) -> pb.StatsResponse:
        """Return the state of the daemon now, with the history if the request asks for it."""
        answer = pb.StatsResponse()
        answer.CopyFrom(self._router.snapshot)
        answer.daemon.CopyFrom(self._daemon())
        self._complete(answer.engine)
        self._group(answer)
        answer.latency.CopyFrom(self.latency.message())
        if request.include_history:
            answer.history.extend(self._history.samples())
        return answer

    def _daemon(self) -> pb.DaemonStats:
        hello = self._supervisor.hello
        return pb.DaemonStats(
            version=__version__,
            pid=os.getpid(),
            uptime=duration(self._clock() - self._began),
            draining=self.draining,
            mlx_version=hello.mlx_version,
            mlx_lm_version=hello.mlx_lm_version,
            device=hello.device,
            http=self._http(),
        )

    def _complete(self, engine: pb.EngineStats) -> None:
        """Fill in the fields that only the parent knows."""
        engine.state = STATES[self._supervisor.state]
        engine.pid = self._supervisor.pid
        engine.restarts = self._supervisor.restarts
        engine.step_age.CopyFrom(duration(self._supervisor.step_age))
        engine.queued = self._admission.waiting
        engine.rejected = self._admission.rejected
        engine.cancelled = self.cancelled
        engine.callers.extend(self._callers.figures(self._admission.calls))


class History:
    """
    Samples of the engine's figures: one in ten seconds at most, for an hour.

    Args:
        clock: Seconds that never go back.
        admission: Knows how many calls wait; the engine does not count those.
    """

    def __init__(self, clock: Callable[[], float], admission: Admission) -> None:
        self._clock = clock
        self._admission = admission
        self._samples: deque[tuple[float, pb.HistorySample]] = deque(maxlen=SAMPLES)
        """Each with the time at which it was taken, oldest first."""

    def note(self, snapshot: pb.StatsResponse) -> None:
        """Take a sample of the engine's snapshot, if the last sample is old enough."""
        now = self._clock()
        if not self._samples or now - self._samples[-1][0] >= INTERVAL_SECONDS:
            self._samples.append((now, _sample(snapshot, self._admission.waiting)))

    def samples(self) -> list[pb.HistorySample]:
        """Return the samples of the last hour, oldest first."""
        now = self._clock()
        oldest = now - INTERVAL_SECONDS * SAMPLES
        return [_aged(sample, now - taken) for taken, sample in self._samples if taken > oldest]


def _sample(snapshot: pb.StatsResponse, queued: int) -> pb.HistorySample:
    cache, engine, memory = snapshot.prefix_cache, snapshot.engine, snapshot.memory
    return pb.HistorySample(
        lookups=cache.lookups,
        hits=cache.hits,
        tokens_looked_up=cache.tokens_looked_up,
        tokens_reused=cache.tokens_reused,
        prompt_tokens=engine.prompt_tokens,
        generated_tokens=engine.generated_tokens,
        in_flight=queued + engine.prefilling + engine.decoding,
        weights_bytes=memory.weights_bytes,
        trie_bytes=memory.trie_bytes,
        live_kv_bytes=memory.live_kv_bytes,
        disk_tokens_reused=cache.disk_tokens_reused,
    )


def _aged(sample: pb.HistorySample, age: float) -> pb.HistorySample:
    aged = pb.HistorySample(age=duration(age))
    aged.MergeFrom(sample)
    return aged


class Latency:
    """One histogram for each span of a completed Generate call: queue, load, prefill, first token, per token, total."""

    def __init__(self) -> None:
        self._histograms = {field.name: Histogram() for field in pb.LatencyStats.DESCRIPTOR.fields}

    def finished(self, end: pb.Finished) -> None:
        """Count a request by the timings in its last event."""
        timings = end.timings
        first, decode = seconds(timings.first_token), seconds(timings.decode)
        spans = {
            "queue": seconds(timings.queue),
            "prefill": seconds(timings.prefill),
            "first_token": first,
            "total": first + decode,
        }
        # Without a load there is no span, rather than a short one.
        if timings.load.ToNanoseconds():
            spans["load"] = seconds(timings.load)
        # The first token comes from prefill, so that decode made one token less.
        if end.usage.completion_tokens > 1:
            spans["per_token"] = decode / (end.usage.completion_tokens - 1)
        if not end.usage.completion_tokens:
            del spans["first_token"]  # the prompt was scored, and there was none
        for name, span in spans.items():
            self._histograms[name].add(span)

    def message(self) -> pb.LatencyStats:
        """Return all histograms as the API shows them."""
        return pb.LatencyStats(**{name: histogram.message() for name, histogram in self._histograms.items()})


class Histogram:
    """Counts spans of time in the buckets of BOUNDS, and one bucket beyond the last bound."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0

    def add(self, span: float) -> None:
        """Count a span, in seconds."""
        self._counts[bisect_left(BOUNDS, span)] += 1
        self._sum += span

    def message(self) -> pb.LatencyHistogram:
        """Return it as the API shows it."""
        message = pb.LatencyHistogram(counts=self._counts, sum=duration(self._sum))
        message.MergeFrom(_BOUNDS)
        return message


_BOUNDS = pb.LatencyHistogram(bounds=map(duration, BOUNDS))
"""Made once: a Stats call has six histograms, and their bounds would be a third of its time."""
