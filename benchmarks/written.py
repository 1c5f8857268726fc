"""Texts that repeat themselves much, in part, and little, and models that are made to write them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx
from tokenizers import Tokenizer

from daemon.engine.calls import generate
from daemon.engine.prompt import preparation
from daemon.engine.structured_output.constraint import Drawn

CHANGED = 0.03
"""Share of the words of a file that an edit changes."""


def _edit(seed: str) -> tuple[str, str]:
    """Return a file as the prompt, and the file with a few words changed."""
    source, folder = random.Random(seed), Path(__file__).parent / "workloads"
    text = source.choice(sorted(folder.glob("*.py"))).read_text()
    words = text.split(" ")
    changed = [f"x{source.randrange(100)}" if source.random() < CHANGED else word for word in words]
    return text, " ".join(changed)


def _list(seed: str) -> tuple[str, str]:
    """Return a question, and JSON of a list of objects that share their keys."""
    source = random.Random(seed)
    names = [chr(97 + source.randrange(26)) * source.randint(2, 5) for _ in range(60)]
    items = [{"name": name, "size": source.randrange(9999), "used": source.random() < 0.5} for name in names]
    return "Return the files as JSON.", json.dumps(items, indent=1)


def _prose(seed: str) -> tuple[str, str]:
    """Return a question, and prose."""
    source, folder = random.Random(seed), Path(__file__).parents[1] / "docs" / "adr"
    return "Tell what was decided.", source.choice(sorted(folder.glob("0*.md"))).read_text()


TEXTS = {"a file with a few changes": _edit, "JSON of a list": _list, "prose": _prose}


@dataclass(frozen=True, slots=True)
class Text:
    """
    A kind of text that is written.

    Attributes:
        make: Returns a prompt and an answer of a seed.
        tokenizer: Makes tokens of both.
        tokens: Length of an answer.
        streams: Answers that are written at once, each after a prompt of its own.
    """

    make: Callable[[str], tuple[str, str]]
    tokenizer: Tokenizer
    tokens: int
    streams: int

    def of(self, seed: str) -> list[tuple[list[int], list[int]]]:
        """Return the tokens of each prompt and answer. A file is changed from its beginning on; a longer one is cut."""
        texts = [self.make(f"{seed}/{stream}") for stream in range(self.streams)]
        return [(self._ids(prompt)[: 2 * self.tokens], self._ids(answer)) for prompt, answer in texts]

    def _ids(self, text: str) -> list[int]:
        return [token % 500 for token in self.tokenizer.encode(text).ids]


class Written:
    """
    Lets a model write a given text: random weights write none that repeats itself as texts do.

    Args:
        ids: The tokens of the text.
        vocab: Width of the logits.
    """

    waits = False

    def __init__(self, ids: list[int], vocab: int) -> None:
        self._ids = iter(ids)
        self._all = mx.arange(vocab)

    def mask(self, last: Drawn | None) -> mx.array:
        """Return the mask that only the next token of the text passes. Called once for each token."""
        return self._all == next(self._ids, 0)

    def late_mask(self) -> None:
        """Return None: each token had its mask."""


class Answers:
    """
    Keeps the answers to requests to given texts, one each, in the order in which they begin.

    Args:
        answers: The tokens of the texts.
    """

    def __init__(self, answers: list[list[int]]) -> None:
        self._left = iter(answers)

    def again(self) -> Answers:
        """Return it for another answer to the same prompt: the next text."""
        return self

    def mask(self, vocab: int) -> Written:
        """Return what lets the next text be written, for logits of width `vocab`."""
        return Written(next(self._left), vocab)


@contextmanager
def writing(answers: list[list[int]]) -> Iterator[None]:
    """Let the requests that begin now write these answers, one each."""
    kept = Answers(answers)

    def prepared(*request: Any) -> preparation.PreparedRequest:
        return replace(preparation.prepare_request(*request), constraint=kept)

    with patch.object(generate, "prepare_request", prepared):
        yield
