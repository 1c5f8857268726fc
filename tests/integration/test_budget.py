"""Three models of known size and a budget for two, over the socket: who goes, who stays, and what memory says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import mlx_sidecar
from mlx_sidecar import Client, Stats
from tests.support.daemons import RunningDaemon
from tests.support.models import heavy_model

MIB = 1 << 20
BUDGET_MB = 90
"""Room for two models of some 40 MB, and not for three."""


@pytest.fixture(name="models", scope="module")
def _models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Return three models of one size and different content."""
    folder = tmp_path_factory.mktemp("models")
    a, b, c = (str(heavy_model(folder, name, seed)) for seed, name in enumerate("abc"))
    return a, b, c


@pytest.fixture(name="small")
def _small(start_daemon: Callable[..., RunningDaemon]) -> RunningDaemon:
    """Return a daemon with room for two of them, and hardly any for prefixes."""
    return start_daemon(model_cache_mb=str(BUDGET_MB), kv_cache_mb="1", warmup_tokens="4")


def _names(stats: Stats) -> list[str]:
    return [model.info.model for model in stats.models]


def test_lru_model_eviction_keeps_the_peak_in_budget(small: RunningDaemon, models: tuple[str, str, str]) -> None:
    """
    A, B, touch A: C evicts B. The engine's own peak is the witness: of every instant since its start, finer than any
    sampling, and within the budget and two per cent, without even a slice on top.
    """
    a, b, c = models
    with small.client() as client:
        sizes = [client.load(model).size_bytes for model in (a, b, a)]
        assert 2 * sizes[0] < BUDGET_MB * MIB < 3 * sizes[0]
        ready = client.load(c)
        assert ready.evicted == (b,)
        stats = client.stats()
        assert _names(stats) == [c, a]
        assert stats.memory.peak_bytes <= 1.02 * BUDGET_MB * MIB
        assert stats.memory.weights_bytes == 2 * sizes[0]


def test_model_in_use_is_not_evicted(small: RunningDaemon, models: tuple[str, str, str]) -> None:
    """Model B is in use, so model C replaces A, although A was used later. With both in use there is no room."""
    a, b, c = models
    with small.client() as client, client.generate(b, "x", max_tokens=4000, ignore_eos=True) as stream:
        events = iter(stream)
        next(events)
        client.load(a)
        with client.generate(a, "x", max_tokens=4000, ignore_eos=True) as other:
            next(iter(other))
            with pytest.raises(mlx_sidecar.BudgetInUse) as caught:
                client.load(c)
            assert (caught.value.retry_after or 0) > 0
            assert {a, b, "needed_bytes", "budget_bytes"} <= set(caught.value.metadata)
        assert client.load(c).evicted == (a,)
        assert set(_names(client.stats())) == {b, c}
        assert client.stats().memory.peak_bytes <= 1.1 * BUDGET_MB * MIB  # with the KV of two streams


def test_evicted_model_memory_is_returned(small: RunningDaemon, models: tuple[str, str, str]) -> None:
    """After an unload, MLX's memory is that of the remaining models, within 5 %."""
    a, b, _ = models
    with small.client() as client:
        left = client.load(a).size_bytes
        client.load(b)
        client.invalidate_model(b)
        memory = client.stats().memory
        assert memory.weights_bytes == left
        assert memory.active_bytes + memory.cache_bytes <= 1.05 * left
        client.invalidate_model(a)
        memory = client.stats().memory
        assert memory.active_bytes + memory.cache_bytes <= 0.05 * left


def test_alternating_models_are_loaded_once_each(small: RunningDaemon, models: tuple[str, str, str]) -> None:
    """Twenty alternating requests have two misses; all others are hits."""
    with small.client() as client:
        outcomes = [client.load(models[turn % 2]).outcome for turn in range(20)]
        assert outcomes == ["loaded"] * 2 + ["hit"] * 18
        assert _counters(client) == (18, 2, 0)


def _counters(client: Client) -> tuple[int, int, int]:
    cache = client.stats().model_cache
    return cache.total_hits, cache.total_misses, cache.evictions
