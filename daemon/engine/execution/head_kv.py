"""
What a model's MTP head knows of a sequence: the hidden states that it has not read yet, and the KV of those it has.

    tokens            a b c d e          e is pending, the model has not seen it
    hidden states     A B C D            of the model's passes
    the head reads    (A b) (B c) (C d)  as soon as the token after each state is known
    and guesses       (D e) -> f         then its own state for D goes on: (f's, f) -> g

What it reads is right for good: a state counts only once its token is accepted (`keep`). Entries of its KV behind a
guess are taken out at once, as the model's own states take their place.

A pass that rows share leaves a gap, and so does the beginning of a prompt if it was reused. The head then begins anew
behind it: the positions of its attention are relative, and its guesses may only be worse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from daemon.cache.mlx.mtp import MtpHead

_MOST_UNREAD = 64
"""States that may wait until a guess needs them."""
_KEPT = 32
"""States that wait of a head that shall not read without guessing."""


@dataclass(slots=True, eq=False)
class HeadKV:
    """
    The view of a head on one sequence.

    Attributes:
        head: The head.
        prompt: Ids of the prompt.
        generated: Tokens of the answer; the sequence appends to it.
        reads: Whether it may read states before a guess needs them; if not, it costs nothing but its guesses, and
            begins anew with the last states when it guesses.
        end: Tokens of the sequence up to the last one with a known state.
    """

    head: MtpHead
    prompt: list[int]
    generated: list[int]
    reads: Callable[[], bool] = lambda: True
    end: int = 0
    _unread: Any = None
    """States that the head has not read, [1, tokens, width]; None if there are none."""
    _cache: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._cache = self.head.new_cache()

    def compute(self, start: int, tokens: mx.array, cache: list[Any], *, last: bool = False) -> mx.array:
        """
        Run tokens of the sequence through the model, and note their states; not those of several rows.

        Args:
            start: Tokens of the sequence before them.
            tokens: The tokens, shape [rows, tokens].
            cache: The model's caches.
            last: Whether to return the logits after the last token alone.

        Returns:
            The model's logits, with the same bits as without a head.
        """
        states = self.head.trunk(tokens, cache)
        if tokens.shape[0] == 1:
            self._note(start, states)
        if self._waiting > _MOST_UNREAD:
            if self.reads():
                self._read()
            else:
                self._drop()
        return self.head.output(states[:, -1:] if last else states)

    def keep(self, tokens: int) -> None:
        """Forget the states behind the first tokens of the sequence: they were computed for wrong guesses."""
        if self.end > tokens:
            self._unread = self._unread[:, : tokens - self.end]
            self.end = tokens

    def guess(self, pending: int, count: int, vocab: int) -> list[int]:
        """
        Guess the tokens after the pending one; waits for the device.

        Args:
            pending: The token after the last state.
            count: How many tokens.
            vocab: Ids that are tokens.
        """
        following = [*self._following(), pending][: self._waiting]
        states = self.head(self._unread, mx.array([following]), self._cache)[:, -1:]
        self._unread, guesses = None, []
        for index in range(count):
            token = mx.argmax(self.head.output(states)[:, -1, :vocab], axis=-1)
            guesses.append(token)
            if index + 1 < count:
                states = self.head(states, token[None], self._cache)
        found: list[int] = mx.concatenate(guesses).tolist()  # type: ignore[assignment]
        for cache in self._cache:
            cache.trim(count - 1)
        return found

    def ready(self, pending: int) -> bool:
        """Whether the state of the token before the pending one, at that position, is known and unread."""
        return self.end == pending and self._waiting > 0

    @property
    def _waiting(self) -> int:
        return 0 if self._unread is None else int(self._unread.shape[1])

    def _note(self, start: int, states: mx.array) -> None:
        if start > self.end:
            self._cache, self._unread = self.head.new_cache(), None
        else:
            states = states[:, self.end - start :]  # tokens that were fed once more have their states
        if states.shape[1]:
            self.end = max(self.end, start) + states.shape[1]
            self._unread = states if self._unread is None else mx.concatenate([self._unread, states], axis=1)

    def _following(self) -> list[int]:
        """Return the tokens after each unread state, as far as they are known."""
        first, size = self.end - self._waiting + 1, len(self.prompt)
        return [*self.prompt[first : self.end + 1], *self.generated[max(0, first - size) : max(0, self.end + 1 - size)]]

    def _drop(self) -> None:
        """Forget all states but the last ones, and what was read before them."""
        self._cache, self._unread = self.head.new_cache(), mx.contiguous(self._unread[:, -_KEPT:])
        mx.async_eval(self._unread)

    def _read(self) -> None:
        """Let the head read all states but the last, as far as the tokens after them are known."""
        following = self._following()[: self._waiting - 1]
        if not following:
            return
        self.head(self._unread[:, : len(following)], mx.array([following]), self._cache)
        self._unread = mx.contiguous(self._unread[:, len(following) :])
        mx.async_eval([self._unread, *(cache.state for cache in self._cache)])
