"""Model defaults: what a request leaves open comes from the checkpoint, if the request asks for that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import Harness, generate

RECOMMENDED: dict[str, Any] = {"temperature": 3.0, "top_p": 0.95, "top_k": 50, "repetition_penalty": 1.25}


def recommending(folder: Path, **config: Any) -> str:
    """Return a model that recommends a sampling."""
    path = copy_of_embedded(folder, tested=True)
    (path / "generation_config.json").write_text(json.dumps(config))
    return str(path)


@pytest.fixture(name="model")
def _model(tmp_path: Path) -> str:
    return recommending(tmp_path, do_sample=True, **RECOMMENDED)


def ids(harness: Harness, model: str, **sampling: Any) -> list[int]:
    """Return an answer's ids."""
    answer = harness.run(generate("Once upon a time", model=model, max_tokens=30, sampling=pb.Sampling(**sampling)))
    assert not answer.failure.reason, answer.failure
    return answer.ids


def test_open_options_come_from_the_model(harness: Harness, model: str) -> None:
    """The answer is that of the same options written out; each option of the request wins."""
    default = ids(harness, model, model_defaults=True, seed=4)
    assert default == ids(harness, model, seed=4, **RECOMMENDED)
    assert default != ids(harness, model)
    cooler = ids(harness, model, model_defaults=True, seed=4, temperature=1.0, top_k=0)
    assert cooler == ids(harness, model, seed=4, **{**RECOMMENDED, "temperature": 1.0, "top_k": 0})
    greedy = ids(harness, model, model_defaults=True, temperature=0, repetition_penalty=1)
    assert greedy == ids(harness, model)


def test_load_tells_the_recommended_sampling(harness: Harness, model: str) -> None:
    """With the weights and without, and in Stats; the embedded model recommends nothing."""
    estimate = harness.run(pb.GetOrLoadRequest(model=model, estimate_only=True)).events[-1].load.ready
    loaded = harness.run(pb.GetOrLoadRequest(model=model)).events[-1].load.ready
    assert loaded.default_sampling == estimate.default_sampling == pb.Sampling(**RECOMMENDED)
    assert harness.figures.models[0].info.default_sampling == pb.Sampling(**RECOMMENDED)
    embedded = harness.run(pb.GetOrLoadRequest(model="embedded")).events[-1].load.ready
    assert not embedded.HasField("default_sampling")


def test_copies_of_a_model_recommend_each_their_own(harness: Harness, model: str, tmp_path: Path) -> None:
    """They share weights, and differ in this file."""
    (tmp_path / "copy").mkdir()
    for file in Path(model).iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "copy" / "generation_config.json").write_text('{"do_sample": false}')
    harness.run(pb.GetOrLoadRequest(model=model))
    other = harness.run(pb.GetOrLoadRequest(model=str(tmp_path / "copy"))).events[-1].load.ready
    assert harness.models == 1
    assert not other.HasField("default_sampling")
    assert ids(harness, str(tmp_path / "copy"), model_defaults=True) == ids(harness, model)


@pytest.mark.parametrize("name", ["seed", "top_p", "top_k", "min_p"])
def test_option_without_effect_on_a_greedy_model_is_refused(harness: Harness, name: str) -> None:
    """By its name: only the engine knows what the model recommends."""
    sampling = pb.Sampling(model_defaults=True, **{name: 1 if name in ("seed", "top_k") else 0.5})  # type: ignore[arg-type]
    failure = harness.run(generate("Once", sampling=sampling)).failure
    assert (failure.reason, failure.field) == ("INVALID_ARGUMENT", f"sampling.{name}")


def test_samples_of_a_greedy_model_are_refused(harness: Harness, model: str) -> None:
    """They would be equal; a model that recommends a temperature gives them."""
    sampling = pb.Sampling(model_defaults=True)
    failure = harness.run(generate("Once", sampling=sampling, samples=2)).failure
    assert (failure.reason, failure.field) == ("INVALID_ARGUMENT", "samples")
    events = harness.run(generate("Once", model=model, sampling=sampling, samples=2)).events
    assert sum(event.generate.HasField("finished") for event in events) == 2
