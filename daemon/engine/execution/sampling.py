"""Sampling: each request's options and random key, and the tokens drawn for all rows of a batch."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from daemon.engine.structured_output.token_mask import TokenMask
from daemon.shared.errors import SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb

LEAST_TEMPERATURE = 1e-6
"""Anything less is as good as greedy, and its inverse would overflow."""
LARGEST_LOGIT = 1e30


@dataclass(frozen=True, slots=True)
class Params:
    """Sampling options with their defaults filled in; see the proto for units and ranges."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, sampling: pb.Sampling) -> Params:
        """Read the options of a request."""
        names = [name for name in cls.__slots__ if name != "logit_bias" and sampling.HasField(name)]
        given = {name: getattr(sampling, name) for name in names}
        return cls(**given, logit_bias=tuple(sorted(sampling.logit_bias.items())))

    @property
    def penalises(self) -> bool:
        """Whether the history of the request matters."""
        return self.repetition_penalty != 1.0 or bool(self.presence_penalty) or bool(self.frequency_penalty)


class Sampler:
    """
    One request's sampler.

    Its randomness comes from the seed and the number of tokens sampled before, so that neither other requests nor the
    moment change what it draws.

    Args:
        params: Sampling options.
        prompt: Ids of the prompt, for the repetition penalty.
        vocab: Width of the logits.
        logprobs: Whether log-probabilities are wanted.
        constraint: Which tokens may come; None if all may.
    """

    def __init__(
        self,
        params: Params,
        prompt: Sequence[int],
        vocab: int,
        *,
        logprobs: bool,
        constraint: TokenMask | None = None,
    ) -> None:
        self._params = params
        self._constraint = constraint
        self._last: mx.array | None = None
        self._want_logprobs = logprobs
        self._key = mx.random.key(secrets.randbits(64) if params.seed is None else params.seed)
        self._bias = _dense_bias(params, vocab) if params.logit_bias else None
        self._seen = _seen(prompt, vocab) if params.penalises else None
        self._counts = mx.zeros((vocab,), mx.float32) if params.penalises else None

    @property
    def likeliest(self) -> bool:
        """Whether it takes the likeliest token, whatever came before, and tells no more than that."""
        changes = self._bias is not None or self._counts is not None or self._constraint is not None
        return self._params.temperature == 0 and not changes and not self._want_logprobs

    @property
    def constrained(self) -> bool:
        """Whether it has to know a token before it can sample the next."""
        return self._constraint is not None

    def __call__(self, logits: mx.array) -> Sampled:
        """Sample from logits of shape [1, vocab]."""
        logits = logits.astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True) if self._want_logprobs else None
        adjusted = self._adjust(logits)
        refusal = None
        if self._constraint is not None:
            try:
                mask = self._constraint.mask(None if self._last is None else int(self._last.item()))  # type: ignore[arg-type]
                adjusted = mx.where(mask, adjusted, -math.inf)
            except SidecarError as error:
                refusal = error
        self._last = token = self._choose(adjusted)
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
        if params.top_p < 1:
            logprobs = _keep_top_p(logprobs, params.top_p)
        if params.min_p > 0:
            logprobs = _keep_min_p(logprobs, params.min_p)
        if 0 < params.top_k < logprobs.shape[-1]:
            logprobs = _keep_top_k(logprobs, params.top_k)
        self._key, key = mx.random.split(self._key)
        return mx.random.categorical(logprobs * (1 / max(params.temperature, LEAST_TEMPERATURE)), key=key)


def sample(samplers: Sequence[Sampler], logits: mx.array) -> list[Sampled]:
    """
    Sample a token from each row of logits, [rows, vocab]: in one go for all rows that just want the likeliest.

    A step over many rows of a small model would take a tenth longer otherwise.
    """
    together = sum(sampler.likeliest for sampler in samplers) > 1
    if not together:
        return [sampler(logits[row : row + 1]) for row, sampler in enumerate(samplers)]
    likeliest = Draw(mx.argmax(logits, axis=-1), _peaks(logits))
    return [
        Sampled(likeliest, row) if sampler.likeliest else sampler(logits[row : row + 1])
        for row, sampler in enumerate(samplers)
    ]


def _peaks(logits: mx.array) -> mx.array:
    # The maximum of logits with a NaN is one; the sum of exponentials would tell as well, in ten times the time.
    return mx.max(logits, axis=-1).astype(mx.float32)


# mlx-lm has these three under mx.compile, which compiles anew for every value that somebody sends: 0.6 s on the CPU, in
# the middle of everybody's decode step, and the result is kept for ever.


def _keep_top_p(logprobs: mx.array, top_p: float) -> mx.array:
    """Drop what lies below the most likely tokens that sum to `top_p`."""
    ordered = mx.sort(logprobs, axis=-1)
    probabilities = mx.exp(ordered)
    above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    dropped = (above >= top_p * mx.sum(probabilities, axis=-1, keepdims=True)).sum(axis=-1, keepdims=True)
    return _drop_below(logprobs, mx.take_along_axis(ordered, dropped, axis=-1))


def _keep_min_p(logprobs: mx.array, min_p: float) -> mx.array:
    """Drop what is less than `min_p` times as likely as the most likely token."""
    return _drop_below(logprobs, mx.max(logprobs, axis=-1, keepdims=True) + math.log(min_p))


def _keep_top_k(logprobs: mx.array, top_k: int) -> mx.array:
    """Drop all but the `top_k` most likely tokens."""
    rest = mx.argpartition(-logprobs, kth=top_k - 1, axis=-1)[..., top_k:]
    return mx.put_along_axis(logprobs, rest, mx.array(-math.inf, logprobs.dtype), axis=-1)


def _drop_below(logprobs: mx.array, least: mx.array) -> mx.array:
    return mx.where(logprobs < least, -math.inf, logprobs)


def _dense_bias(params: Params, vocab: int) -> mx.array:
    ids, values = zip(*params.logit_bias, strict=True)
    return mx.zeros((vocab,), mx.float32).at[mx.array(ids)].add(mx.array(values, mx.float32))


def _seen(prompt: Sequence[int], vocab: int) -> mx.array:
    return mx.zeros((vocab,), mx.float32).at[mx.array(list(prompt))].maximum(1.0)


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
