"""What `stats()` tells of how long requests took: histograms, in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LatencyHistogram:
    """
    Spans of time, counted in buckets.

    Attributes:
        bounds: Upper bounds of the buckets in seconds, ascending.
        counts: Spans in each bucket; one more than there are bounds, for what is longer.
        sum: Seconds of all spans together; None before the first.
    """

    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    sum: float | None = None

    @property
    def count(self) -> int:
        """Spans counted."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """
        Return the span in seconds that `share` of all spans (0 to 1) do not exceed, interpolated within its bucket;
        None before the first. What is longer than the last bound counts as that bound.
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
    How long completed requests took.

    Attributes:
        queue: Preparing the prompt and waiting for a slot.
        load: Waiting for a model to load; only requests that did.
        prefill: Computing what was not cached of the prompt.
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
