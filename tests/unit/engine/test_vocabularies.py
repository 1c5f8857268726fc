"""Vocabularies: forms work with the text of every kind of tokenizer, or are refused."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
from mlx_lm.tokenizer_utils import NewlineTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from daemon.engine.structured_output.grammar import ResponseFormat, of_response
from daemon.engine.structured_output.matcher import GrammarMatcher, vocabulary
from daemon.shared.errors import SidecarError


def field_and_grammar(wanted: ResponseFormat) -> tuple[str, str]:
    """Return the field of a request that has this form, and its grammar."""
    return wanted.field, of_response(wanted)


def walk(form: GrammarMatcher, size: int, eos: int) -> list[int]:
    """Return ids that keep to a form, chosen at random, up to its end."""
    chosen = random.Random(2)
    ids: list[int] = []
    while True:
        mask = form.allowed()
        token = chosen.choice([one for one in range(size) if mask[one // 8] >> (one % 8) & 1])
        if token == eos:
            return ids
        form.take(token)
        ids.append(token)


CHARACTERS = [chr(code) for code in range(33, 127)]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def fast(model: models.Model, decoder: Any, pre: Any = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer as checkpoints have it; ids 0 and 1 are special, 1 ends."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.decoder = decoder
    if pre is not None:
        tokenizer.pre_tokenizer = pre
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def numbered(words: list[str]) -> dict[str, int]:
    """Number words as a vocabulary does."""
    return {word: number for number, word in enumerate(dict.fromkeys(["<unk>", "</s>", *words]))}


def bytes_in_pairs(pre: Any, *last: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer that falls back to bytes, with spaces as Sentencepiece writes them."""
    words = numbered([*BYTES, "▁", *CHARACTERS, "▁the", "▁{", "true", "\n"])
    model = models.BPE(vocab=words, merges=[], byte_fallback=True, unk_token="<unk>")
    return fast(model, decoders.Sequence([decoders.ByteFallback(), *last]), pre)


def letters_as_bytes() -> PreTrainedTokenizerFast:
    """Return a tokenizer with letters that stand for bytes."""
    words = numbered([*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġthe", "true"])
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return fast(models.BPE(vocab=words, merges=[]), decoders.ByteLevel(), pre)


KNOWN = {
    "bytes as letters": letters_as_bytes,
    "sentencepiece": lambda: bytes_in_pairs(
        pre_tokenizers.Metaspace(), decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    ),
}
UNKNOWN: dict[str, Callable[[], Any]] = {
    "changes text after decoding": lambda: object.__new__(NewlineTokenizer),
    "spaces that the library does not see": lambda: bytes_in_pairs(pre_tokenizers.Metaspace(), decoders.Metaspace()),
    "words": lambda: fast(models.WordLevel(numbered(CHARACTERS), unk_token="<unk>"), decoders.Fuse()),
    "pieces of words": lambda: fast(models.WordPiece(numbered(CHARACTERS), unk_token="<unk>"), decoders.WordPiece()),
    "written in python": lambda: object.__new__(PreTrainedTokenizer),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_grammar_holds_for_every_byte_tokenizer(kind: str) -> None:
    """The text is that which the tokenizer itself decodes."""
    tokenizer = KNOWN[kind]()  # type: ignore[no-untyped-call]
    regex = r"[a-z]{2} the (true|é)\n\{x\}"
    ids = walk(
        GrammarMatcher(
            *field_and_grammar(ResponseFormat("regex", regex)), vocabulary(tokenizer, [1], "response_format")
        ),
        len(tokenizer),
        1,
    )
    assert re.fullmatch(regex, tokenizer.decode(ids))


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (ResponseFormat("regex", "a<think>/\\n"), "a<think>/\n"),
        (ResponseFormat("grammar", 'start: "a<think>"'), "a<think>"),
        (ResponseFormat("json_schema", '{"const": "<think>é"}'), '"<think>é"'),
        (ResponseFormat("json_schema", '{"const": "</s>"}'), '"</s>"'),
    ],
)
def test_grammar_can_write_text_of_an_added_token(form: ResponseFormat, text: str) -> None:
    """The text is written letter by letter. The added token is no text for the form."""
    tokenizer = letters_as_bytes()
    tokenizer.add_tokens(["<think>"])
    ids = walk(
        GrammarMatcher(*field_and_grammar(form), vocabulary(tokenizer, [1], "response_format")), len(tokenizer), 1
    )
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", UNKNOWN)
def test_tokenizer_without_known_bytes_has_no_grammar(kind: str) -> None:
    """Otherwise, the text might not have the form."""
    with pytest.raises(SidecarError, match="tokenizer") as caught:
        vocabulary(UNKNOWN[kind](), [1], "response_format")
    assert caught.value.field == "response_format"
