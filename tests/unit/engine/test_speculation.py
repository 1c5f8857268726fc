"""A draft model changes when tokens come and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import gpt2, llama

from daemon.kv.mlx import sharing
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import TINY, copy_of_embedded, random_model, write_random
from tests.unit.engine.families import Family, write
from tests.unit.engine.harness import Answer, Harness, generate
from tests.unit.engine.shared_guesses import harness_ids
from tools.embedded import corpus

GREEDY = pb.Sampling()
SEEDED = pb.Sampling(temperature=0.8, top_p=0.95, seed=11)
PENALISED = pb.Sampling(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2, logit_bias={40: 2.0})
HOT = pb.Sampling(temperature=2.0, seed=3, min_p=0.01)


def request(text: str, **fields: Any) -> pb.GenerateRequest:
    """Return a request for forty tokens with their log-probabilities."""
    options = {"max_tokens": 40, "top_logprobs": 2, "stop": pb.Stop(ignore_eos=True), **fields}
    return generate(text, **options)


@pytest.fixture(name="text")
def _text() -> str:
    return next(corpus.held_out(seed=91, tokens_hint=150)).completion()


@pytest.fixture(name="drafts", params=["the same weights", "other weights"])
def _drafts(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a draft model: one that is nearly always right, or one that nearly never is."""
    same = request.param == "the same weights"
    return str(copy_of_embedded(tmp_path, tested=True) if same else random_model(tmp_path, "qwen3"))


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED, PENALISED, HOT], ids=["greedy", "seeded", "penalised", "hot"])
@pytest.mark.parametrize("count", [1, 4])
def test_speculative_answer_equals_the_plain_answer(
    harness: Harness, text: str, drafts: str, sampling: pb.Sampling, count: int
) -> None:
    """Token for token and bit for bit, cold and warm, however good the draft is."""
    expected = harness.run(request(text, sampling=sampling, cache=pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS)))
    for _ in range(2):
        answer = harness.run(request(text, sampling=sampling, draft_model=drafts, draft_tokens=count))
        assert answer.content == expected.content
        assert answer.finished.usage.draft_tokens > 0
    harness.settle()


def test_accepted_draft_tokens_are_counted_and_batched(harness: Harness, tmp_path: Path, text: str) -> None:
    draft = str(copy_of_embedded(tmp_path, tested=True))

    answer = harness.run(request(text, draft_model=draft))

    usage = answer.finished.usage
    assert usage.accepted_tokens == usage.draft_tokens == 32
    assert usage.completion_tokens == 40
    assert harness.run(request(text)).finished.usage.draft_tokens == 0


def test_draft_and_main_model_reuse_generated_tokens(harness: Harness, drafts: str, text: str) -> None:
    """The next turn restores the answer, without what was guessed wrongly."""
    first = harness.run(request(text, draft_model=drafts))
    ids = [*harness_ids(harness, text), *first.ids, 50, 51]
    second = pb.GenerateRequest(
        model="embedded", tokens=pb.TokenIds(ids=ids), max_tokens=12, draft_model=drafts, top_logprobs=0
    )
    cold = pb.GenerateRequest()
    cold.CopyFrom(second)
    cold.ClearField("draft_model")
    cold.cache.mode = pb.CACHE_MODE_BYPASS

    warm = harness.run(second)

    assert warm.cached >= (len(ids) - 3) // 16 * 16
    assert warm.content == harness.run(cold).content
    harness.settle()


def test_stop_within_accepted_draft_tokens_ends_there(harness: Harness, tmp_path: Path, text: str) -> None:
    draft = str(copy_of_embedded(tmp_path, tested=True))
    plain = request(text, stop=pb.Stop())
    guessed = request(text, stop=pb.Stop(), draft_model=draft, draft_tokens=16)

    expected, answer = harness.run(plain), harness.run(guessed)

    assert answer.content == expected.content
    assert answer.finished.reason == expected.finished.reason == pb.FINISH_REASON_STOP
    harness.settle()


def test_speculation_runs_beside_others_and_cancels(
    harness: Harness, engine: Callable[..., Harness], drafts: str, text: str
) -> None:
    """Neighbours that come, stay and go change nothing; what it had computed is stored."""
    alone = engine().run(request(text)).content
    calls = [harness.begin(request(text, draft_model=drafts)) for _ in range(2)]
    plain = harness.begin(request(text))
    gone = harness.begin(request(text, draft_model=drafts, max_tokens=400))
    harness.until(lambda: harness.decoding(gone))
    harness.cancel(gone)
    for call in (*calls, plain):
        assert Answer(harness.finish(call)).content == alone
    harness.settle()


def test_draft_with_another_tokenizer_is_refused(harness: Harness, tmp_path: Path, text: str) -> None:
    """With the difference of both vocabularies."""
    other = copy_of_embedded(tmp_path, "other-tokens")
    tokenizer = other / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"<|im_end|>"', '"<|end|>"'))
    failure = harness.run(request(text, draft_model=str(other))).failure
    assert (failure.reason, failure.field) == ("INVALID_ARGUMENT", "draft_model")
    assert "has another tokenizer than embedded" in failure.message
    assert "tokens beside 737: 1 only here, 0 only there, and 1 with another id" in failure.message
    harness.settle()


def test_draft_model_that_cannot_be_had_is_an_error(harness: Harness, tmp_path: Path, text: str) -> None:
    missing = harness.run(request(text, draft_model="/nowhere")).failure
    assert missing.reason == "MODEL_NOT_FOUND"
    loaded = harness.run(request(text, draft_model=str(copy_of_embedded(tmp_path, "cold")), require_loaded=True))
    assert loaded.failure.reason == "MODEL_NOT_CACHED"
    harness.settle()


HALF = pb.Sampling(presence_penalty=0.1, logit_bias=dict.fromkeys(range(0, 737, 2), -100.0))
"""Half of the tokens cannot come, which the draft does not know."""


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3_next", "recurrent_gemma", "baichuan_m1", "deepseek_v3"])
def test_draft_guesses_for_every_class_of_cache(harness: Harness, tmp_path: Path, family: str) -> None:
    """A model is its own draft: both sides give wrong guesses back."""
    path = str(write(tmp_path, Family(family)))

    def answer(**fields: Any) -> Answer:
        prompt = pb.TokenIds(ids=range(20, 31))
        common: dict[str, Any] = {
            "tokens": prompt,
            "max_tokens": 60,
            "sampling": HALF,
            "stop": pb.Stop(ignore_eos=True),
        }
        return harness.run(pb.GenerateRequest(model=path, **common, **fields))

    plain = answer(speculation=pb.SPECULATION_OFF)
    guessed = answer(draft_model=path, draft_tokens=3, speculation=pb.SPECULATION_DRAFT)
    assert guessed.ids == plain.ids
    assert 0 < guessed.finished.usage.accepted_tokens < guessed.finished.usage.draft_tokens
    harness.settle()


FORM = pb.ResponseFormat(regex="(The (man|dog) is (old|new)\\. ){4}")


def test_form_holds_for_tokens_of_a_draft(harness: Harness, tmp_path: Path, text: str) -> None:
    draft = str(copy_of_embedded(tmp_path, tested=True))
    plain = harness.run(request(text, stop=pb.Stop(), response_format=FORM))
    answer = harness.run(request(text, stop=pb.Stop(), response_format=FORM, draft_model=draft))
    assert answer.content == plain.content
    assert answer.finished.usage.accepted_tokens > 0


def test_draft_model_pin_survives_an_engine_restart(harness: Harness, tmp_path: Path, text: str) -> None:
    """As any other model that comes back because somebody asks for it."""
    draft = str(copy_of_embedded(tmp_path, tested=True))
    harness.engine.handle(ipc.Command(recall=pb.GetOrLoadRequest(model=draft, pin=True)))

    harness.run(request(text, draft_model=draft))

    assert {name: entry.pinned for entry in harness.engine._models.entries() for name in entry.names} == {
        "embedded": False,
        draft: True,
    }


def test_draft_guesses_for_readers_of_one_prefix(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong guesses leave the tails, and the prefix stays as it is."""
    monkeypatch.setattr(sharing, "LEAST_SHARED", 16)
    path = str(write(tmp_path, Family("llama")))
    prompts = [[*range(20, 90), 7, 8], [*range(20, 90), 9]]

    def asked(prompt: list[int], **fields: Any) -> pb.GenerateRequest:
        common: dict[str, Any] = {"tokens": pb.TokenIds(ids=prompt), "max_tokens": 40, "sampling": HALF}
        return pb.GenerateRequest(model=path, stop=pb.Stop(ignore_eos=True), top_logprobs=0, **common, **fields)

    bypass = pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS)
    plain = [harness.run(asked(prompt, cache=bypass)) for prompt in prompts]
    first = harness.begin(asked(prompts[0], draft_model=path))
    harness.until(lambda: harness.decoding(first))
    second = harness.run(asked(prompts[1], draft_model=path))
    assert second.content == plain[1].content
    assert Answer(harness.finish(first)).content == plain[0].content
    harness.settle()
    assert harness.figures.prefix_cache.tokens_shared


def test_draft_is_fed_no_token_id_that_it_has_not(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models of a family have one tokenizer, and tables of other sizes. MLX would read whatever is behind them."""
    main = str(write_random(tmp_path / "main", {**TINY["llama"], "vocab_size": 800}, 7))
    draft = str(random_model(tmp_path, "llama"))
    forward, fed = llama.Model.__call__, list[int]()

    def noted(model: Any, tokens: mx.array, *arguments: Any, **named: Any) -> Any:
        if model.args.vocab_size == 737:
            fed.append(int(mx.max(tokens).item()))  # type: ignore[arg-type]
        return forward(model, tokens, *arguments, **named)

    def asked(ids: list[int], **fields: Any) -> pb.GenerateRequest:
        sampling = pb.Sampling(temperature=1.0, seed=3, logit_bias={790: 4.0})
        common: dict[str, Any] = {"tokens": pb.TokenIds(ids=ids), "max_tokens": 40, "sampling": sampling}
        return pb.GenerateRequest(model=main, stop=pb.Stop(ignore_eos=True), top_logprobs=0, **common, **fields)

    plain = harness.run(asked([5, 6, 7], speculation=pb.SPECULATION_OFF))
    monkeypatch.setattr(llama.Model, "__call__", noted)
    answer = harness.run(asked([5, 6, 7], draft_model=draft))
    assert answer.content == plain.content
    assert 790 in answer.ids[3:]
    assert answer.finished.usage.draft_tokens > 0
    assert max(fed) < 737
    failure = harness.run(asked([5, 790], draft_model=draft)).failure
    assert (failure.reason, failure.field) == ("INVALID_ARGUMENT", "draft_model")
    assert "737 token ids" in failure.message
    harness.settle()


def test_draft_guesses_within_its_learned_positions(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer goes on without its guesses. A prompt that is too long for it is refused: it has none to guess."""
    sizes = {"n_ctx": 64, "n_positions": 64, "n_embd": 32, "n_head": 2, "n_layer": 1, "layer_norm_epsilon": 1e-5}
    draft = str(write_random(tmp_path / "draft", {"model_type": "gpt2", "vocab_size": 737, **sizes}, 7))
    forward, ends = gpt2.Model.__call__, list[int]()

    def noted(model: Any, tokens: mx.array, cache: Any) -> Any:
        ends.append(cache[0].offset + tokens.shape[1])
        return forward(model, tokens, cache=cache)

    def asked(length: int, **fields: Any) -> pb.GenerateRequest:
        common: dict[str, Any] = {"tokens": pb.TokenIds(ids=range(20, 20 + length)), "max_tokens": 40}
        return pb.GenerateRequest(model="embedded", stop=pb.Stop(ignore_eos=True), top_logprobs=0, **common, **fields)

    harness.run(pb.GetOrLoadRequest(model=draft))
    plain = harness.run(asked(48, speculation=pb.SPECULATION_OFF))
    monkeypatch.setattr(gpt2.Model, "__call__", noted)
    answer = harness.run(asked(48, draft_model=draft))
    assert answer.content == plain.content
    assert answer.finished.usage.draft_tokens > 0
    assert 60 < max(ends) <= 64
    failure = harness.run(asked(65, draft_model=draft)).failure
    assert (failure.reason, failure.field) == ("INVALID_ARGUMENT", "draft_model")
    assert "64 positions" in failure.message
    harness.settle()
