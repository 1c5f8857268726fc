"""Texts of single tokens, as they stand beside log-probabilities: leading spaces, bytes, special tokens, long ones."""

from __future__ import annotations

from typing import Any, cast

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from daemon.engine.prompt.chat_templates import Templates
from daemon.engine.prompt.tokenizer import TOKEN_CHARACTERS, Tokenizer

WORDS = ["a", "\u2581dog", "dog", "<0xF0>", "<0x9F>", "\u2581", "</s>", "\u0301", "x" * 1000]
"""A SentencePiece vocabulary: its decoder drops the space of the first token of a text."""


class Wrapper:
    """What a tokenizer needs of mlx-lm's wrapper."""

    eos_token_ids = (6,)

    def __init__(self) -> None:
        fast = Fast(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="a"))
        fast.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        fast.add_special_tokens(["</s>"])
        self._tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast)

    def __len__(self) -> int:
        return len(WORDS)

    def encode(self, text: str, **options: Any) -> list[int]:
        return list(self._tokenizer.encode(text, **options))

    def decode(self, ids: list[int], **options: Any) -> str:
        return str(self._tokenizer.decode(ids, **options))


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (1, " dog"),
        (2, "dog"),
        (3, "\ufffd"),
        (5, " "),
        (6, "</s>"),
        (7, "\u0301"),
        (8, "x" * TOKEN_CHARACTERS),
        (99, ""),
    ],
)
def test_token_text_stands_alone(token: int, text: str) -> None:
    """Twice: the second one is remembered."""
    tokenizer = Tokenizer(Wrapper(), cast("Templates", None))
    assert [tokenizer.text_of(token) for _ in range(2)] == [text, text]


def test_id_beyond_the_vocabulary_has_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits may be wider than it."""
    tokenizer = Tokenizer(Wrapper(), cast("Templates", None))
    monkeypatch.setattr(Wrapper, "decode", lambda _, ids, **__: "a" * len(ids) if max(ids) < 9 else {}[ids[-1]])
    assert (tokenizer.text_of(3), tokenizer.text_of(9)) == ("a", "")


def test_embedded_token_texts_join_to_plain_text(tokenizer: Tokenizer) -> None:
    """Where each token is whole characters."""
    text = "The dog sang in the garden."
    assert "".join(map(tokenizer.text_of, tokenizer.encode(text, special=False))) == text
