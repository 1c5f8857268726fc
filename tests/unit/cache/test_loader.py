"""A model loads in slices and can be abandoned after each; a model that cannot be loaded leaves no memory in use."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from structlog.testing import capture_logs

from daemon.cache.identity import identify
from daemon.cache.limits import ModelLimits
from daemon.cache.load import Stage
from daemon.cache.mlx import loader
from daemon.cache.mlx.loader import LoadedModel, LoadSetup, MisnamedError, load
from daemon.cache.mlx.measurements import Measurements
from daemon.cache.mlx.self_tests import Verdicts
from daemon.cache.mlx.warm_up import WarmUp, warm_up
from daemon.cache.model_cache import ModelCache
from daemon.kv.mlx.layerwise import Pass, forward_layerwise
from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import Clock, float_tensors, page_rounding, tiny_llama
from tests.support.models import TINY, write_random
from tests.unit.cache.loads import refusal, run, start


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


@pytest.fixture(name="memory")
def _memory(path: Path) -> Iterator[Callable[[], int]]:
    """Return a function for the bytes in use that were not before the test. Needs the model's files."""
    gc.collect()
    limit = mx.set_cache_limit(0)
    before = mx.get_active_memory()

    def grown() -> int:
        gc.collect()
        return mx.get_active_memory() - before

    yield grown
    mx.set_cache_limit(limit)


def _change(path: Path, **config: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def test_a_model_is_loaded_measured_and_described(path: Path) -> None:
    _, loaded = run(start(path))
    model = loaded.model

    weights = sum(array.nbytes for _, array in tree_flatten(model.model.parameters()))
    assert loaded.nbytes == model.nbytes == weights
    assert model.vocab_size == 61
    assert model.layout.groups == ((0, 1, 2),)
    assert model.warmup_time == 0.0


def test_weights_come_in_slices_with_progress(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "SLICE_BYTES", 10_000)

    progress, loaded = run(start(path))

    done = [step.bytes_done for step in progress]
    sizes = [after - before for before, after in itertools.pairwise([0, *done])]
    assert len(done) > 5
    assert done[-1] == loaded.nbytes
    assert max(sizes) <= 10_000
    assert {step.stage for step in progress} == {Stage.LOADING}
    assert {step.bytes_total for step in progress} == {(path / "model.safetensors").stat().st_size}


def test_oversized_array_is_one_load_slice(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "SLICE_BYTES", 1)

    progress, loaded = run(start(path))

    sizes = [after.bytes_done - before.bytes_done for before, after in itertools.pairwise(progress)]
    assert sum(size > 0 for size in sizes) == len(tree_flatten(loaded.model.model.parameters()))


def test_first_pass_is_sliced_by_layer_beside_streams(path: Path) -> None:
    """
    The self-tests take 53 passes: six of layout and vocabulary, ten of a batch, ten of a shared prefix, 14 of guesses
    alone, eleven of guesses in a batch, and two of logits after the last token.

    The six are a pass for the layout, two blocks, the token after them twice, and a token for the vocabulary.
    """
    layers = 3
    clock = itertools.count()
    source = identify(str(path), path)

    progress, loaded = run(load(source, 2, LoadSetup(lambda: float(next(clock)), lambda: 0.5)))

    passes = [step for step in progress if step.stage is Stage.LOADING and step.bytes_done == loaded.nbytes]
    # Of each pass the graph is a piece, and the work before it ends a slice.
    assert len(passes) == 1 + (6 + 10 + 10 + 14 + 11 + 2) * (layers + 2)
    warmup = [step for step in progress if step.stage is Stage.WARMING_UP]
    assert len(warmup) == 1 + 2 * (layers + 3)


def test_module_assembly_is_sliced_beside_streams(path: Path) -> None:
    """For hundreds of layers each of the three slices takes as long as some tokens of a stream."""
    clock = itertools.count()

    progress, _ = run(load(identify("tiny", path), 0, LoadSetup(lambda: float(next(clock)), lambda: 0.5)))

    assert [step.bytes_done for step in progress][:4] == [0, 0, 0, progress[3].bytes_done]
    assert progress[3].bytes_done > 0


def test_load_slice_holds_only_its_own_memory(
    path: Path, memory: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "SLICE_BYTES", 10_000)
    steps = start(path)

    for _ in range(3):
        progress = next(steps)
        assert progress.bytes_done <= memory() <= progress.bytes_done + 1000 + page_rounding(30)

    steps.close()


def test_closing_a_load_frees_what_was_read(
    path: Path, memory: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "SLICE_BYTES", 10_000)
    steps = start(path)
    for _ in range(4):
        next(steps)
    assert memory() > 0

    steps.close()

    assert memory() == 0


def test_evicted_model_returns_its_memory(path: Path, memory: Callable[[], int]) -> None:
    cache: ModelCache[Any, LoadedModel] = ModelCache(
        ModelLimits(10**9), lambda source, _: load(source, 2, LoadSetup(Clock())), Clock(), mx.clear_cache
    )
    ticket = cache.get_or_load(identify("tiny", path))
    while cache.busy:
        cache.step()
    lease = ticket.lease
    assert lease is not None
    module = weakref.ref(lease.model.model)
    assert memory() >= lease.entry.nbytes
    ticket.cancel()

    cache.clear()

    assert memory() == 0
    assert module() is None
    assert lease.entry.name == "tiny"


def test_failed_load_returns_its_memory(path: Path, memory: Callable[[], int]) -> None:
    _change(path, vocab_size=50)
    cache: ModelCache[Any, LoadedModel] = ModelCache(
        ModelLimits(10**9), lambda source, _: load(source, 0, LoadSetup(Clock())), Clock()
    )
    ticket = cache.get_or_load(identify("tiny", path))
    while cache.busy:
        cache.step()

    assert isinstance(ticket.error, SidecarError)
    assert ticket.error.reason is Reason.MODEL_CORRUPT
    assert memory() == 0


@pytest.mark.parametrize(
    "config",
    [
        {"vocab_size": 50},
        {"hidden_size": 64},
        {"num_hidden_layers": 4},
        {"num_hidden_layers": 2},
        {"num_hidden_layers": -1},
        {"num_attention_heads": 0},
        {"num_attention_heads": "4"},
        {"num_key_value_heads": 3},
        {"hidden_size": None},
        {"layer_types": ["full_attention"]},
        {"layer_types": ["sliding_attention"] * 3},
        {"rope_scaling": {"type": "unheard of"}},
        {"quantization": {"bits": 4}},
        {"quantization": 4},
        {"quantization_config": {"bits": 4}},
    ],
    ids=str,
)
def test_config_that_contradicts_weights_is_corrupt(path: Path, config: dict[str, Any]) -> None:
    _change(path, **config)

    error = refusal(path)

    assert error.reason is Reason.MODEL_CORRUPT
    assert error.message.startswith("tiny cannot be loaded: ")
    assert error.__cause__ is not None


@pytest.mark.parametrize("model_type", ["unheard_of", "llama2000", "os.path"])
def test_unknown_architecture_is_unsupported(path: Path, model_type: str) -> None:
    _change(path, model_type=model_type)

    error = refusal(path)

    assert error.reason is Reason.MODEL_UNSUPPORTED
    assert "not supported by this mlx-lm" in error.message


@pytest.mark.parametrize("model_type", ["base", "cache", "switch_layers"])
def test_mlx_lm_module_that_is_no_model_is_refused(path: Path, model_type: str) -> None:
    _change(path, model_type=model_type)

    assert refusal(path).reason is Reason.MODEL_CORRUPT


def test_weights_of_another_model_are_corrupt(path: Path) -> None:
    (path / "model.safetensors").write_bytes(float_tensors(weight=(4, 4)))

    assert refusal(path).reason is Reason.MODEL_CORRUPT


def test_weights_changed_during_a_load_are_refused(path: Path) -> None:
    """The stamp of the file need not tell. The new digest is learned, so that the next lookup finds the right key."""
    source = identify("tiny", path)
    learnt: list[tuple[Path, str]] = []
    steps = load(source, 0, LoadSetup(Clock(), learn=lambda file, stamp, digest: learnt.append((file, digest))))
    next(steps)
    weights = path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    with pytest.raises(MisnamedError, match="ask again") as caught:
        run(steps)

    assert (caught.value.reason, caught.value.retry_after) == (Reason.MODEL_CORRUPT, 2.0)
    assert learnt == [(weights, hashlib.sha256(content).hexdigest())]


def test_weights_that_the_key_does_not_name_leave_no_measurement(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same shapes, they may have other types, and so take other memory."""
    kept: list[object] = []
    monkeypatch.setattr(Measurements, "keep", lambda *known: kept.append(known))
    monkeypatch.setattr(Verdicts, "keep", lambda *known: kept.append(known))
    steps = load(identify("tiny", path), 0, LoadSetup(Clock()))
    next(steps)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\7")

    with pytest.raises(MisnamedError):
        run(steps)
    assert not kept
    run(start(path))
    assert len(kept) == 2


def test_files_truncated_during_a_load_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "SLICE_BYTES", 10_000)
    steps = start(path)
    next(steps)
    with (path / "model.safetensors").open("r+b") as file:
        file.truncate(1000)

    with pytest.raises(SidecarError) as caught:
        run(steps)

    assert caught.value.reason is Reason.MODEL_CORRUPT


def test_warm_up_is_timed_and_leaves_only_weights(path: Path, memory: Callable[[], int]) -> None:
    progress, loaded = run(start(path, warmup_tokens=5))

    assert [step.stage for step in progress].count(Stage.WARMING_UP) >= 1
    assert loaded.model.warmup_time > 0
    assert loaded.nbytes <= memory() <= loaded.nbytes + 1000 + page_rounding(30)


def test_warm_up_failure_is_logged_and_not_fatal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> list[Any]:
        raise ZeroDivisionError("in some kernel")

    monkeypatch.setattr("daemon.cache.mlx.warm_up._generate", fail)
    with capture_logs() as logs:
        _, loaded = run(start(path, warmup_tokens=5))

    assert loaded.model.warmup_time > 0
    (warning,) = [entry for entry in logs if entry["log_level"] == "warning"]
    assert warning["event"] == "warm_up_failed"
    assert "ZeroDivisionError" in warning["error"]


def test_seed_warm_up_runs_and_is_timed(path: Path) -> None:
    _, loaded = run(start(path))
    clock = Clock()
    warmup = WarmUp(loaded.model.model, loaded.model.layout, 4)

    for _ in warm_up(warmup, clock):
        clock.pass_(0.01)

    # The work before, the graph, the layers and the choice of each token.
    assert warmup.seconds == pytest.approx(0.01 * 4 * (1 + 1 + 3 + 1))


def test_warm_up_of_a_slow_model_ends_after_a_second(path: Path) -> None:
    _, loaded = run(start(path))
    clock = Clock()
    for tokens, generated in ((2, 2), (32, 3)):
        warmup = WarmUp(loaded.model.model, loaded.model.layout, tokens)
        for _ in warm_up(warmup, clock):
            clock.pass_(1.0)
        assert warmup.seconds == generated * (1 + 1 + 3 + 1)


def test_warm_up_ends_with_the_learned_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX would read beyond their table."""
    sizes = {"n_ctx": 40, "n_positions": 40, "n_embd": 16, "n_head": 2, "n_layer": 1, "layer_norm_epsilon": 1e-5}
    config = {"model_type": "gpt2", "vocab_size": TINY["qwen3"]["vocab_size"], **sizes}
    path, fed = write_random(tmp_path / "learned", config, 3), list[int]()

    def counted(model: Any, tokens: mx.array, caches: list[Any]) -> Pass:
        fed.append(tokens.shape[1])
        return forward_layerwise(model, tokens, caches)

    monkeypatch.setattr("daemon.cache.mlx.warm_up.forward_layerwise", counted)
    run(load(identify("learned", path), 64, LoadSetup(lambda: 0.0)))
    assert sum(fed) == 40


def test_module_that_ends_the_process_is_refused(path: Path) -> None:
    """`olmo` of mlx-lm does, when it is imported without a package that it needs: the engine ended with it."""
    _change(path, model_type="olmo")
    assert refusal(path).reason is Reason.MODEL_UNSUPPORTED
