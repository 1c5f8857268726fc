"""The memory of a forward pass is measured at load, and what was measured foretells other passes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.utils import load_model

from daemon.kv.mlx import peak, workspace
from daemon.kv.mlx.layout import Layout
from daemon.kv.mlx.self_test import probe
from daemon.kv.mlx.workspace import PROBE, TRIES, Workspace, measuring
from daemon.shared.slices import LONG, Sliced, drain
from tests.support.models import TINY, random_model
from tests.unit.kv.tiny_models import RECURRENT, REUSABLE, WINDOWED, build

MODELS = {**REUSABLE, **WINDOWED, **RECURRENT}
PASSES = ((256, 0), (512, 700))
"""Tokens of a pass and before it; neither context was measured."""

RUNS = 12
"""
Runs of which the largest peak counts. MLX makes room for operations ahead of those that it computes. How many it is
depends on which of two threads is faster, so that a busy machine may see a fifth less in operations as short as these.
"""

MOST_TRIES = 100
"""Loads that are tried in all, until one has been as far ahead as the pass with the largest peak."""


def taken(model: Any, layout: Layout, width: int, context: int) -> int:
    """Return the bytes of KV and workspace at the peak of a pass, computed as a request's is."""
    mx.synchronize()
    before = mx.get_active_memory()
    caches = layout.new_cache(model, context + width)
    for tokens in (context, width):
        if tokens:
            mx.synchronize()
            peak.reset()
            model(mx.array([[index % 7 for index in range(tokens)]]), cache=caches)
            layout.compact(caches)
            mx.eval([cache.state for cache in caches])
    mx.synchronize()
    return mx.get_peak_memory() - before


@pytest.mark.parametrize(
    "name",
    [
        "llama with grouped queries",
        "gemma3_text with windows of 32",
        "qwen3_next with both",
        "mamba with recurrent state",
    ],
)
def test_bill_of_a_pass_is_close_to_its_peak(name: str) -> None:
    """For passes and contexts that were not measured; never below."""
    model = build(MODELS[name])
    layout = probe(model)
    measured = [drain(measuring(model, layout, math.inf)) for _ in range(RUNS)]
    for width, context in PASSES:
        kv = layout.live_bytes(context + width, max(width, context))
        kv += layout.state_bytes * bool(context)  # the states before the pass, as requests are billed them
        peaked = max(taken(model, layout, width, context) for _ in range(RUNS))
        billed = kv + enough(model, layout, measured, (width, context), peaked - kv)
        assert peaked <= billed <= 1.4 * peaked, (width, context)  # tiny models: buffers are rounded up to pages


def enough(model: Any, layout: Layout, measured: list[Workspace], shape: tuple[int, int], least: int) -> int:
    """Return the most bytes of a pass of some measurements; adds some while that is below `least`, as they vary."""
    while (most := max(work.bytes(*shape) for work in measured)) < least and len(measured) < MOST_TRIES:
        measured.append(drain(measuring(model, layout, math.inf)))
    return most


def test_positions_end_where_the_model_says_so() -> None:
    """A table of positions is never read beyond its end."""
    model = build(REUSABLE["llama with grouped queries"])
    seen: list[int] = []

    class Short:
        """A model of few positions that notes how far it was asked to go."""

        args = type("Args", (), {"max_position_embeddings": 100})()
        layers = model.layers

        def parameters(self) -> Any:
            return model.parameters()

        def __call__(self, tokens: mx.array, cache: list[Any]) -> Any:
            seen.append(cache[0].offset + tokens.shape[1])
            return model(tokens, cache=cache)

    layout = probe(model)
    assert drain(measuring(Short(), layout)).fixed
    assert max(seen) <= 100


def test_passes_of_windows_alone_are_measured_behind_full_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They attend to no more behind any context, and to less at the beginning."""
    model, _ = load_model(random_model(tmp_path, "recurrent_gemma"))
    layout = probe(model)
    contexts: set[int] = set()

    def noting(_model: Any, _layout: Layout, width: int, context: int) -> Sliced[tuple[int, float]]:
        yield LONG
        contexts.add(context)
        return 1000 * width, 1.0

    with monkeypatch.context() as patch:
        patch.setattr(workspace, "_pass", noting)
        drain(measuring(model, layout, math.inf))
    window = TINY["recurrent_gemma"]["attention_window_size"]
    assert contexts == {window}
    kv = layout.live_bytes(PROBE + window, PROBE) + 2 * layout.state_bytes
    least = taken(model, layout, PROBE, window) - kv
    assert enough(model, layout, [drain(measuring(model, layout, math.inf))], (PROBE, window), least) >= least


@pytest.mark.parametrize(("seconds", "tries"), [(0.001, TRIES), (1.0, 1)])
def test_largest_of_a_few_short_passes_counts(monkeypatch: pytest.MonkeyPatch, seconds: float, tries: int) -> None:
    """A counter that is low by luck at first; a long pass is measured once, but for the smallest ones."""
    model = build(REUSABLE["llama with grouped queries"])
    layout = probe(model)
    passes: dict[tuple[int, int], int] = {}

    def lucky(_model: Any, _layout: Layout, width: int, context: int) -> Sliced[tuple[int, float]]:
        yield LONG
        count = passes[width, context] = passes.get((width, context), 0) + 1
        return (7000 + 100 * width) * (1 + (count > 1)), seconds

    monkeypatch.setattr(workspace, "_pass", lucky)
    work = drain(measuring(model, layout, math.inf))
    small = max(2, tries)
    expected = {(1, 0): small, (PROBE, 0): small, (256, 0): tries, (1024, 0): tries}
    assert {key: count for key, count in passes.items() if key in expected} == expected
    assert work.single == 2 * 7100
    assert work.fixed[0] == (PROBE, 2 * (7000 + 100 * PROBE) / PROBE)


def test_few_tokens_are_billed_from_a_pass_of_one() -> None:
    """Some buffers do not shrink with the tokens; and a line to one token is never below what each takes later."""
    work = Workspace(((64, 100.0), (256, 100.0)), (), 3700.0)
    assert [work.bytes(width) for width in (1, 22, 64)] == [int(1.1 * each) for each in (3700, 4600, 6400)]
    assert Workspace(((64, 100.0),), (), 10.0).bytes(8) == int(1.1 * 800)


def test_workspace_is_a_line_between_nodes() -> None:
    """Beyond the last node it goes on as it rose, and never falls."""
    work = Workspace(((64, 100.0), (256, 292.0)), ((0, 0.0), (1000, 500.0)))
    per_token = [round(work.bytes(width, PROBE - width) / width / 1.1) for width in (64, 160, 256, 448)]
    assert per_token == [100, 196, 292, 484]
    assert work.bytes(64, 2000) == int(1.1 * 64 * (100 + 1000))
    falling = Workspace(((64, 100.0), (256, 50.0)), ())
    assert falling.bytes(1000) == int(1.1 * 1000 * 50)
    assert Workspace().bytes(100, 100) == 0


class _Concatenating:
    """A cache of a class without an adapter, that grows by each token."""

    def __init__(self) -> None:
        self.keys: Any = None

    @property
    def state(self) -> Any:
        return [] if self.keys is None else [self.keys]

    @property
    def nbytes(self) -> int:
        return 0 if self.keys is None else int(self.keys.nbytes)

    def empty(self) -> bool:
        return self.keys is None


class _Model:
    """A model with such a cache, of 40 bytes a token."""

    layers = (None,)

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def make_cache(self) -> list[Any]:
        return [self.cache()]

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        more = mx.zeros((1, 1, tokens.shape[1], 10))
        old = cache[0].keys
        cache[0].keys = more if old is None else mx.concatenate([old, more], axis=2)
        return mx.zeros((*tokens.shape, 8))


def test_unknown_cache_is_billed_what_it_takes() -> None:
    """Not a 256th of it, as if it grew in steps."""
    layout = probe(_Model(_Concatenating))
    assert not layout.reusable
    assert layout.live_bytes(4096, 64) == 4096 * 40


def test_unknown_cache_that_grows_in_steps_is_bounded() -> None:
    """It may be between two steps when it is measured."""

    class Stepping(KVCache):  # type: ignore[misc]
        """Not exactly a class that has an adapter."""

    model = build(REUSABLE["llama with grouped queries"])
    known = probe(model)
    model.make_cache = lambda: [Stepping() for _ in make_prompt_cache(build(REUSABLE["llama with grouped queries"]))]
    layout = probe(model)
    assert not layout.reusable
    for tokens in (10, 300, 5000):
        assert known.live_bytes(tokens, 64) <= layout.live_bytes(tokens, 64) <= known.live_bytes(tokens + 512, 64)
