"""A draft model changes when tokens come and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import copy_of_embedded, random_model
from tests.unit.engine.harness import Answer, Harness, generate
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
    return str(copy_of_embedded(tmp_path) if same else random_model(tmp_path, "qwen3"))


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED, PENALISED, HOT], ids=["greedy", "seeded", "penalised", "hot"])
@pytest.mark.parametrize("count", [1, 4, 16])
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
    draft = str(copy_of_embedded(tmp_path))

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
    draft = str(copy_of_embedded(tmp_path))
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


def test_incompatible_draft_model_is_refused(harness: Harness, tmp_path: Path, text: str) -> None:
    other = copy_of_embedded(tmp_path, "other-tokens")
    tokenizer = other / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"<|im_end|>"', '"<|end|>"'))
    for draft, told in (
        (str(random_model(tmp_path, "gemma3_text")), "needs models with full attention alone"),
        (str(other), "has another tokenizer than embedded"),
    ):
        failure = harness.run(request(text, draft_model=draft)).failure
        assert (failure.reason, failure.field) == ("INVALID_ARGUMENT", "draft_model")
        assert told in failure.message
    missing = harness.run(request(text, draft_model="/nowhere")).failure
    assert missing.reason == "MODEL_NOT_FOUND"
    loaded = harness.run(request(text, draft_model=str(copy_of_embedded(tmp_path, "cold")), require_loaded=True))
    assert loaded.failure.reason == "MODEL_NOT_CACHED"
    harness.settle()


def test_draft_model_pin_survives_an_engine_restart(harness: Harness, tmp_path: Path, text: str) -> None:
    """As any other model that comes back because somebody asks for it."""
    draft = str(copy_of_embedded(tmp_path))
    harness.engine.handle(ipc.Command(recall=pb.GetOrLoadRequest(model=draft, pin=True)))

    harness.run(request(text, draft_model=draft))

    assert {name: entry.pinned for entry in harness.engine._models.entries() for name in entry.names} == {
        "embedded": False,
        draft: True,
    }


def harness_ids(harness: Harness, text: str) -> list[int]:
    """Return the ids of a text as the engine sees them."""
    tokenizers = harness.engine._services.tokenizers
    source = next(iter(harness.engine._models.entries())).model.source
    return tokenizers.get(source).encode_prompt(text)
