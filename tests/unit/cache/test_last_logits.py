"""The view of a model that computes logits after the last token alone: those of the model, or there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import load

from daemon.cache.mlx.last_logits import viewing
from daemon.kv.mlx.layout import describing
from daemon.shared.slices import drain
from tests.support.models import TINY
from tests.unit.engine.families import Family, write

PROMPT = mx.array([[(7 * index) % 60 + 3 for index in range(20)]])


def loaded(folder: Path, family: str) -> Any:
    """Return the module of a tiny model."""
    return load(str(write(folder, Family(family))))[0]


def view_of(model: Any) -> Any:
    """Return its view, as a load gets it."""
    return drain(viewing(model, drain(describing(model))))


@pytest.mark.parametrize("family", sorted(TINY))
def test_view_has_the_logits_after_the_last_token(tmp_path: Path, family: str) -> None:
    """Its caches are those that the model leaves, too: the next token has the same logits."""
    model = loaded(tmp_path, family)
    view, layout = view_of(model), drain(describing(model))
    caches = [layout.new_cache(model, 21) for _ in range(2)]
    whole, last = model(PROMPT, cache=caches[0]), view(PROMPT, cache=caches[1])
    assert last.shape == (1, 1, whole.shape[-1])
    assert mx.allclose(last[:, -1], whole[:, -1], rtol=1e-4, atol=1e-4).item()
    after = [model(mx.array([[9]]), cache=cache) for cache in caches]
    assert mx.array_equal(*after).item()


def test_model_that_looks_at_other_states_has_no_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its class computes behind the trunk is not known: it is tried."""
    model = loaded(tmp_path, "llama")
    usual = type(model).__call__

    def mixed(self: Any, inputs: mx.array, cache: Any = None) -> mx.array:
        return mx.cumsum(usual(self, inputs, cache), axis=1)

    monkeypatch.setattr(type(model), "__call__", mixed)
    assert view_of(model) is None


def test_model_that_fails_has_no_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(tmp_path, "llama")
    usual = type(model).__call__

    def strict(self: Any, inputs: mx.array, cache: Any = None) -> mx.array:
        logits: mx.array = usual(self, inputs, cache)
        assert logits.shape[1] == inputs.shape[1], "one for each"
        return logits

    monkeypatch.setattr(type(model), "__call__", strict)
    assert view_of(model) is None
