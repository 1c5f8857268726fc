"""A model that a process loads again is not tested again, unless its weights are others or ranks test it together."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import llama

from daemon.cache.identity import ModelSource, identify
from daemon.cache.mlx.loader import LoadedModel, MisnamedError, load
from daemon.cache.mlx.measurements import Measurements
from daemon.cache.mlx.self_tests import Verdicts
from daemon.cache.mlx.shard import WHOLE
from tests.support.builders import tiny_llama
from tests.unit.cache.loads import run


class Loads:
    """Loads models as one engine does, and counts the passes that this takes."""

    def __init__(self) -> None:
        self.passes = 0
        self._measured, self._verdicts = Measurements(), Verdicts()

    def __call__(self, source: ModelSource, shard: Any = WHOLE) -> LoadedModel:
        """Load a model, and return it; `passes` are those of this load."""
        self.passes = 0
        steps = load(source, 0, lambda: 0.0, shard=shard, measured=self._measured, verdicts=self._verdicts)
        return run(steps)[1].model


@pytest.fixture(name="loads")
def _loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    loads, real = Loads(), llama.Model.__call__

    def counted(model: Any, *arguments: Any, **named: Any) -> Any:
        loads.passes += 1
        return real(model, *arguments, **named)

    monkeypatch.setattr(llama.Model, "__call__", counted)
    return loads


def test_model_that_is_loaded_again_needs_no_pass(tmp_path: Path, loads: Loads) -> None:
    source = identify("tiny", tiny_llama(tmp_path / "model"))
    first = loads(source)
    assert loads.passes > 20

    again = loads(source)
    assert loads.passes == 0
    assert again.model is not first.model
    assert replace(again, model=None, last=None) == replace(first, model=None, last=None)
    assert again.last is not None
    assert mx.array_equal(again.last(mx.array([[1, 2, 3]])), again.model(mx.array([[1, 2, 3]]))[:, -1:])


def test_model_of_other_content_is_tested(tmp_path: Path, loads: Loads) -> None:
    loads(identify("tiny", tiny_llama(tmp_path / "model")))

    loads(identify("tiny", tiny_llama(tmp_path / "other", layers=2)))
    assert loads.passes > 20


def test_weights_that_are_not_those_of_the_key_leave_no_verdict(tmp_path: Path, loads: Loads) -> None:
    source = identify("tiny", tiny_llama(tmp_path / "model"))
    wrong = hashlib.sha256(b"another file").hexdigest()
    misnamed = replace(source, weights=tuple(replace(file, digest=wrong) for file in source.weights))
    with pytest.raises(MisnamedError):
        loads(misnamed)

    loads(source)
    assert loads.passes > 20


def test_ranks_test_at_each_load(tmp_path: Path, loads: Loads) -> None:
    """One of them may not know the model, and a pass is computed by all of them or by none."""
    source = identify("tiny", tiny_llama(tmp_path / "model"))
    rank = type(WHOLE)()
    loads(source, rank)

    loads(source, rank)
    assert loads.passes > 20
