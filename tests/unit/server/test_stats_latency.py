"""Latency histograms: the spans of a finished request, and the quantiles that a client reads."""

from __future__ import annotations

import random

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from daemon.server import stats
from daemon.server.stats import BOUNDS, Histogram, Latency
from daemon.shared.durations import duration
from mlx_sidecar import LatencyHistogram, LatencyStats
from mlx_sidecar._decode import decode
from mlx_sidecar.v1 import sidecar_pb2 as pb


def finished(tokens: int, load: float = 0.0) -> pb.Finished:
    """Return the end of a request that decoded for a second."""
    timings = pb.Timings(
        queue=duration(0.002),
        load=duration(load),
        prefill=duration(0.25),
        first_token=duration(0.5),
        decode=duration(1.0),
    )
    return pb.Finished(usage=pb.Usage(completion_tokens=tokens), timings=timings)


def test_request_is_counted_once_per_latency_histogram() -> None:
    """No load, no span of one; one token, no span between tokens."""
    latency = Latency()
    latency.finished(finished(tokens=11))
    latency.finished(finished(tokens=1, load=2.0))
    seen = decode(LatencyStats, latency.message())
    counts = {
        name: getattr(seen, name).count for name in ("queue", "load", "prefill", "first_token", "per_token", "total")
    }
    assert counts == {"queue": 2, "load": 1, "prefill": 2, "first_token": 2, "per_token": 1, "total": 2}
    assert (seen.load.sum, seen.per_token.sum, seen.total.sum) == (2.0, 0.1, 3.0)


def test_scored_prompt_has_no_first_token() -> None:
    """Nothing was generated, so only the times of the prompt count."""
    latency = Latency()
    latency.finished(finished(tokens=0))
    seen = decode(LatencyStats, latency.message())
    assert (seen.first_token.count, seen.prefill.count, seen.total.count) == (0, 1, 1)


def test_bounds_are_made_once_for_all_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Stats call has six histograms of 38 bounds each."""
    made: list[float] = []

    def counted(seconds: float) -> Duration:
        made.append(seconds)
        return duration(seconds)

    monkeypatch.setattr(stats, "duration", counted)
    message = Latency().message()
    assert [len(histogram.bounds) for _, histogram in message.ListFields()] == [len(BOUNDS)] * 6
    assert made == [0.0] * 6  # the sums


def test_latency_falls_into_the_bucket_of_its_bound() -> None:
    """Bounds are inclusive, and the last bucket takes the rest."""
    histogram = Histogram()
    for span in (0.0, BOUNDS[0], BOUNDS[0] * 1.01, BOUNDS[-1], BOUNDS[-1] * 2):
        histogram.add(span)
    counts = list(histogram.message().counts)
    assert len(counts) == len(BOUNDS) + 1
    assert (counts[0], counts[1], counts[-2], counts[-1]) == (2, 1, 1, 1)
    assert sum(counts) == 5


@given(st.integers(0, 2**32))
def test_latency_quantile_is_within_one_bucket(seed: int) -> None:
    """Buckets grow by the square root of two, so no quantile is off by more than that."""
    rng = random.Random(seed)
    spans = sorted(rng.lognormvariate(-2, 1.5) for _ in range(500))
    histogram = Histogram()
    for span in spans:
        histogram.add(span)
    read = decode(LatencyHistogram, histogram.message())
    for share in (0.1, 0.5, 0.9, 0.99):
        exact = max(spans[int(share * len(spans)) - 1], BOUNDS[0])
        found = read.quantile(share)
        assert found is not None
        assert exact / 1.5 <= found <= exact * 1.5


def test_empty_latency_histogram_has_no_quantile() -> None:
    """Neither as it comes from the daemon, nor as it is made."""
    assert decode(LatencyHistogram, Histogram().message()).quantile(0.5) is None
    assert LatencyHistogram().quantile(0.99) is None


def test_latency_above_the_last_bound_counts_as_it() -> None:
    """A histogram knows no more."""
    histogram = Histogram()
    histogram.add(BOUNDS[-1] * 100)
    assert decode(LatencyHistogram, histogram.message()).quantile(0.5) == pytest.approx(BOUNDS[-1])
