"""A load gives way: between any two of its slices, running streams go on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from daemon.cache.mlx import loader
from daemon.cache.mlx.measurements import Measurements
from daemon.cache.mlx.self_tests import Verdicts
from daemon.engine.calls.model_loading import ModelLoader
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import wide_model
from tests.unit.engine.harness import Harness, generate

LONG = pb.Stop(ignore_eos=True)


@pytest.mark.parametrize("layers", [3, pytest.param(160, marks=pytest.mark.slow)])
def test_stream_gets_a_token_between_load_slices(
    engine: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int
) -> None:
    """
    Until the model is ready, first passes included, and each slice is small: bytes of a bound, or one layer of a pass.

    So the longest gap between two tokens is a step of the stream's own and the longest of these pieces, also when
    2 GB are loaded (160 layers).
    """
    harness = engine(measured=Measurements(), verdicts=Verdicts())  # the load takes all of its passes
    path = str(wide_model(tmp_path, "large", 1, layers))
    monkeypatch.setattr(loader, "SLICE_BYTES", 5 << 20)
    stream = harness.begin(generate("The", max_tokens=4000, stop=LONG))
    harness.until(lambda: harness.decoding(stream))
    monkeypatch.setattr(ModelLoader, "slice_seconds", lambda _: 0.0)  # the shortest slices that there are
    load = harness.begin(pb.GetOrLoadRequest(model=path))
    while not harness.engine._models.loading():  # 2 GB are read before, which identifies the model
        harness.step()
    tokens = [harness.engine._runner.generated_tokens]
    while harness.engine._models.loading():
        harness.step()
        tokens.append(harness.engine._runner.generated_tokens)
    assert {after - before for before, after in pairwise(tokens)} == {1}
    progress = [event.load.progress for event in harness.of(load) if event.load.HasField("progress")]
    slices = [event.bytes_done for event in progress if event.stage == pb.LOAD_STAGE_LOADING]
    assert max(after - before for before, after in pairwise(slices)) <= 5 << 20
    arrays, passes = len(slices), 6
    assert len(tokens) >= arrays + passes * layers
    harness.cancel(stream)
    harness.settle()
