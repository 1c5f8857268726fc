"""How long requests took: histograms that cost a few hundred bytes, whatever they count."""

from __future__ import annotations

from bisect import bisect_left

from daemon.durations import duration, seconds
from mlx_sidecar.v1 import sidecar_pb2 as pb

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
