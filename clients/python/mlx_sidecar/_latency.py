"""Results of `stats()` for latencies: histograms in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LatencyHistogram:
    """
    A histogram of durations.

    Attributes:
        bounds: Upper bounds of the buckets in seconds, ascending.
        counts: Durations in each bucket. The last of them, one more than there are bounds, has no upper bound.
        sum: Sum of all durations in seconds; None before the first.
    """

    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    sum: float | None = None

    @property
    def count(self) -> int:
        """Number of durations."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """
        Return a quantile in seconds, interpolated within its bucket; None without durations.

        A duration above the last bound counts as that bound.

        Args:
            share: The fraction of all durations, 0 to 1, that do not exceed the result.
        """
        rank, below, lower = share * self.count, 0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= rank:
                return lower + (bound - lower) * max(rank - below, 0.0) / count
            below, lower = below + count, bound
        return lower if self.count else None


@dataclass(frozen=True, slots=True)
class LatencyStats:
    """
    Durations of completed requests.

    Attributes:
        queue: Waiting for an engine that starts, preparing the prompt, and waiting for a slot.
        load: Waiting for a model to load; only of requests that waited.
        prefill: Computing the part of the prompt that was not cached.
        first_token: From arrival to the first token.
        per_token: From one token to the next, the mean of each request.
        total: From arrival to the last token.
    """

    queue: LatencyHistogram = LatencyHistogram()
    load: LatencyHistogram = LatencyHistogram()
    prefill: LatencyHistogram = LatencyHistogram()
    first_token: LatencyHistogram = LatencyHistogram()
    per_token: LatencyHistogram = LatencyHistogram()
    total: LatencyHistogram = LatencyHistogram()
