"""GetOrLoad, Invalidate and Stats over the real socket: one load for all, and an honest account of memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mlx_sidecar
from mlx_sidecar import Client
from tests.support.daemons import RunningDaemon
from tests.support.models import copy_of_embedded
from tools.embedded import corpus

PROMPT = next(corpus.held_out(seed=20, tokens_hint=200)).completion()


def test_load_streams_progress_and_returns_the_model(client: Client, folder: Path) -> None:
    """Bytes grow to the total; the second call is a hit."""
    path = str(copy_of_embedded(folder))
    with client.get_or_load(path) as stream:
        progress = list(stream)
        ready = stream.result()
    stages = [event.stage for event in progress]
    assert "loading" in stages
    assert stages == sorted(stages, key=["queued", "loading", "warming_up"].index)
    loading = [event for event in progress if event.stage == "loading"]
    assert loading[-1].bytes_done > 0
    assert (ready.model, ready.outcome, ready.architecture) == (path, "loaded", "llama")
    assert (ready.prefix_reuse, ready.context_length) == ("blocks", 4096)
    assert ready.size_bytes > 1_000_000
    assert (ready.load_time or 0) > 0
    again = client.load(path)
    assert (again.outcome, again.fingerprint) == ("hit", ready.fingerprint)


def test_concurrent_callers_share_one_model_load(client: Client, folder: Path) -> None:
    """Sixteen calls at once: one miss that loads, and all get the same model."""
    path = str(copy_of_embedded(folder))
    with ThreadPoolExecutor(16) as pool:
        infos = list(pool.map(lambda _: client.load(path), range(16)))
    assert len({info.fingerprint for info in infos}) == 1
    assert {info.outcome for info in infos} <= {"loaded", "hit"}
    (entry,) = (model for model in client.stats().models if model.info.model == path)
    assert entry.use_count == 16
    assert client.invalidate_model(path).models == (path,)


def test_load_estimate_reads_no_weights(client: Client, folder: Path) -> None:
    """Figures come from the files; the cache is not touched."""
    path = str(copy_of_embedded(folder))
    before = client.stats().model_cache
    info = client.load(path, estimate_only=True)
    assert info.outcome == "estimated"
    assert info.size_bytes == (Path(path) / "model.safetensors").stat().st_size
    assert client.stats().model_cache.total_misses == before.total_misses


def test_weights_that_change_on_disk_are_another_model(client: Client, folder: Path) -> None:
    """One bit is enough: a new fingerprint, and no prefix is shared with the old one."""
    path = copy_of_embedded(folder)
    first = client.load(str(path))
    client.complete(str(path), PROMPT, max_tokens=1)
    weights = path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    second = client.load(str(path))
    assert second.fingerprint != first.fingerprint
    assert second.outcome == "loaded"
    assert client.complete(str(path), PROMPT, max_tokens=1).usage.cached_tokens == 0


def test_paths_of_equal_content_are_one_model(client: Client, folder: Path) -> None:
    """One load, one set of prefixes, both names in Stats, and either name drops it for both."""
    path = str(copy_of_embedded(folder))
    copy = str(Path(shutil.copytree(path, folder / "copy")))
    first, second = client.load(path), client.load(copy)
    assert (first.outcome, second.outcome) == ("loaded", "hit")
    assert (second.model, second.fingerprint) == (copy, first.fingerprint)
    (entry,) = (model for model in client.stats().models if model.info.fingerprint == first.fingerprint)
    assert entry.names == (path, copy)
    client.complete(path, PROMPT, max_tokens=1)
    assert client.complete(copy, PROMPT, max_tokens=1).usage.cached_tokens > 0
    dropped = client.invalidate_model(copy)
    assert dropped.models == (path, copy)
    assert dropped.blocks > 0
    assert client.complete(path, PROMPT, max_tokens=1).usage.cached_tokens == 0


def test_weights_and_prefixes_are_dropped_separately(client: Client, folder: Path) -> None:
    """What is dropped is exactly what was asked for, and a dry run only counts it."""
    path = str(copy_of_embedded(folder))
    client.complete(path, PROMPT, max_tokens=1)
    cached = client.complete(path, PROMPT, max_tokens=1).usage.cached_tokens
    dry = client.invalidate_model(path, dry_run=True)
    assert dry.models == (path,)
    assert dry.blocks >= cached // 16 > 0
    assert client.invalidate_model(path, weights=True, prefixes=False).blocks == 0
    assert client.complete(path, PROMPT, max_tokens=1).usage.cached_tokens == cached
    dropped = client.invalidate_model(path, weights=False, prefixes=True)
    assert (dropped.models, dropped.blocks) == ((), dry.blocks)
    assert client.complete(path, PROMPT, max_tokens=1).usage.cached_tokens == 0


def test_single_prefix_can_be_invalidated(client: Client) -> None:
    """Prompts with another beginning keep their cached prefix."""
    one, two = (next(corpus.held_out(seed=seed, tokens_hint=200)).completion() for seed in (21, 22))
    for prompt in (one, two):
        client.complete("embedded", prompt, max_tokens=1, salt="forget")
    dropped = client.invalidate_prefix("embedded", one[: one.index(" ", 200)], salt="forget")
    assert dropped.blocks > 0
    assert client.complete("embedded", one, max_tokens=1, salt="forget").usage.cached_tokens == 0
    assert client.complete("embedded", two, max_tokens=1, salt="forget").usage.cached_tokens > 0


def test_invalidating_an_absent_model_is_no_error(client: Client) -> None:
    """Invalidating an unknown model returns an empty result."""
    answer = client.invalidate_model("nobody/nothing")
    assert (answer.models, answer.blocks, answer.bytes_freed) == ((), 0, 0)


def test_a_model_in_use_survives_its_invalidation(client: Client, folder: Path) -> None:
    """The stream goes on to its end, and its memory returns then."""
    path = str(copy_of_embedded(folder))
    with client.generate(path, PROMPT, max_tokens=400, ignore_eos=True) as stream:
        events = iter(stream)
        next(events)
        dropped = client.invalidate_model(path)
        assert dropped.bytes_in_use > 0
        states = {model.info.model: model.state for model in client.stats().models}
        assert states[path] == "draining"
        rest = list(events)
    assert rest[-1].usage.completion_tokens == 400  # type: ignore[union-attr]
    assert path not in {model.info.model for model in client.stats().models}


def test_model_above_the_budget_is_refused_with_sizes(
    start_daemon: Callable[..., RunningDaemon],
) -> None:
    """A model above the budget is refused before anything is read or evicted."""
    with start_daemon(model_cache_mb="1").client() as client:
        with pytest.raises(mlx_sidecar.ModelExceedsBudget) as caught:
            client.load("embedded")
        assert caught.value.metadata["budget_bytes"] == str(1 << 20)
        assert int(caught.value.metadata["needed_bytes"]) > 1 << 20


def test_a_budget_of_zero_keeps_nothing(start_daemon: Callable[..., RunningDaemon]) -> None:
    """Every call loads, runs and frees; answers are the same."""
    with start_daemon(model_cache_mb="0").client() as client:
        assert client.load("embedded").outcome == "uncached"
        first = client.complete("embedded", PROMPT, max_tokens=8)
        assert client.complete("embedded", PROMPT, max_tokens=8).text == first.text
        stats = client.stats()
        assert (stats.model_cache.cached_models, stats.model_cache.total_memory_bytes, stats.models) == (0, 0, ())


def test_pinned_models_stay_and_unpinned_are_evicted(start_daemon: Callable[..., RunningDaemon], folder: Path) -> None:
    """With one slot, a pin keeps others out until it is lifted."""
    with start_daemon(max_models="1").client() as client:
        assert client.load("embedded", pin=True).outcome == "loaded"
        other = str(copy_of_embedded(folder))
        with pytest.raises(mlx_sidecar.BudgetInUse, match="embedded"):
            client.load(other)
        client.load("embedded", pin=False)
        assert client.load(other).evicted == ("embedded",)
        assert [model.info.model for model in client.stats().models] == [other]


def test_require_loaded_refuses_instead_of_loading(client: Client, folder: Path) -> None:
    """FAILED_PRECONDITION, and nothing is loaded."""
    path = str(copy_of_embedded(folder))
    with pytest.raises(mlx_sidecar.ModelNotCached, match="require_loaded"):
        client.complete(path, PROMPT, max_tokens=1, require_loaded=True)
    assert path not in {model.info.model for model in client.stats().models}
