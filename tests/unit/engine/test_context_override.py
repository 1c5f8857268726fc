"""A context length that a caller chose: it bounds requests, is shown, and outlives the model's time in memory."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from daemon.cache.identity import ModelSource
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import Answer, Harness, generate

OWN = 4096
PROMPT = "The code of the blue box is"


def load(harness: Harness, model: str, **fields: object) -> pb.ModelInfo:
    """Load a model and return its description."""
    request = pb.GetOrLoadRequest(model=model, **fields)  # type: ignore[arg-type]
    return harness.run(request).events[-1].load.ready


def refused(harness: Harness, model: str, max_tokens: int) -> str:
    """Return the context length that a request of so many tokens is refused for; empty if it is served."""
    answer = harness.run(generate(PROMPT, model=model, max_tokens=max_tokens))
    metadata = dict(answer.events[-1].failure.metadata)
    assert metadata or answer.finished.reason
    return metadata.get("context_length", "")


def shown(harness: Harness) -> list[int]:
    """Return the context lengths in Stats."""
    harness.settle()
    harness.clock_offset += 2
    harness.step()
    return [model.info.context_length for model in harness.figures.models]


@pytest.fixture(name="model")
def _model(tmp_path: Path) -> str:
    return str(copy_of_embedded(tmp_path, tested=True, max_position_embeddings=OWN))


def test_chosen_context_length_bounds_requests(harness: Harness, model: str) -> None:
    """It is reported by the load, by an estimate and by Stats."""
    assert load(harness, model).context_length == OWN
    assert load(harness, model, context_length=20).context_length == 20
    assert refused(harness, model, 30) == "20"
    assert refused(harness, model, 3) == ""
    assert load(harness, model, estimate_only=True).context_length == 20
    assert shown(harness) == [20]


def test_context_length_may_exceed_the_configuration(harness: Harness, tmp_path: Path) -> None:
    """A configuration may be wrong."""
    model = str(copy_of_embedded(tmp_path, tested=True, max_position_embeddings=16))
    assert refused(harness, model, 30) == "16"
    assert load(harness, model, context_length=64).context_length == 64
    assert refused(harness, model, 30) == ""


def test_context_length_ends_with_learned_positions(harness: Harness, tmp_path: Path) -> None:
    """There is nothing to read for later ones; the error comes before the weights."""
    model = str(copy_of_embedded(tmp_path, tested=True, model_type="gpt2", n_positions=16))
    answer = harness.run(pb.GetOrLoadRequest(model=model, context_length=17))
    failure = answer.events[-1].failure
    assert failure.field == "context_length", failure
    assert failure.message == ("context_length is 17, and the model has learned 16 positions; choose at most 16")
    assert harness.figures.models == []


def test_other_names_keep_their_context_length(harness: Harness, model: str) -> None:
    """The choice counts for a name, as a pin does; another choice replaces it."""
    load(harness, model, context_length=20)
    assert refused(harness, "embedded", 30) == ""
    load(harness, model)
    assert refused(harness, model, 30) == "20"
    assert load(harness, model, context_length=100).context_length == 100
    assert refused(harness, model, 30) == ""
    assert 100 in shown(harness)


def test_context_length_outlives_the_weights(harness: Harness, model: str) -> None:
    """It holds when the model was evicted and is loaded again; Invalidate takes it back."""
    load(harness, model, context_length=20, ttl={"seconds": 0})
    harness.settle()
    harness.until(lambda: harness.models == 0 or not harness.engine._models.evict_stale())
    assert refused(harness, model, 30) == "20"
    harness.run(pb.InvalidateRequest(model=pb.ModelTarget(model=model, weights=True)))
    assert refused(harness, model, 30) == ""


def test_recalled_context_length_bounds_requests(harness: Harness, model: str) -> None:
    """An engine that was started anew is told what was chosen before."""
    harness.engine.handle(ipc.Command(recall=pb.GetOrLoadRequest(model=model, context_length=20)))
    assert refused(harness, model, 30) == "20"
    assert refused(harness, model, 3) == ""
    assert refused(harness, model, 30) == "20"
    assert shown(harness)[-1] == 20


def test_yarn_context_holds_a_long_prompt(harness: Harness, tmp_path: Path) -> None:
    """452 tokens, with a configuration of 128 positions times 4."""
    scaling = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 128}
    model = str(copy_of_embedded(tmp_path, tested=True, max_position_embeddings=128, rope_scaling=scaling))
    assert load(harness, model, estimate_only=True).context_length == 512
    request = pb.GenerateRequest(model=model, tokens=pb.TokenIds(ids=[40] * 452), max_tokens=2)
    assert harness.run(request).finished.usage.prompt_tokens == 452


def test_learned_positions_bound_a_length_that_was_chosen_for_other_content(harness: Harness, tmp_path: Path) -> None:
    """A choice is kept by name. So it may meet a model that has fewer positions, as may `max_position_embeddings`."""
    model = str(copy_of_embedded(tmp_path, tested=True, max_position_embeddings=64))
    assert load(harness, model, context_length=64).context_length == 64
    shutil.rmtree(model)
    copy_of_embedded(tmp_path, tested=True, model_type="gpt2", n_positions=16, max_position_embeddings=64)
    assert load(harness, model, estimate_only=True).context_length == 16


def test_request_keeps_the_context_length_of_its_arrival(
    harness: Harness, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its prompt is prepared on another thread, at another moment on each rank of a group."""
    load(harness, model)
    resolver, go_on = harness.engine._services.lookup._resolver, threading.Event()
    resolve = resolver.resolve

    def late(*arguments: Any) -> ModelSource:
        assert go_on.wait(60)
        return resolve(*arguments)

    monkeypatch.setattr(resolver, "resolve", late)
    call = harness.begin(generate(PROMPT, model=model, max_tokens=30))
    harness.engine._services.overrides.choose_context_length(model, "", 20)
    go_on.set()
    assert Answer(harness.finish(call)).finished.usage.completion_tokens > 0
    assert refused(harness, model, 30) == "20"
