"""A model that is loaded again is not tested again, unless its weights or the place are others, or ranks test it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import llama
from structlog.testing import capture_logs

from daemon.cache.identity import ModelSource, identify
from daemon.cache.mlx.load_notes import LoadNotes, NoteFile
from daemon.cache.mlx.loader import LoadedModel, LoadSetup, MisnamedError, load
from daemon.cache.mlx.measurements import Measurements
from daemon.cache.mlx.self_tests import VERDICTS, Verdicts
from daemon.cache.mlx.shard import WHOLE
from daemon.kv.mlx import self_test
from tests.support.builders import tiny_llama
from tests.unit.cache.loads import run


def drained(result: bool) -> Generator[Any, None, bool]:
    """Return a result as a test does that computes nothing."""
    yield from ()
    return result


class Loads:
    """
    Loads models as engines with one state directory do, and counts the passes that this takes.

    Args:
        directory: The state directory.
    """

    def __init__(self, directory: Path) -> None:
        self.passes = 0
        self._directory = directory
        self._measured = Measurements()
        self.restart()

    def restart(self, place: str = "here") -> None:
        """Begin as an engine in some place that has just started, once what the last one found is on the disk."""
        for thread in threading.enumerate():
            if thread.name == "save":
                thread.join(60)
        self._verdicts = Verdicts(LoadNotes(NoteFile(self._directory, VERDICTS, place)))

    def __call__(self, source: ModelSource, shard: Any = WHOLE) -> LoadedModel:
        """Load a model, and return it; `passes` are those of this load."""
        self.passes = 0
        steps = load(source, 0, LoadSetup(lambda: 0.0, shard=shard, measured=self._measured, verdicts=self._verdicts))
        return run(steps)[1].model


@pytest.fixture(name="loads")
def _loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loads:
    loads, real = Loads(tmp_path / "state"), llama.Model.__call__

    def counted(model: Any, *arguments: Any, **named: Any) -> Any:
        loads.passes += 1
        return real(model, *arguments, **named)

    monkeypatch.setattr(llama.Model, "__call__", counted)
    return loads


@pytest.mark.parametrize("restarts", [False, True])
def test_model_that_is_loaded_again_needs_one_pass(tmp_path: Path, loads: Loads, restarts: bool) -> None:
    source = identify("tiny", tiny_llama(tmp_path / "model"))
    first = loads(source)
    assert loads.passes > 20
    if restarts:
        loads.restart()

    again = loads(source)
    assert loads.passes == 1
    assert again.model is not first.model
    assert replace(again, model=None, last=None) == replace(first, model=None, last=None)
    assert again.shares
    assert isinstance(again.model.layers[0].self_attn, type(first.model.layers[0].self_attn))
    assert again.last is not None
    assert mx.array_equal(again.last(mx.array([[1, 2, 3]])), again.model(mx.array([[1, 2, 3]]))[:, -1:])


def test_model_in_another_place_is_tested(tmp_path: Path, loads: Loads) -> None:
    source = identify("tiny", tiny_llama(tmp_path / "model"))
    loads(source)
    loads.restart("another system")

    loads(source)
    assert loads.passes > 20


def test_model_whose_restored_cache_is_wrong_has_no_reuse_after_a_restart(
    tmp_path: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = identify("tiny", tiny_llama(tmp_path / "model"))
    with monkeypatch.context() as broken:
        broken.setattr(self_test, "_reuse_is_exact", lambda *_: drained(False))
        first = loads(source)
    assert not first.layout.reusable
    loads.restart()

    with capture_logs() as logs:
        again = loads(source)
    assert loads.passes == 1
    assert again.layout == first.layout
    assert again.layout.warning
    (line,) = [line for line in logs if line["event"] == "model_tested"]
    assert (line["known"], line["reuses"]) == (True, False)


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
