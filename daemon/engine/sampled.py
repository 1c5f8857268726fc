"""Sampled tokens: what a step chose, on the device until somebody reads it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from daemon.errors import SidecarError


class Draw:
    """
    Tokens that were sampled in one go, one for each row of logits.

    Args:
        tokens: Their ids, shape [rows].
        peaks: The largest logit of each row, shape [rows]. Where one is no number, neither is this.
    """

    def __init__(self, tokens: mx.array, peaks: mx.array) -> None:
        self.tokens = tokens
        self.peaks = peaks
        self._read: list[tuple[int, bool]] | None = None

    def read(self, row: int) -> tuple[int, bool]:
        """Return a row's token, and whether its logits were numbers; waits for the device."""
        if self._read is None:
            mx.eval(self.tokens, self.peaks)
            tokens, peaks = cast("list[int]", self.tokens.tolist()), cast("list[float]", self.peaks.tolist())
            self._read = [(token, math.isfinite(peak)) for token, peak in zip(tokens, peaks, strict=True)]
        return self._read[row]


@dataclass(frozen=True, slots=True)
class Sampled:
    """
    One row's token.

    Attributes:
        draw: With what it was sampled.
        row: Which row of that it is.
        logprobs: Log-probabilities of the model, shape [vocab]; None if nobody asked.
        refusal: Why there is no such token; None if there is one.
    """

    draw: Draw
    row: int = 0
    logprobs: mx.array | None = None
    refusal: SidecarError | None = None

    @property
    def token(self) -> mx.array:
        """Its id, shape [1]."""
        return self.draw.tokens[self.row : self.row + 1]

    @property
    def id(self) -> int:
        """Its id; waits for the device."""
        return self.draw.read(self.row)[0]

    @property
    def finite(self) -> bool:
        """Whether the logits were numbers; waits for the device."""
        return self.draw.read(self.row)[1]


def arrays(sampled: Iterable[Sampled]) -> list[mx.array]:
    """Return what must be evaluated of some tokens."""
    tokens = list(sampled)
    draws = dict.fromkeys(token.draw for token in tokens)
    logprobs = [token.logprobs for token in tokens if token.logprobs is not None]
    return [array for draw in draws for array in (draw.tokens, draw.peaks)] + logprobs


def ids(sampled: Sequence[Sampled]) -> mx.array:
    """Return the ids of several tokens, shape [tokens]; as they are if they are all that was sampled in one go."""
    draw = sampled[0].draw
    alike = all(one.draw is draw and one.row == index for index, one in enumerate(sampled))
    if alike and draw.tokens.shape[0] == len(sampled):
        return draw.tokens
    return mx.concatenate([one.token for one in sampled])
