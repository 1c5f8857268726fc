"""What the figures were: a ring of samples, so that a look at the daemon shows an hour and not a moment."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from daemon.durations import duration
from mlx_sidecar.v1 import sidecar_pb2 as pb

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
