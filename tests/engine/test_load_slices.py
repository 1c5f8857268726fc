"""A load gives way: between any two of its slices, running streams go on."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from daemon.cache import loader
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.engine.harness import Harness, generate
from tests.models import wide_model

LONG = pb.Stop(ignore_eos=True)


@pytest.mark.parametrize("layers", [3, pytest.param(24, marks=pytest.mark.slow)])
def test_a_stream_decodes_between_any_two_slices_of_a_load(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int
) -> None:
    """A token at least for each slice; a slice is small, and the model many of them."""
    path = str(wide_model(tmp_path, "large", 1, layers))
    monkeypatch.setattr(loader, "SLICE_BYTES", 5 << 20)
    stream = harness.begin(generate("The", max_tokens=2000, stop=LONG))
    harness.until(lambda: harness.decoding(stream))
    load = harness.begin(pb.GetOrLoadRequest(model=path))
    tokens: list[int] = []

    def is_loaded() -> bool:
        events = harness.of(load)
        slices = sum(event.load.progress.stage == pb.LOAD_STAGE_LOADING for event in events)
        if slices > len(tokens):
            tokens.append(harness.engine._runner.totals.generated_tokens)
        return bool(events) and events[-1].load.HasField("ready")

    harness.until(is_loaded)
    steps = [after - before for before, after in pairwise(tokens)]
    assert len(steps) >= 5 * layers // 3
    assert min(steps) >= 1
    harness.cancel(stream)
    harness.settle()
