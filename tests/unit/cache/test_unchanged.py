"""What was found out about a model is remembered while its files stay as they were, and never longer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.cache import resolver as module
from daemon.cache.digests import SETTLED_NS, Digests, Stamp, TakesLong
from daemon.cache.identity import ModelSource, identify
from daemon.cache.limits import ModelLimits
from daemon.cache.resolver import Resolver, Wanted
from daemon.cache.unchanged import state_of
from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import float_tensors, write_adapter, write_model


def _later() -> int:
    """Return a time long after the files of the test were written."""
    return time.time_ns() + 2 * SETTLED_NS


@pytest.fixture(name="model")
def _model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture(name="adapter")
def _adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


@pytest.fixture(name="resolver")
def _resolver() -> Resolver:
    return Resolver([], now_ns=_later)


@pytest.fixture(name="looked_at")
def _looked_at(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that a model's directory is added to when its files are looked at."""
    folders: list[Path] = []

    def noting(name: str, path: Path, *rest: Any, **options: Any) -> ModelSource:
        folders.append(path)
        return identify(name, path, *rest, **options)

    monkeypatch.setattr(module, "identify", noting)
    return folders


def test_a_model_that_did_not_change_is_looked_at_once(resolver: Resolver, model: Path, looked_at: list[Path]) -> None:
    first = resolver.resolve(Wanted(str(model)))

    assert resolver.resolve(Wanted(str(model))) is first
    assert looked_at == [model]


def _other_weights(folder: Path) -> Path:
    """Return a file of other weights than those of the model and of the adapter, outside both."""
    file = folder.parent / "other"
    file.write_bytes(float_tensors(w=(7, 3)))
    return file


def _write_config(model: Path, _: Path) -> None:
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text + " ")


def _touch_weights(model: Path, _: Path) -> None:
    os.utime(model / "model.safetensors", ns=(1, 1))


def _replace_weights(model: Path, _: Path) -> None:
    os.replace(_other_weights(model), model / "model.safetensors")


def _add_shard(model: Path, _: Path) -> None:
    os.rename(_other_weights(model), model / "model-2.safetensors")


def _recommend_sampling(model: Path, _: Path) -> None:
    (model / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.5}')


def _quantize(model: Path, _: Path) -> None:
    (model / "hf_quant_config.json").write_text("{}")


def _lead_elsewhere(model: Path, _: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(_other_weights(model))


def _train_adapter(_: Path, adapter: Path) -> None:
    os.replace(_other_weights(adapter), adapter / "adapters.safetensors")


CHANGES: list[Callable[[Path, Path], None]] = [
    _write_config,
    _touch_weights,
    _replace_weights,
    _add_shard,
    _recommend_sampling,
    _quantize,
    _lead_elsewhere,
    _train_adapter,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_changed_is_looked_at_again(
    resolver: Resolver, model: Path, adapter: Path, looked_at: list[Path], change: Callable[[Path, Path], None]
) -> None:
    wanted = Wanted(str(model), adapter=str(adapter))
    resolver.resolve(wanted)

    change(model, adapter)

    found, fresh = resolver.resolve(wanted), identify(str(model), model, adapter)
    assert len(looked_at) == 2
    assert (found, found.config, found.weights) == (fresh, fresh.config, fresh.weights)
    assert (found.quantization, found.default_sampling) == (fresh.quantization, fresh.default_sampling)
    assert found.adapter_weights == fresh.adapter_weights


def test_a_link_that_leads_to_another_file_is_followed_anew(
    resolver: Resolver, model: Path, tmp_path: Path, looked_at: list[Path]
) -> None:
    """The files of a snapshot in the Hub's cache are links."""
    weights = model / "model.safetensors"
    blobs = [weights.rename(tmp_path / "one"), _other_weights(model)]
    keys = []
    for blob in blobs:
        weights.unlink(missing_ok=True)
        weights.symlink_to(blob)
        keys += [resolver.resolve(Wanted(str(model))).key for _ in range(2)]

    assert keys[0] == keys[1] != keys[2] == keys[3]
    assert len(looked_at) == 2


def test_a_model_that_was_written_just_now_is_looked_at_again(model: Path, looked_at: list[Path]) -> None:
    """A further write could leave the same stamps."""
    newest = max(file.stat().st_ctime_ns for file in model.iterdir())
    now = newest + SETTLED_NS
    resolver = Resolver([], now_ns=lambda: now)

    for _ in range(2):
        resolver.resolve(Wanted(str(model)))
    assert len(looked_at) == 2

    now += 1
    for _ in range(3):
        resolver.resolve(Wanted(str(model)))
    assert len(looked_at) == 3


def test_a_model_whose_files_are_not_what_their_names_say_is_looked_at_again(model: Path) -> None:
    digests = Digests(now_ns=_later)
    resolver = Resolver([], digests=digests, now_ns=_later)
    before = resolver.resolve(Wanted(str(model)))
    weights = model / "model.safetensors"

    digests.learn(weights, Stamp.of(weights), "ab" * 32)

    after = resolver.resolve(Wanted(str(model)))
    assert after.weights[0].digest == "ab" * 32
    assert after.key != before.key


def test_a_model_that_vanished_is_missed(resolver: Resolver, model: Path) -> None:
    resolver.resolve(Wanted(str(model)))
    (model / "model.safetensors").unlink()

    with pytest.raises(SidecarError) as caught:
        resolver.resolve(Wanted(str(model)))
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


def test_an_error_is_not_remembered(resolver: Resolver, model: Path) -> None:
    weights = (model / "model.safetensors").rename(model / "elsewhere")
    with pytest.raises(SidecarError):
        resolver.resolve(Wanted(str(model)))

    weights.rename(model / "model.safetensors")

    assert resolver.resolve(Wanted(str(model))).weights


def test_figures_are_not_taken_for_a_model(resolver: Resolver, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.cache.digests.QUICK_BYTES", 10)

    assert not resolver.resolve(Wanted(str(model), estimate=True)).weights
    with pytest.raises(TakesLong):
        resolver.resolve(Wanted(str(model)))


def test_a_model_that_is_known_may_still_be_too_large(model: Path) -> None:
    limit = 1 << 30
    resolver = Resolver([], afford=lambda *asked: ModelLimits(limit).refuse_if_never(*asked), now_ns=_later)
    resolver.resolve(Wanted(str(model)))

    limit = 10

    with pytest.raises(SidecarError) as caught:
        resolver.resolve(Wanted(str(model)))
    assert caught.value.reason is Reason.MODEL_EXCEEDS_BUDGET


def test_each_name_of_a_model_is_its_own(resolver: Resolver, model: Path, tmp_path: Path, adapter: Path) -> None:
    copy = write_model(tmp_path / "copy")

    names = [resolver.resolve(wanted).name for wanted in (Wanted(str(model)), Wanted(str(copy)))]
    plain, adapted = (resolver.resolve(Wanted(str(model), adapter=one)) for one in ("", str(adapter)))

    assert names == [str(model), str(copy)]
    assert (plain.key.adapter, bool(adapted.key.adapter)) == ("", True)


def test_only_regular_files_have_a_state(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "c.json").mkdir()
    (tmp_path / "d.json").symlink_to(tmp_path / "nothing")
    (tmp_path / "e.json").symlink_to(tmp_path / "b.txt")
    os.mkfifo(tmp_path / "f.json")

    state = state_of(tmp_path, lambda name: name.endswith(".json"))

    assert state == (("a.json", Stamp.of(tmp_path / "a.json")), ("e.json", Stamp.of(tmp_path / "b.txt")))
