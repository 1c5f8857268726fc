"""
Chat templates and tokenizers of real models, as packages of the registries carry them.

`make corpus` runs all of it and fetches the packages once; what cannot be fetched is skipped and says why. `make test`
runs what is in this repository.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from daemon.cache.resolver import EMBEDDED_PATH
from daemon.engine.prompt.tokenizer import Tokenizer
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.corpus import families
from tests.corpus.checkpoints import loaded, with_template, with_tokenizer
from tests.corpus.packages import LENML, LLAMA_CPP, MISTRAL_COMMON, members
from tests.corpus.rendering import RecordedTemplates, lost, rendered
from tests.corpus.streams import mistakes
from tests.corpus.texts import HAND_MADE, random_ids, random_texts
from tests.corpus.vocabularies import of_gguf, of_sentencepiece, of_tekken

VOCABULARIES = (
    "aquila", "baichuan", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "gpt-neox",
    "llama-bpe", "llama-spm", "nomic-bert-moe", "phi-3", "qwen2", "refact", "starcoder",
)  # fmt: skip
"""Vocabularies in LLAMA_CPP; those left out are equal to one of these, or belong to no model that writes text."""
SENTENCEPIECE = (
    "tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3", "mistral_instruct_tokenizer_241114.model.v7",
)  # fmt: skip
TEKKEN = ("tekken_240718", "tekken_240911")
TEXTS, IDS, SEED = 2000, 500, 20261126


@pytest.mark.parametrize("file", families.SMALL, ids=lambda file: file.stem)
def test_small_templates_render_as_the_library_does(folder: Path, templates: RecordedTemplates, file: Path) -> None:
    """Each of the ten conversations, and none loses anything that is not known to be lost."""
    check_template(folder, templates, file)


def test_embedded_template_renders_as_the_library_does(folder: Path, templates: RecordedTemplates) -> None:
    """It is small, and knows no tools."""
    texts = rendered(with_template(folder, (EMBEDDED_PATH / "chat_template.jinja").read_text(), templates), templates)
    assert texts["unicode"]
    assert texts["long"]


def test_embedded_tokenizer_streams_what_it_decodes(templates: RecordedTemplates) -> None:
    """The same texts as for the others, but fewer."""
    assert streaming_mistakes(loaded(EMBEDDED_PATH, templates), texts=200, ids=100) == []


def test_a_wrong_stream_is_noticed(monkeypatch: pytest.MonkeyPatch, templates: RecordedTemplates) -> None:
    """A check that finds nothing anywhere would prove nothing."""
    monkeypatch.setattr("tests.corpus.streams.streamed", lambda tokenizer, ids: ["x"])
    assert len(streaming_mistakes(loaded(EMBEDDED_PATH, templates), texts=1, ids=1)) > len(HAND_MADE)


@pytest.mark.slow
@pytest.mark.parametrize("name", families.TEMPLATES)
def test_templates_render_as_the_library_does(folder: Path, templates: RecordedTemplates, name: str) -> None:
    """With the embedded model's tokenizer."""
    check_template(folder, templates, members(LLAMA_CPP, "models/templates") / f"{name}.jinja")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepseek_v3", "gemma3", "llama3_1", "qwen3"])
def test_checkpoints_render_as_the_library_does(folder: Path, templates: RecordedTemplates, name: str) -> None:
    """Whole tokenizers, whose templates are in tokenizer_config.json."""
    files = {file.name: file.read_bytes() for file in members(LENML[name], "models").iterdir()}
    check_known(rendered(with_tokenizer(folder, dict(files), templates), templates), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepseek_v3", "gemma3", "llama3_1", "qwen3"])
def test_checkpoints_encode_conversations_in_segments(folder: Path, templates: RecordedTemplates, name: str) -> None:
    """With random texts between their marks too, the ids and places are those of the whole text."""
    files = {file.name: file.read_bytes() for file in members(LENML[name], "models").iterdir()}
    tokenizer = with_tokenizer(folder, dict(files), templates)
    assert check_segments(tokenizer, rendered(tokenizer, templates)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", families.TEMPLATES)
def test_templates_cut_conversations_at_their_marks(folder: Path, templates: RecordedTemplates, name: str) -> None:
    """With the embedded model's tokenizer, which has their marks; a template without any cuts nothing."""
    tokenizer = with_template(folder, (members(LLAMA_CPP, "models/templates") / f"{name}.jinja").read_text(), templates)
    check_segments(tokenizer, rendered(tokenizer, templates))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LENML])
def test_tokenizers_stream_what_they_decode(folder: Path, templates: RecordedTemplates, name: str) -> None:
    """As the packages have them."""
    files = {file.name: file.read_bytes() for file in members(LENML[name], "models").iterdir()}
    assert streaming_mistakes(with_tokenizer(folder, dict(files), templates)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [*VOCABULARIES])
def test_vocabularies_stream_what_they_decode(folder: Path, templates: RecordedTemplates, name: str) -> None:
    """Byte-level, SentencePiece with byte fallback, Metaspace, and Gemma's."""
    file = members(LLAMA_CPP, "vendor/llama.cpp/models") / f"ggml-vocab-{name}.gguf"
    assert streaming_mistakes(with_tokenizer(folder, of_gguf(file), templates)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", TEKKEN)
def test_tekken_streams_what_it_decodes(folder: Path, templates: RecordedTemplates, name: str) -> None:
    """Mistral's byte-level vocabularies."""
    file = members(MISTRAL_COMMON, "mistral_common/data") / f"{name}.json"
    assert streaming_mistakes(with_tokenizer(folder, of_tekken(file), templates)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_sentencepiece_models_stream_what_they_decode(folder: Path, templates: RecordedTemplates, name: str) -> None:
    """Checkpoints that have tokenizer.model alone."""
    file = members(MISTRAL_COMMON, "mistral_common/data") / name
    assert streaming_mistakes(with_tokenizer(folder, of_sentencepiece(file), templates)) == []


def check_template(folder: Path, templates: RecordedTemplates, file: Path) -> None:
    """Render a template's conversations, and check them."""
    check_known(rendered(with_template(folder, file.read_text(), templates), templates), file.stem)


def check_known(texts: dict[str, str | None], name: str) -> None:
    """Check that a template refuses and loses no more than is known."""
    assert {conversation for conversation, text in texts.items() if text is None} <= families.refuses(name)
    assert lost(texts) <= families.loses(name)


def check_segments(tokenizer: Tokenizer, texts: dict[str, str | None]) -> int:
    """Check that texts encode as wholes do, and return how many marks cut them."""
    segments = tokenizer._segments
    if segments is None:
        return 0
    chosen, written = Random(SEED), random_texts(SEED, 200)
    mixed = ["".join(chosen.choice([*segments.marks, *written]) for _ in range(40)) for _ in range(50)]
    for text in (*(text for text in texts.values() if text), *mixed):
        (whole,) = tokenizer._encoded([text])
        parts = tokenizer.encode_turns(text, pb.CacheOptions())
        assert parts == whole
        assert [*(parts.starts or ())] == [*(whole.starts or ())]
    return len(segments.marks)


def streaming_mistakes(tokenizer: Tokenizer, texts: int = TEXTS, ids: int = IDS) -> list[str]:
    """Return what is wrong with the streams of texts, of texts that are cut anywhere, and of random ids."""
    written = [*HAND_MADE, *random_texts(SEED, texts)]
    encoded = [tokenizer.encode(text, special=index % 2 == 0) for index, text in enumerate(written)]
    cut = [stream[:end] for stream in encoded[: len(HAND_MADE)] for end in range(1, min(len(stream), 12))]
    return mistakes(tokenizer, [*encoded, *cut, *random_ids(SEED, ids, tokenizer.size)])
