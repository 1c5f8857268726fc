"""A machine that slept: its models are as old as the clock on the wall says, and no work took longer for it."""

from __future__ import annotations

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Harness, generate

TTL = 60


def test_model_ttl_counts_time_asleep(harness: Harness) -> None:
    """Most of it in sleep; Stats counts the same way."""
    harness.run(pb.GetOrLoadRequest(model="embedded", ttl={"seconds": TTL}))
    harness.slept += TTL - 10
    harness.clock_offset += 2
    harness.step()
    assert harness.models == 1
    (model,) = harness.figures.models
    assert TTL - 8 <= model.idle.seconds < TTL
    harness.slept += 10
    harness.clock_offset += 2
    harness.step()
    assert harness.models == 0


def test_request_timings_exclude_time_asleep(harness: Harness) -> None:
    """They are about work, and the sizes of its next chunks follow from them."""
    call = harness.begin(generate("a b c"))
    harness.until(lambda: harness.decoding(call))
    harness.slept += 8 * 3600
    finished = harness.finish(call)[-1].generate.finished
    assert max(value.seconds for _, value in finished.timings.ListFields()) < 3600
