"""Embed: vectors equal those of the hidden states of the same model run alone, whatever is shared, reused or beside."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load

from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import INSTRUCTION, embedding_model
from tests.unit.engine.embed_calls import CLOSE, WORDS, Vectors, embed
from tests.unit.engine.harness import Answer, Harness, generate


def texts(count: int, seed: int = 3, most: int = 120) -> list[str]:
    """Return texts of 1 to `most` words."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS.split(), k=chance.randint(1, most))) for _ in range(count)]


class Alone:
    """The same model as plain mlx-lm runs it; the rest is numpy."""

    def __init__(self, path: Path) -> None:
        self.model, self.tokenizer = load(str(path))

    def vector(
        self, text: str, mode: str, *, normalize: bool = True, width: int | None = None, skip: int = 0
    ) -> np.ndarray[Any, Any]:
        """Return the vector of a text."""
        states = np.array(self.model.model(mx.array([self.tokenizer.encode(text)]))[0].astype(mx.float32))
        pooled = {"lasttoken": states[-1], "mean_tokens": states[skip:].mean(axis=0), "cls_token": states[0]}[mode]
        pooled = pooled[:width]
        return np.asarray(pooled / np.linalg.norm(pooled) if normalize else pooled)


@pytest.mark.parametrize("mode", ["lasttoken", "mean_tokens", "cls_token"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_equal_numpy_of_the_model_alone(harness: Harness, tmp_path: Path, mode: str, normalize: bool) -> None:
    """For each pooling, with and without normalisation, of texts that are computed alone and in shared passes."""
    path = embedding_model(tmp_path / "model", mode, normalize=normalize)
    alone, wanted = Alone(path), texts(12)
    answer = Vectors(harness, embed(path, wanted))
    expected = [alone.vector(text, mode, normalize=normalize) for text in wanted]
    np.testing.assert_allclose(answer.values, expected, atol=CLOSE * (1 if normalize else 50))
    assert answer.finished.dimensions == 64
    assert answer.finished.normalized == normalize
    assert answer.finished.usage.prompt_tokens == sum(len(alone.tokenizer.encode(text)) for text in wanted)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_next", "gpt_oss", "mamba"])
def test_vectors_of_each_kind_of_cache(harness: Harness, tmp_path: Path, family: str) -> None:
    """Windows and recurrent states too; the second call reuses the instruction where the first has stored it."""
    path = embedding_model(tmp_path / "model", family=family)
    wanted = texts(6, most=60)
    cold = Vectors(harness, embed(path, wanted, prompt_name="query", cache=pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS)))
    first = Vectors(harness, embed(path, wanted, prompt_name="query"))
    second = Vectors(harness, embed(path, wanted, prompt_name="query"))
    model, tokenizer = load(str(path))
    trunk = getattr(model, "model", None) or model.backbone
    for text, vector in zip(wanted, cold.values, strict=True):
        ids = mx.array([tokenizer.encode(INSTRUCTION + text)])
        states = np.array(trunk(ids, cache=make_prompt_cache(model))[0].astype(mx.float32))
        np.testing.assert_allclose(vector, states[-1] / np.linalg.norm(states[-1]), atol=2e-5)
    for warm in (first, second):
        np.testing.assert_allclose(warm.values, cold.values, atol=2e-5)
    assert cold.finished.usage.cached_tokens == 0
    assert second.finished.usage.cached_tokens >= 6 * 16


def test_instruction_is_computed_once(harness: Harness, tmp_path: Path) -> None:
    """Each of 40 texts but the first reuses all of it that they share, and nothing of a text itself is stored."""
    path = embedding_model(tmp_path / "model")
    alone, wanted = Alone(path), texts(40, most=30)
    answer = Vectors(harness, embed(path, wanted, prompt_name="query"))
    most = len(alone.tokenizer.encode(INSTRUCTION))
    shared, rest = divmod(answer.finished.usage.cached_tokens, 39)
    assert not rest
    assert most - 2 <= shared <= most  # its last token may be another before a text
    assert harness.figures.prefix_cache.blocks == -(-shared // 16)
    expected = [alone.vector(INSTRUCTION + text, "lasttoken") for text in wanted]
    np.testing.assert_allclose(answer.values, expected, atol=CLOSE)


def test_single_texts_share_their_instruction(harness: Harness, tmp_path: Path) -> None:
    """A text alone in its call stores the instruction for the next call."""
    path = embedding_model(tmp_path / "model", default_prompt_name="query")
    first, second = (Vectors(harness, embed(path, [text])).finished.usage for text in ("one ship", "two birds"))
    assert first.cached_tokens == 0
    assert second.cached_tokens >= 16


def test_mean_without_instruction_reuses_it(harness: Harness, tmp_path: Path) -> None:
    """Where `include_prompt` is false, its tokens are left out of the mean, and so can be reused."""
    path = embedding_model(tmp_path / "model", "mean_tokens", pooling={"include_prompt": False})
    alone, wanted = Alone(path), texts(8, most=40)
    skip = len(alone.tokenizer.encode(INSTRUCTION))
    expected = [alone.vector(INSTRUCTION + text, "mean_tokens", skip=skip) for text in wanted]
    answer = Vectors(harness, embed(path, wanted, prompt_name="query"))
    np.testing.assert_allclose(answer.values, expected, atol=CLOSE)
    assert answer.finished.usage.cached_tokens > 0


def test_mean_with_instruction_reuses_nothing(harness: Harness, tmp_path: Path) -> None:
    """The states of reused tokens are unknown, and the mean needs them."""
    path = embedding_model(tmp_path / "model", "mean_tokens")
    alone, wanted = Alone(path), texts(4, most=20)
    for _ in range(2):
        answer = Vectors(harness, embed(path, wanted, prompt_name="query"))
        expected = [alone.vector(INSTRUCTION + text, "mean_tokens") for text in wanted]
        np.testing.assert_allclose(answer.values, expected, atol=CLOSE)
        assert answer.finished.usage.cached_tokens == 0


def test_dimensions_are_the_first_normalised_anew(harness: Harness, tmp_path: Path) -> None:
    """A Matryoshka vector is the beginning of the whole one."""
    path = embedding_model(tmp_path / "model", truncate_dim=24)
    alone = Alone(path)
    named = Vectors(harness, embed(path, ["a ship"]))
    asked = Vectors(harness, embed(path, ["a ship"], dimensions=10))
    np.testing.assert_allclose(named.values[0], alone.vector("a ship", "lasttoken", width=24), atol=CLOSE)
    np.testing.assert_allclose(asked.values[0], alone.vector("a ship", "lasttoken", width=10), atol=CLOSE)


@pytest.mark.parametrize(
    ("fields", "settings", "field", "words"),
    [
        ({"dimensions": 65}, {}, "dimensions", "has 64 numbers"),
        ({"dimensions": 9}, {"matryoshka_dimensions": [8, 16]}, "dimensions", "has 8, 16"),
        ({"prompt_name": "quiz"}, {}, "prompt_name", "it has document, query"),
        ({"texts": ["a", ""]}, {}, "texts[1]", "is empty"),
        ({"texts": ["a", "b " * 5000]}, {}, "texts[1]", "but the model takes 4096"),
    ],
)
def test_refusals_name_field_and_remedy(
    harness: Harness, tmp_path: Path, fields: dict[str, Any], settings: dict[str, Any], field: str, words: str
) -> None:
    """What only the model can tell is refused after its files were read."""
    path = embedding_model(tmp_path / "model", **settings)
    failure = Vectors(harness, pb.EmbedRequest(**{"model": str(path), "texts": ["a"], **fields})).failure
    assert failure.field == field
    assert words in failure.message


def test_model_that_says_nothing_needs_pooling(harness: Harness) -> None:
    """The embedded model is none for embeddings, so the request has to say how."""
    refused = Vectors(harness, embed("embedded", ["a ship"]))
    assert (refused.failure.reason, refused.failure.field) == ("INVALID_ARGUMENT", "pooling")
    answer = Vectors(harness, embed("embedded", ["a ship"], pooling=pb.POOLING_LAST_TOKEN))
    assert np.linalg.norm(answer.values[0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("modules.json", '[{"type": "a.Transformer"}, {"type": "a.Dense", "path": "2_Dense"}]', "a module Dense"),
        ("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}', "pools by pooling_mode_max_tokens"),
        ("1_Pooling/config.json", "{}", "pools by nothing"),
        ("sentence_bert_config.json", '{"do_lower_case": true}', "makes texts lower-case"),
        ("config.json", '{"is_causal": false}', "attends in both directions"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    harness: Harness, tmp_path: Path, file: str, text: str, words: str
) -> None:
    """A vector that the model's own library would not give is no answer."""
    path = embedding_model(tmp_path / "model")
    before = json.loads((path / file).read_text()) if file == "config.json" else {}
    (path / file).write_text(json.dumps({**before, **json.loads(text)}) if before else text)
    failure = Vectors(harness, embed(path, ["a ship"])).failure
    assert failure.reason == "MODEL_UNSUPPORTED"
    assert words in failure.message


def test_running_stream_goes_on_beside_a_batch(harness: Harness, tmp_path: Path) -> None:
    """Each turn of the engine gives a stream of another model its next token, and its answer is the same as alone."""
    path = embedding_model(tmp_path / "model")
    harness.finish(harness.begin(pb.GetOrLoadRequest(model=str(path))))
    request = generate("The sea is", max_tokens=40, stop=pb.Stop(ignore_eos=True), top_logprobs=1)
    alone = harness.run(request)
    stream = harness.begin(request)
    harness.until(lambda: harness.decoding(stream))
    batch = harness.begin(embed(path, texts(256, most=60)))
    harness.until(lambda: len(harness.of(batch)) > 0)
    before, turns = Answer(harness.of(stream)), 0
    while not harness.of(stream)[-1].generate.HasField("finished"):
        harness.step()
        turns += 1
    assert turns <= len(alone.ids) - len(before.ids) + 2
    assert not harness.of(batch)[-1].embed.HasField("finished")
    assert Answer(harness.of(stream)).content == alone.content
    harness.finish(batch)


def test_cancelled_batch_leaves_nothing(harness: Harness, tmp_path: Path) -> None:
    """Its texts, leases and slots are gone at once; the next call works."""
    path = embedding_model(tmp_path / "model")
    call = harness.begin(embed(path, texts(100)))
    harness.until(lambda: any(event.HasField("embed") for event in harness.of(call)))
    harness.cancel(call)
    harness.settle()
    assert len(Vectors(harness, embed(path, ["a ship"])).values) == 1


def test_reader_that_lags_holds_its_batch(harness: Harness, tmp_path: Path) -> None:
    """No vector is sent while the call is held, and few texts are computed beyond those that were sent."""
    path = embedding_model(tmp_path / "model")
    call = harness.begin(embed(path, texts(200, most=12)))
    harness.until(lambda: any(event.HasField("embed") for event in harness.of(call)))
    harness.engine.handle(ipc.Command(call_id=call, hold=ipc.Hold(held=True)))
    sent = len(harness.of(call))
    for _ in range(5):
        harness.step()
    harness.until(lambda: not harness.engine.busy)
    assert len(harness.of(call)) == sent
    computed = harness.figures.engine.prompt_tokens
    assert computed < 200 * 12 * 3 // 4
    harness.engine.handle(ipc.Command(call_id=call, hold=ipc.Hold(held=False)))
    assert len(harness.finish(call)) == 202  # accepted, 200 vectors, finished
    harness.settle()


def test_256_texts_are_one_call(harness: Harness, tmp_path: Path) -> None:
    """Of mixed length, in order, with the vectors that each has alone."""
    path = embedding_model(tmp_path / "model")
    wanted = texts(256, most=40)
    answer = Vectors(harness, embed(path, wanted))
    alone = Alone(path)
    for index in range(0, 256, 17):
        np.testing.assert_allclose(answer.values[index], alone.vector(wanted[index], "lasttoken"), atol=CLOSE)


@pytest.mark.parametrize("tied", [True, False])
def test_checkpoint_of_a_trunk_alone_is_loaded(harness: Harness, tmp_path: Path, tied: bool) -> None:
    """The original Qwen3-Embedding names its tensors without `model.` and has no head: its trunk alone was saved."""
    path = embedding_model(tmp_path / "model", base={"tie_word_embeddings": tied})
    whole = Vectors(harness, embed(path, ["a ship"])).values
    bare = tmp_path / "bare"
    shutil.copytree(path, bare)
    tensors = mx.load(str(path / "model.safetensors"))
    assert isinstance(tensors, dict)
    names = {name.removeprefix("model."): array for name, array in tensors.items() if not name.startswith("lm_head")}
    mx.save_safetensors(str(bare / "model.safetensors"), names, {"format": "pt"})
    np.testing.assert_array_equal(Vectors(harness, embed(bare, ["a ship"])).values, whole)


@pytest.mark.parametrize("mode", ["lasttoken", "mean_tokens"])
def test_tokenizer_that_ends_each_text(harness: Harness, tmp_path: Path, mode: str) -> None:
    """Its last token is pooled, and is no part of the instruction."""
    path = embedding_model(tmp_path / "model", mode, pooling={"include_prompt": False})
    file = path / "tokenizer.json"
    settings = json.loads(file.read_text())
    end = next(token for token in settings["added_tokens"] if token["content"] == "<|endoftext|>")
    settings["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end["content"], "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {end["content"]: {"id": end["content"], "ids": [end["id"]], "tokens": [end["content"]]}},
    }
    file.write_text(json.dumps(settings))
    alone, wanted = Alone(path), texts(5, most=30)
    assert alone.tokenizer.encode("a ship")[-1] == end["id"]
    skip = len(alone.tokenizer.encode(INSTRUCTION)) - 1
    answer = Vectors(harness, embed(path, wanted, prompt_name="query"))
    expected = [alone.vector(INSTRUCTION + text, mode, skip=skip) for text in wanted]
    np.testing.assert_allclose(answer.values, expected, atol=CLOSE)
    assert answer.finished.usage.cached_tokens >= 4 * 16


def test_hidden_states_that_are_no_numbers_fail_the_call(harness: Harness, tmp_path: Path) -> None:
    """A damaged norm makes every state NaN. The error is that of Generate, and nothing stays stored."""
    path = embedding_model(tmp_path / "model")
    tensors = mx.load(str(path / "model.safetensors"))
    assert isinstance(tensors, dict)
    tensors["model.norm.weight"] = mx.full(tensors["model.norm.weight"].shape, float("nan"))
    mx.save_safetensors(str(path / "model.safetensors"), tensors, {"format": "mlx"})
    answer = Vectors(harness, embed(path, ["a ship", "a bird"], prompt_name="query"))
    assert answer.failure.reason == "NAN_LOGITS"
    assert harness.figures.prefix_cache.blocks == 0


def test_text_that_can_never_fit_is_refused(engine: Callable[..., Harness], tmp_path: Path) -> None:
    """By its KV, before any text is computed."""
    path = embedding_model(tmp_path / "model")
    harness = engine()
    model_bytes = (path / "model.safetensors").stat().st_size
    budget = replace(harness.engine._services.budget, limit=model_bytes + 100_000)
    harness.engine._services = replace(harness.engine._services, budget=budget)
    answer = Vectors(harness, embed(path, ["a ship", "sea " * 1000]))
    assert answer.failure.reason == "REQUEST_EXCEEDS_MEMORY"
    assert len(answer.values) == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lasttoken", "mean_tokens"])
def test_vectors_equal_those_of_sentence_transformers(harness: Harness, tmp_path: Path, mode: str) -> None:
    """The library that the files are made for; where it is installed (it is not among the developers' packages)."""
    library = pytest.importorskip("sentence_transformers")
    path = embedding_model(tmp_path / "model", mode)
    peer = library.SentenceTransformer(str(path), device="cpu")
    wanted = texts(16)
    for name in ("query", "document"):
        ours = Vectors(harness, embed(path, wanted, prompt_name=name)).values
        np.testing.assert_allclose(ours, peer.encode(wanted, prompt_name=name, batch_size=4), atol=1e-5)
    short = Vectors(harness, embed(path, wanted, dimensions=16)).values
    theirs = peer.encode(wanted, truncate_dim=16, normalize_embeddings=True)
    np.testing.assert_allclose(short, theirs, atol=1e-5)


def test_text_with_a_token_id_that_the_model_has_not_is_refused(harness: Harness, tmp_path: Path) -> None:
    """A tokenizer may name more than its model has: MLX would read beyond the embeddings."""
    path = embedding_model(tmp_path / "model", base={"vocab_size": 300})
    wanted = ["Q", WORDS]
    known, unknown = (max(Alone(path).tokenizer.encode(text)) for text in wanted)
    assert known < 300 <= unknown
    failure = Vectors(harness, embed(path, wanted)).failure
    assert (failure.reason, failure.field) == ("INVALID_ARGUMENT", "texts[1]")
    assert not Vectors(harness, embed(path, wanted[:1])).failure.message


def test_all_texts_that_are_too_long_are_named(harness: Harness, tmp_path: Path) -> None:
    """With their tokens, for a program that cuts them: one a call would have all texts tokenised for each."""
    path = embedding_model(tmp_path / "model")
    wanted = ["a ship", "sea " * 5000, "a bird", "sea " * 6000]
    counts = {index: len(Alone(path).tokenizer.encode(wanted[index])) for index in (1, 3)}
    failure = Vectors(harness, embed(path, wanted)).failure
    assert (failure.reason, failure.field) == ("CONTEXT_LENGTH_EXCEEDED", "texts[1]")
    assert failure.metadata["long_texts"] == f"1:{counts[1]} 3:{counts[3]}"
    assert failure.metadata["prompt_tokens"] == str(counts[1])
