"""Faults: one request at most suffers from one, whether its input, the cache, our code or the weights are at fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from structlog.testing import capture_logs

from daemon.cache.mlx import warm_up
from daemon.cache.mlx.self_tests import Verdicts
from daemon.cache.model_cache import ModelCache
from daemon.cache.resolver import EMBEDDED_PATH
from daemon.engine.calls import generate as calls_module
from daemon.engine.calls import prefix_reuse
from daemon.engine.execution import batch
from daemon.engine.execution.prefill import Prefill
from daemon.engine.execution.prefill_queue import PrefillQueue
from daemon.engine.execution.runner import Runner
from daemon.engine.execution.sequence import Sequence
from daemon.engine.execution.together import forward
from daemon.kv.mlx import self_test
from daemon.kv.prefix_cache import PrefixCache
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.machine_faults import DeviceFailedError
from daemon.shared.model_overrides import ModelOverrides
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import embedding_model, write_random
from tests.unit.engine.families import Family, write
from tests.unit.engine.harness import Answer, Harness, generate
from tools.embedded import corpus

PROMPT = next(corpus.held_out(seed=20, tokens_hint=300)).completion()
LONG = pb.Stop(ignore_eos=True)
SEEDED = pb.Sampling(temperature=1.0, seed=5)
LOAD = pb.GetOrLoadRequest(model="embedded")


@pytest.mark.parametrize(
    ("name", "event"),
    [("lookup", "prefix_lookup_failed"), ("runs", "prefix_restore_failed"), ("store", "prefix_store_failed")],
)
def test_prefix_cache_fault_costs_only_time(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, name: str, event: str
) -> None:
    """The request gives the same answer, cold, and the log tells."""
    expected = harness.run(generate(PROMPT)).content

    def broken(*_: object) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(PrefixCache, name, broken)
    with capture_logs() as logs:
        answer = harness.run(generate(PROMPT))
    assert answer.content == expected
    assert (answer.cached == 0) == (name != "store")
    assert event in [line["event"] for line in logs]
    harness.settle()


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (Prefill, "begin"),
        (Runner, "add"),
        (PrefillQueue, "expect"),
        (calls_module, "prepare_request"),
        (calls_module, "prompt_bill"),
        (prefix_reuse, "Namespace"),
        (calls_module, "head_of"),
        (ModelCache, "get_or_load"),
    ],
    ids=["begin", "add", "expect", "prepare", "need", "sequence", "head", "get_or_load"],
)
def test_unexpected_exception_fails_one_request(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, target: Any, name: str
) -> None:
    """With INTERNAL, without its text, and no sample holds its model; the engine and the other requests go on."""
    harness.run(LOAD)
    other = harness.begin(generate(PROMPT, max_tokens=20, stop=LONG))
    harness.until(lambda: harness.decoding(other))

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret")

    owner = getattr(target, "__origin__", target)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        failure = harness.run(generate("The", samples=3, sampling=SEEDED)).failure
    assert failure.reason == "INTERNAL"
    assert "a secret" not in failure.message
    assert Answer(harness.finish(other)).finished.usage.completion_tokens == 20
    harness.settle()


def _dropped(*_: object, **__: object) -> None:
    raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommand")


@pytest.mark.parametrize(
    ("target", "name"),
    [(Prefill, "begin"), (PrefixCache, "runs"), (PrefixCache, "store")],
    ids=["begin", "restore", "store"],
)
def test_work_that_the_gpu_dropped_ends_the_engine(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, target: Any, name: str
) -> None:
    """The call that gets the error is any: tokens and KV of all others may be wrong too, and nothing tells."""
    harness.run(generate(PROMPT))
    monkeypatch.setattr(target, name, _dropped)
    with pytest.raises(DeviceFailedError):
        harness.run(generate(PROMPT))


def test_work_that_the_gpu_dropped_is_no_verdict_on_a_model(
    engine: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict is kept: the model would do without reuse until the next update of the system."""
    monkeypatch.setattr(self_test, "_copy", _dropped)
    with pytest.raises(DeviceFailedError):
        engine(verdicts=Verdicts()).run(LOAD)


def test_warm_up_that_the_gpu_dropped_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams may run beside it, and their passes may be those that were dropped."""
    unused: Any = None
    monkeypatch.setattr(warm_up, "_generate", _dropped)
    with pytest.raises(DeviceFailedError):
        list(warm_up.warm_up(warm_up.WarmUp(unused, unused, 2), lambda: 0.0))


def test_draft_model_is_given_back_after_an_error(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes right after the call got its weights."""
    harness.run(LOAD)
    with monkeypatch.context() as patch:
        patch.setattr(ModelOverrides, "done", lambda *_: 1 // 0)
        failure = harness.run(generate("The", draft_model="embedded")).failure
    assert failure.reason == "INTERNAL"
    harness.settle()


@pytest.mark.parametrize("owner", [Runner, PrefillQueue])
def test_text_that_cannot_join_fails_its_call_alone(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, owner: Any
) -> None:
    """The texts before it have joined, the shortest first; each gives its model back once."""
    name = "add" if owner is Runner else "expect"
    request = pb.EmbedRequest(model=str(embedding_model(tmp_path / "m")), texts=["a b c d", "a", "a b c", "a b"])
    take, taken = getattr(owner, name), list[int]()

    def broken(self: Any, sequence: Sequence) -> None:
        if len(taken) == 2:
            raise ZeroDivisionError("a secret")
        taken.append(len(sequence.prompt))
        take(self, sequence)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        failure = harness.run(request).failure
    assert (failure.reason, "secret" in failure.message) == ("INTERNAL", False)
    assert taken == sorted(taken)
    harness.settle()
    assert harness.run(request).events[-1].embed.HasField("finished")
    harness.settle()


def test_command_that_cannot_begin_fails_alone(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invalidate, too."""
    monkeypatch.setattr(harness.engine._invalidator, "all", lambda *_, **__: 1 // 0)
    assert harness.run(pb.InvalidateRequest(all=pb.AllTarget(weights=True))).failure.reason == "INTERNAL"


def test_request_that_can_never_fit_is_refused(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nothing runs, waiting would be for ever, at full speed."""
    harness.run(LOAD)
    monkeypatch.setattr(harness.engine._runner, "_make_room", lambda *_: False)
    failure = harness.run(generate("The")).failure
    assert (failure.reason, failure.HasField("retry_after")) == ("BUDGET_IN_USE", True)
    harness.settle()


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"model": "/nowhere"}, "MODEL_NOT_FOUND", "model"),
        ({"max_tokens": 5000}, "CONTEXT_LENGTH_EXCEEDED", "max_tokens"),
        ({"stop": pb.Stop(token_ids=[1, 9999])}, "INVALID_ARGUMENT", "stop.token_ids[1]"),
    ],
)
def test_bad_request_fails_and_is_released(harness: Harness, fields: dict[str, Any], reason: str, field: str) -> None:
    """No call stays behind."""
    failure = harness.run(generate("The", **fields)).failure
    assert (failure.reason, failure.field) == (reason, field)
    harness.settle()


@pytest.fixture(name="broken_model")
def _broken_model(tmp_path: Path) -> str:
    """Return a copy of the model one of whose weights are no numbers."""
    copy = tmp_path / "broken"
    shutil.copytree(EMBEDDED_PATH, copy)
    weights = mx.load(str(copy / "model.safetensors"))
    assert isinstance(weights, dict)
    name = next(name for name in weights if name.endswith("norm.weight"))
    weights[name] = mx.full(weights[name].shape, mx.nan, weights[name].dtype)
    mx.save_safetensors(str(copy / "model.safetensors"), weights, {"format": "mlx"})
    return str(copy)


@pytest.mark.parametrize("sampling", [pb.Sampling(), pb.Sampling(temperature=1.0)], ids=["greedy", "sampled"])
def test_nan_logits_end_the_request_and_store_nothing(
    harness: Harness, broken_model: str, sampling: pb.Sampling
) -> None:
    """Other models go on."""
    harness.run(generate(PROMPT))
    blocks = harness.figures.prefix_cache.blocks
    assert harness.run(generate(PROMPT, model=broken_model, sampling=sampling)).failure.reason == "NAN_LOGITS"
    harness.settle()
    assert harness.figures.prefix_cache.blocks == blocks
    assert harness.run(generate(PROMPT)).cached > 0


def test_nan_logits_forget_the_ends_of_messages(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The prompt went on behind a stored block, and has stored a tail and a whole block there."""
    path = str(write(tmp_path, Family("qwen3_next")))
    ids = [(7 * index) % 400 + 5 for index in range(70)]
    ids[10] = ids[43] = 2  # ends a message

    def ask(tokens: list[int]) -> Answer:
        return harness.run(generate("", model=path, tokens=pb.TokenIds(ids=tokens), max_tokens=2, stop=LONG))

    ask([*ids[:32], 3])
    with monkeypatch.context() as patch:
        patch.setattr(batch, "forward", lambda *_: mx.full((1, 1, 1024), mx.nan))
        assert ask(ids).failure.reason == "NAN_LOGITS"
    assert ask(ids).cached == 32


@pytest.mark.parametrize("max_tokens", [30, 3], ids=["others go on", "others end with the same step"])
def test_nan_logits_of_a_sample_forget_the_prompt_of_all(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, max_tokens: int
) -> None:
    """The other samples hold KV of the same prompt: none of them stores it again."""
    call = harness.begin(generate(PROMPT, samples=3, sampling=SEEDED, max_tokens=max_tokens, stop=LONG))
    harness.until(lambda: harness.decoding(call))
    steps = 0

    def spoil(*given: Any) -> mx.array:
        nonlocal steps
        steps += 1
        (decoder,) = harness.engine._runner._decoders.values()
        spoiled = mx.array([[[steps == 1 and row.sequence.request.index == 0]] for row in decoder._batches[0].rows])
        return mx.where(spoiled, mx.nan, forward(*given))

    monkeypatch.setattr(batch, "forward", spoil)
    assert Answer(harness.finish(call)).failure.reason == "NAN_LOGITS"
    harness.settle()
    assert harness.engine._memory._prefixes.trie.blocks == 0


@pytest.mark.parametrize("fields", [{"top_logprobs": 1}, {}], ids=["with log-probabilities", "sampled in one go"])
def test_nan_logits_end_one_row_of_a_batch(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, fields: dict[str, int]
) -> None:
    """Its neighbours in the same forward pass give the answers that they give alone."""
    texts = ["The", "A man", "It was"]
    expected = [harness.run(generate(text, max_tokens=30, stop=LONG, **fields)).content for text in texts]
    calls = [harness.begin(generate(text, max_tokens=30, stop=LONG, **fields)) for text in texts]
    harness.until(lambda: all(map(harness.decoding, calls)))
    (decoder,) = harness.engine._runner._decoders.values()
    (together,) = decoder._batches
    spoiled = mx.array([[[row.sequence.call_id == calls[1]]] for row in together.rows])

    def spoil(*given: Any) -> mx.array:
        monkeypatch.setattr(batch, "forward", forward)
        return mx.where(spoiled, mx.nan, forward(*given))

    monkeypatch.setattr(batch, "forward", spoil)
    assert Answer(harness.finish(calls[1])).failure.reason == "NAN_LOGITS"
    for which in (0, 2):
        assert Answer(harness.finish(calls[which])).content == expected[which]
    harness.settle()


def test_failure_text_without_unicode_is_sent(harness: Harness) -> None:
    """Names of files may be anything."""
    error = SidecarError(Reason.MODEL_CORRUPT, "bad \udcff name", metadata={"directory": "/bad \udcff"})
    harness.engine._outbox.fail(9, error)
    failure = ipc.Failure(reason="MODEL_CORRUPT", message="bad ? name", metadata={"directory": "/bad ?"})
    assert harness.events[-1] == ipc.Event(call_id=9, failure=failure)


def test_text_of_nothing_but_its_instruction_is_refused(harness: Harness, tmp_path: Path) -> None:
    """Where no token of the instruction is pooled, none is left: the mean of none ended the engine."""
    path = embedding_model(tmp_path / "m", "mean_tokens", pooling={"include_prompt": False})
    failure = harness.run(pb.EmbedRequest(model=str(path), texts=["a ship", ""], prompt_name="query")).failure
    assert (failure.reason, failure.field) == ("INVALID_ARGUMENT", "texts[1]")
    harness.settle()


def test_trunk_that_computes_logits_embeds_nothing(harness: Harness, tmp_path: Path) -> None:
    """The trunks of lille-130m and of Gemma 3n have the head inside: their logits came out as vectors."""
    sizes = {"n_embd": 64, "n_head": 4, "n_kv_heads": 2, "n_layer": 2, "block_size": 64, "vocab_size": 737}
    config = {"model_type": "lille-130m", "layer_norm_eps": 1e-5, "rope_theta": 10000.0, **sizes}
    path = write_random(tmp_path / "m", config, 5)
    request = pb.EmbedRequest(model=str(path), texts=["a ship"], pooling=pb.POOLING_LAST_TOKEN)
    assert harness.run(request).failure.reason == "MODEL_UNSUPPORTED"
    harness.settle()
