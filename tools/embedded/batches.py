"""Turns training documents into token arrays with a loss weight for each target."""

import random
from collections.abc import Sequence
from functools import lru_cache

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from tools.embedded.lessons import Kind, Role
from tools.embedded.tokenizer import END_OF_TEXT

WEIGHTS: dict[Role, float] = {Role.IGNORED: 0.0, Role.TEXT: 0.03, Role.REPLY: 0.3, Role.RECALLED: 1.0}


class Batcher:
    """Builds batches of documents; each batch depends only on the generator it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._padding = tokenizer.encode(END_OF_TEXT).ids[0]
        self._encode = lru_cache(maxsize=200_000)(lambda text: tuple(tokenizer.encode(text).ids))

    def batch(
        self, rng: random.Random, kinds: Sequence[Kind], size: int, length: int, most_facts: int
    ) -> tuple[mx.array, mx.array]:
        """Return tokens of shape (size, length + 1) and the weights of tokens 1..length as targets."""
        rows = [self._row(rng, rng.choice(kinds), length, most_facts) for _ in range(size)]
        tokens = np.array([row[0] for row in rows], dtype=np.int32)
        weights = np.array([row[1] for row in rows], dtype=np.float32)
        return mx.array(tokens), mx.array(weights[:, 1:])

    def _row(self, rng: random.Random, kind: Kind, length: int, most_facts: int) -> tuple[list[int], list[float]]:
        """Return one document cut or padded to `length + 1` tokens, and the weight of each token."""
        tokens: list[int] = []
        weights: list[float] = []
        for piece in kind(rng, length, most_facts):
            ids = self._encode(piece.text)
            tokens += ids
            weights += [WEIGHTS[piece.role]] * len(ids)
            if len(tokens) > length:
                break
        missing = max(0, length + 1 - len(tokens))
        tokens += [self._padding] * missing
        weights += [0.0] * missing
        return tokens[: length + 1], weights[: length + 1]
