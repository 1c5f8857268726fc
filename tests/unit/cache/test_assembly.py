"""A module that is assembled in pieces equals the module that mlx-lm loads from the same files."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.utils import load_model

from daemon.cache.identity import identify
from daemon.cache.mlx import assembly
from daemon.cache.mlx.assembly import assembling
from daemon.cache.mlx.mtp_checkpoints import TakenHead
from daemon.cache.mlx.weights import Reading
from daemon.cache.pace import Pace
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.slices import Sliced
from tests.support.builders import tiny_llama
from tests.support.models import TINY, random_model


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


@pytest.fixture(name="constructed")
def _constructed(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[llama.Model]]:
    """Return a list that each constructed module is added to. Needs the model's files."""
    assert path.exists()
    modules: list[llama.Model] = []
    construct = llama.Model.__init__

    def noted(self: llama.Model, arguments: llama.ModelArgs) -> None:
        modules.append(self)
        construct(self, arguments)

    monkeypatch.setattr(llama.Model, "__init__", noted)
    yield modules
    modules.clear()


def _assembled(path: Path) -> Any:
    """Assemble a module and return it."""
    work = _work(path)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def _work(path: Path) -> Sliced[Any]:
    source = identify("model", path)
    with closing(Reading(source, Pace(1 << 30), time.monotonic)) as reading:
        return (yield from assembling(source, reading, TakenHead()))


def _stored(path: Path) -> dict[str, mx.array]:
    return cast("dict[str, mx.array]", mx.load(str(path / "model.safetensors")))


def _quantize(path: Path) -> None:
    model, config = load_model(path)
    nn.quantize(model, 32, 4)
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (path / "config.json").write_text(json.dumps({**config, "quantization": {"group_size": 32, "bits": 4}}))


@pytest.mark.parametrize(("family", "quantized"), [*((family, False) for family in TINY), ("qwen3", True)])
def test_sliced_module_assembly_equals_mlx_lm_load(tmp_path: Path, family: str, *, quantized: bool) -> None:
    path = random_model(tmp_path, family)
    if quantized:
        _quantize(path)
    whole, _ = load_model(path)

    model = _assembled(path)

    assert str(model) == str(whole)  # the classes of its layers
    assert not model.training
    weights, expected = dict(tree_flatten(model.parameters())), dict(tree_flatten(whole.parameters()))
    assert weights.keys() == expected.keys()
    assert all(mx.array_equal(weights[name], expected[name]).item() for name in expected)
    assert mx.array_equal(model(mx.array([[1, 2, 3]])), whole(mx.array([[1, 2, 3]]))).item()


def test_module_of_another_installation_is_not_imported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its base classes would be those of the version before, and answers might be other ones, without a word."""
    monkeypatch.setattr(assembly, "_PROGRAM", SimpleNamespace(replaced_by=lambda: "9.9"))
    assert _assembled(path) is not None, "its module is in memory already"
    monkeypatch.delitem(sys.modules, llama.__name__)
    with pytest.raises(SidecarError, match=r"was upgraded or removed .* service restart") as caught:
        _assembled(path)
    assert caught.value.reason is Reason.MACHINE_FAULT


def test_model_assembly_is_sliced_into_units(path: Path, constructed: list[llama.Model]) -> None:
    """Each takes long for hundreds of layers, and is done once."""
    stored = _stored(path)["lm_head.weight"]
    work = _work(path)

    next(work)
    (model,) = constructed
    assert model.training
    next(work)
    assert not model.training
    assert not mx.array_equal(model.lm_head.weight, stored).item()
    with pytest.raises(StopIteration) as end:
        next(work)

    assert end.value.value is model
    assert constructed == [model]
    assert mx.array_equal(model.lm_head.weight, stored).item()


def test_loaded_config_is_the_one_of_the_model_key(path: Path, constructed: list[llama.Model]) -> None:
    """The file may have another configuration by now, which would compute something else."""
    work = _work(path)
    next(work)
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 0.5}))

    for _ in work:
        pass

    assert [model.args.rms_norm_eps for model in constructed] == [1e-5]


def test_ill_fitting_weights_are_refused_like_mlx_lm(path: Path) -> None:
    weights = _stored(path)
    del weights["lm_head.weight"]
    mx.save_safetensors(str(path / "model.safetensors"), weights)

    with pytest.raises(ValueError, match="Missing 1 parameters"):
        _assembled(path)
