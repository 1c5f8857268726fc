"""Samples the next tokens of a batch from its logits, each row with the options and the random key of its request."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from daemon.engine.execution.request import SamplingParams
from daemon.engine.structured_output.constraint import Constraint
from daemon.shared.errors import SidecarError

LEAST_TEMPERATURE = 1e-6
"""Lower temperatures give the same tokens as greedy sampling, and their inverse would overflow."""
LARGEST_LOGIT = 1e30

LEAST_VECTORS = 2
"""Vectors of the vocabulary's width, 4 bytes a number, that a greedy row takes: logits, in two types."""

_State = tuple[mx.array, mx.array | None, mx.array | None]
"""The random key of a sampler, and the tokens that it penalises."""


class Sampler:
    """
    One request's sampler.

    Its randomness comes from the seed and the number of tokens sampled before, so that neither other requests nor time
    change its tokens.

    Args:
        params: Sampling options.
        prompt: Ids of the prompt, for the repetition penalty.
        vocab: Width of the logits.
        logprobs: Whether log-probabilities are wanted.
        constraint: Decides which tokens may come; None if all may.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        vocab: int,
        *,
        logprobs: bool,
        constraint: Constraint | None = None,
    ) -> None:
        self._params = params
        self._constraint = constraint
        self._last: Sampled | None = None
        self._before: tuple[_State, mx.array, int] | None = None
        """What the last token was sampled from, if it may have to be sampled again: state, logits, and their row."""
        self._want_logprobs = logprobs
        self._key = mx.random.key(secrets.randbits(64) if params.seed is None else params.seed)
        self._bias = _dense_bias(params, vocab) if params.logit_bias else None
        self._seen = _seen(prompt, vocab) if params.penalises else None
        self._counts = mx.zeros((vocab,), mx.float32) if params.penalises else None

    @property
    def likeliest(self) -> bool:
        """Whether it is greedy without penalties, bias, mask or log-probabilities: it takes the argmax of a row."""
        changes = self._bias is not None or self._counts is not None or self.constrained
        return self._params.temperature == 0 and not changes and not self._want_logprobs

    @property
    def copies(self) -> bool:
        """Whether a copy of it can go on for itself: no mask follows its tokens."""
        return self._constraint is None

    @property
    def constrained(self) -> bool:
        """Whether it has to read a token from the device before it can sample the next."""
        return self._constraint is not None and self._constraint.waits

    def __call__(self, logits: mx.array) -> Sampled:
        """Sample from logits of shape [1, vocab]."""
        mask, refusal = None, None
        try:
            mask = self._mask(logits, 0)
        except SidecarError as error:
            refusal = error
        self._last = self._draw(logits, mask, refusal)
        return self._last

    def take(self, logits: mx.array, sampled: Sampled) -> Sampled:
        """Take over the likeliest token of a row of logits, [rows, vocab], which was sampled with other rows."""
        self._mask(logits, sampled.row)
        self._last = sampled
        return sampled

    def again(self) -> Sampled | None:
        """Sample the last token again if it should have had a mask; None if it is as it should be."""
        if self._constraint is None or self._before is None:
            return None
        (state, logits, row), self._before = self._before, None
        mask = self._constraint.late_mask()
        if mask is None:
            return None
        self._key, self._counts, self._seen = state
        self._last = self._draw(logits[row : row + 1], mask)
        return self._last

    def _mask(self, logits: mx.array, row: int) -> mx.array | None:
        """Return the mask of the next token, and remember what a token without one is sampled from."""
        if self._constraint is None:
            return None
        free = not self._constraint.waits and self._last is not None
        self._before = ((self._key, self._counts, self._seen), logits, row) if free else None
        return self._constraint.mask(self._last)

    def _draw(self, logits: mx.array, mask: mx.array | None, refusal: SidecarError | None = None) -> Sampled:
        logits = logits.astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True) if self._want_logprobs else None
        adjusted = self._adjust(logits)
        token = self._choose(adjusted if mask is None else mx.where(mask, adjusted, -math.inf))
        if self._counts is not None and self._seen is not None:
            self._counts = self._counts.at[token].add(1.0)
            self._seen = self._seen.at[token].maximum(1.0)
        return Sampled(Draw(token, _peaks(logits)), 0, None if logprobs is None else logprobs[0], refusal)

    def _adjust(self, logits: mx.array) -> mx.array:
        params = self._params
        if self._bias is not None:
            logits = logits + self._bias
        if self._counts is not None and self._seen is not None:
            raised = mx.minimum(logits / params.repetition_penalty, LARGEST_LOGIT)
            penalised = mx.where(logits > 0, raised, logits * params.repetition_penalty)
            logits = mx.where(self._seen > 0, penalised, logits)
            logits = logits - params.presence_penalty * (self._counts > 0) - params.frequency_penalty * self._counts
        return logits

    def _choose(self, logits: mx.array) -> mx.array:
        params = self._params
        if params.temperature == 0:
            return mx.argmax(logits, axis=-1)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        ids = None
        if 0 < params.top_k < logprobs.shape[-1]:
            # The other options leave the most likely tokens too, and to sort all is most of the time of a draw.
            # In the order of their ids, a draw among these is a draw among all.
            ids = mx.sort(mx.argpartition(-logprobs, kth=params.top_k - 1, axis=-1)[..., : params.top_k], axis=-1)
            logprobs = mx.take_along_axis(logprobs, ids, axis=-1)
        if params.top_p < 1:
            logprobs = _keep_top_p(logprobs, params.top_p, whole=ids is None)
        if params.min_p > 0:
            logprobs = _keep_min_p(logprobs, params.min_p)
        self._key, key = mx.random.split(self._key)
        drawn = mx.random.categorical(logprobs * (1 / max(params.temperature, LEAST_TEMPERATURE)), key=key)
        return drawn if ids is None else mx.take_along_axis(ids, drawn[..., None], axis=-1)[..., 0]


def sample(samplers: Sequence[Sampler], logits: mx.array) -> list[Sampled]:
    """
    Sample a token from each row of logits, [rows, vocab].

    All greedy rows share one argmax: with many rows of a small model, a step takes a tenth less time.
    """
    together = sum(sampler.likeliest for sampler in samplers) > 1
    if not together:
        return [sampler(logits[row : row + 1]) for row, sampler in enumerate(samplers)]
    likeliest = draw_likeliest(logits)
    return [
        sampler.take(logits, Sampled(likeliest, row)) if sampler.likeliest else sampler(logits[row : row + 1])
        for row, sampler in enumerate(samplers)
    ]


def draw_likeliest(logits: mx.array) -> Draw:
    """Return the likeliest token of each row of logits, [rows, vocab]."""
    return Draw(mx.argmax(logits, axis=-1), _peaks(logits))


def sample_guessed(
    sampler: Sampler, logits: mx.array, guesses: Sequence[int], last: Collection[int], likeliest: Draw, first: int = 0
) -> tuple[list[Sampled], Sampler]:
    """
    Sample after a known token and after guesses behind it, up to the first that was not guessed.

    A guess that is sampled from the logits before it is right: what follows is sampled as it would be without guesses.

    Args:
        sampler: The request's sampler.
        logits: Those after the known token and after each guess, and others, shape [tokens, vocab].
        guesses: The guesses.
        last: Tokens that end the answer.
        likeliest: The likeliest tokens of all logits.
        first: Where the logits after the known token are.

    Returns:
        The tokens, evaluated, one more than guesses were right; and the sampler of the token after them.
    """
    if sampler.copies and not sampler.likeliest:
        sampled, samplers = [], []
        for row in range(first, first + len(guesses) + 1):
            sampled.append(sampler(logits[row : row + 1]))
            samplers.append(copy(sampler))
        mx.eval(arrays(sampled))
        right = next(place for place, token in enumerate(sampled) if _ends_guessing(token, guesses, place, last))
        return sampled[: right + 1], samplers[right]
    # A mask follows the tokens, so that no token may be sampled before the one before it is known to be right.
    sampled = []
    for place in range(len(guesses) + 1):
        row = first + place
        shared = Sampled(likeliest, row) if sampler.likeliest else None
        token = sampler(logits[row : row + 1]) if shared is None else sampler.take(logits, shared)
        sampled.append(sampler.again() or token)
        if _ends_guessing(sampled[-1], guesses, place, last):
            break
    return sampled, sampler


def _ends_guessing(token: Sampled, guesses: Sequence[int], row: int, last: Collection[int]) -> bool:
    if row == len(guesses) or token.refusal is not None or not token.finite:
        return True
    return token.id != guesses[row] or token.id in last


def row_vectors(params: SamplingParams, *, masked: bool, scored: bool) -> int:
    """
    Return how many vectors of the vocabulary's width, 4 bytes a number, a row takes at most when it is sampled.

    Args:
        params: Sampling options.
        masked: Whether a mask decides which tokens may come.
        scored: Whether log-probabilities are wanted.
    """
    vectors = LEAST_VECTORS + 2 * masked + 2 * scored + 6 * params.penalises
    vectors += 2 * bool(params.logit_bias)
    if params.temperature > 0:
        # The other options look at all tokens only if `top_k` drops none.
        vectors += 4 + max(5 * (params.top_p < 1) + 2 * (params.min_p > 0), 3 * (params.top_k > 0))
    return vectors


def _peaks(logits: mx.array) -> mx.array:
    # The maximum of a row with a NaN is NaN. A sum of exponentials would show it as well, in ten times the time.
    return mx.max(logits, axis=-1).astype(mx.float32)


# mlx-lm has these two under mx.compile, which compiles once more for each new value of an option: 0.6 s on the CPU,
# within a decode step of all streams, and the compiled function is kept for ever.


def _keep_top_p(logprobs: mx.array, top_p: float, *, whole: bool) -> mx.array:
    """Drop the tokens below the most likely ones that sum to `top_p`; `whole` if there are all tokens."""
    ordered = mx.sort(logprobs, axis=-1)
    probabilities = mx.exp(ordered)
    above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    least = top_p * mx.sum(probabilities, axis=-1, keepdims=True) if whole else top_p  # a long sum is rounded
    dropped = (above >= least).sum(axis=-1, keepdims=True)
    return _drop_below(logprobs, mx.take_along_axis(ordered, dropped, axis=-1))


def _keep_min_p(logprobs: mx.array, min_p: float) -> mx.array:
    """Drop the tokens that are less than `min_p` times as likely as the most likely one."""
    return _drop_below(logprobs, mx.max(logprobs, axis=-1, keepdims=True) + math.log(min_p))


def _drop_below(logprobs: mx.array, least: mx.array) -> mx.array:
    return mx.where(logprobs < least, -math.inf, logprobs)


def _dense_bias(params: SamplingParams, vocab: int) -> mx.array:
    ids, values = zip(*params.logit_bias, strict=True)
    return mx.zeros((vocab,), mx.float32).at[mx.array(ids)].add(mx.array(values, mx.float32))


def _seen(prompt: Sequence[int], vocab: int) -> mx.array:
    return mx.zeros((vocab,), mx.float32).at[mx.array(list(prompt))].maximum(1.0)


class Draw:
    """
    Tokens that were sampled by one operation, one for each row of logits.

    Args:
        tokens: Their ids, shape [rows].
        peaks: The largest logit of each row, shape [rows]; not finite if any logit of the row is no number.
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
        draw: The tokens that it was sampled with.
        row: Its row among them.
        logprobs: Log-probabilities of the model, shape [vocab]; None if the request did not ask for them.
        refusal: The error that the token mask raised instead; None if the token is valid.
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
        """Whether all logits were numbers; waits for the device."""
        return self.draw.read(self.row)[1]


def arrays(sampled: Iterable[Sampled]) -> list[mx.array]:
    """Return the arrays that have to be evaluated before the tokens can be read."""
    tokens = list(sampled)
    draws = dict.fromkeys(token.draw for token in tokens)
    logprobs = [token.logprobs for token in tokens if token.logprobs is not None]
    return [array for draw in draws for array in (draw.tokens, draw.peaks)] + logprobs


def ids(sampled: Sequence[Sampled]) -> mx.array:
    """Return the ids of several tokens, shape [tokens]; without a copy if they are one whole draw, in its order."""
    draw = sampled[0].draw
    alike = all(token.draw is draw and token.row == index for index, token in enumerate(sampled))
    if alike and draw.tokens.shape[0] == len(sampled):
        return draw.tokens
    return mx.concatenate([token.token for token in sampled])
