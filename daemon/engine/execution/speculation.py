"""
Speculative decoding: a draft model guesses the next tokens, and the model checks all of them in one forward pass.

One step, with three guesses of which one is right:

    tokens known     ... a b                      `_last` is b; the model has not seen it
    draft guesses          c d e                  the draft is fed b, c, d: never its own last guess
    model is fed         b c d e                  and samples a token after each of them:
    samples                c x . .                c was guessed; x was not, and all behind it is void
    result                 c x                    two tokens of one pass; x is the new `_last`
    caches           model drops d, e; draft drops d

If all guesses are right, the draft lacks its last guess: `_unseen` is fed to it at the next step.
"""

from __future__ import annotations

from copy import copy

import mlx.core as mx

from daemon.engine.execution.sampling import Sampled, Sampler, arrays
from daemon.engine.execution.sequence import Sequence


class Speculation:
    """
    One sequence that decodes with a draft model, in forward passes of its own.

    Exact: a guess is accepted only if it equals the token that the request's sampler, with its own random key and
    history, draws from the model's logits. The draft changes the speed of the answer and never the answer.

    Args:
        sequence: The request; it and its draft hold their prompt but for the last token.
        sampler: The request's sampler.

    Attributes:
        held: Whether it is paused because its reader lags.
    """

    def __init__(self, sequence: Sequence, sampler: Sampler) -> None:
        assert sequence.draft is not None
        self.sequence = sequence
        self.held = False
        self._draft = sequence.draft
        self._sampler = sampler
        self._last = sequence.prompt[-1]
        self._unseen: list[int] = []

    def step(self) -> list[Sampled]:
        """Return the next tokens, evaluated: the guesses that were right, and one more."""
        sequence = self.sequence
        left = sequence.request.max_tokens - len(sequence.generated)
        guesses = self._guess(min(self._draft.count, left - 1))
        sampled, samplers = self._check(guesses)
        wanted = [int(guess.item()) for guess in guesses]  # type: ignore[arg-type]
        right = 0
        while right < len(wanted) and sampled[right].id == wanted[right]:
            right += 1
        self._keep(wanted, right)
        self._sampler = samplers[right]
        self._last = sampled[right].id
        self._draft.proposed += len(wanted)
        self._draft.accepted += right
        return sampled[: right + 1]

    def _guess(self, count: int) -> list[mx.array]:
        """Let the draft continue greedily; tokens of shape [1], not evaluated."""
        draft, vocab = self._draft.kv, self.sequence.loaded.vocab_size
        if count <= 0:
            self._unseen.append(self._last)
            return []
        tokens = mx.array([*self._unseen, self._last])
        draft.held += len(self._unseen) + count
        self._unseen = []
        guesses: list[mx.array] = []
        for _ in range(count):
            logits = draft.loaded.model(tokens[None], cache=draft.cache)[:, -1, :vocab]
            tokens = mx.argmax(logits, axis=-1)
            guesses.append(tokens)
        return guesses

    def _check(self, guesses: list[mx.array]) -> tuple[list[Sampled], list[Sampler]]:
        """Sample after the last token and after each guess, as if those before it were right."""
        sequence = self.sequence
        tokens = mx.concatenate([mx.array([self._last]), *guesses])
        logits = sequence.loaded.model(tokens[None], cache=sequence.kv.cache)[0]
        sequence.kv.held += len(guesses) + 1
        sampled, samplers = [], []
        for index in range(len(guesses) + 1):
            sampled.append(self._sampler(logits[index : index + 1]))
            samplers.append(copy(self._sampler))
        mx.eval(arrays(sampled), guesses)
        return sampled, samplers

    def _keep(self, guesses: list[int], right: int) -> None:
        """Take wrong guesses out of both caches again. The draft has not seen its own last guess."""
        self.sequence.kv.trim(len(guesses) - right)
        if guesses and right == len(guesses):
            self._unseen = guesses[-1:]
        else:
            self._draft.kv.trim(max(0, len(guesses) - 1 - right))
