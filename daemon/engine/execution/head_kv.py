"""
What a model's MTP head knows of a sequence: the hidden states that it has not read yet, and the KV of those it has.

    tokens            a b c d e          e is pending, the model has not seen it
    hidden states     A B C D            of the model's passes
    the head reads    (A b) (B c) (C d)  as soon as the token after each state is known
    and guesses       (D e) -> f         then its own state for D goes on: (f's, f) -> g

What it reads is right for good: a state counts only once its token is accepted (`keep`). Entries of its KV behind a
guess are taken out at once, as the model's own states take their place.

The beginning of a prompt that was reused leaves a gap. The head then begins anew behind it: the positions of its
attention are relative, and its guesses may only be worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx

from daemon.cache.mlx.mtp import MtpHead
from daemon.kv.mlx.adapters import ADAPTERS
from daemon.kv.mlx.adapters.cache_list import leaves
from daemon.kv.mlx.guess_passes import Undo

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
    _unread: list[mx.array] = field(default_factory=list)
    """States that the head has not read, in parts of [1, tokens, width]."""
    _waiting: int = 0
    """Tokens of them."""
    _cache: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._cache = self.head.new_cache()

    def compute(self, start: int, tokens: mx.array, cache: list[Any], *, last: bool = False) -> mx.array:
        """
        Run tokens of the sequence through the model, and note their states.

        Args:
            start: Tokens of the sequence before them.
            tokens: The tokens, shape [1, tokens].
            cache: The model's caches.
            last: Whether to return the logits after the last token alone.

        Returns:
            The model's logits, with the same bits as without a head.
        """
        return compute(None, tokens, cache, [View(self, start)], last=last)

    def note(self, start: int, states: mx.array) -> None:
        """Note the states of tokens, [1, tokens, width], with `start` tokens of the sequence before them."""
        if start > self.end:
            self._forget(self.head.new_cache())
        elif start < self.end:
            states = states[:, self.end - start :]  # tokens that were fed once more have their states
        if states.shape[1]:
            self.end = max(self.end, start) + states.shape[1]
            self._unread.append(states)
            self._waiting += states.shape[1]
        if self._waiting > _MOST_UNREAD:
            if self.reads():
                self._read()
            else:
                self._drop()

    def keep(self, tokens: int) -> None:
        """Forget the states behind the first tokens of the sequence: they were computed for wrong guesses."""
        while self.end > tokens:
            last = self._unread.pop()
            kept = max(0, last.shape[1] - (self.end - tokens))
            self.end -= last.shape[1] - kept
            self._waiting -= last.shape[1] - kept
            if kept:
                self._unread.append(last[:, :kept])

    def guess(self, pending: int, count: int, vocab: int) -> list[int]:
        """
        Guess the tokens after the pending one; waits for the device.

        Args:
            pending: The token after the last state.
            count: How many tokens.
            vocab: Ids that are tokens.
        """
        following = [*self._following(), pending][: self._waiting]
        states, guesses = self._pass(self._together(), following)[:, -1:], list[mx.array]()
        self._forget(self._cache)
        undo = Undo(self._cache, whole=True)
        for index in range(count):
            token = mx.argmax(self.head.output(states)[:, -1, :vocab], axis=-1)
            guesses.append(token)
            if index + 1 < count:
                states = self.head(states, token[None], self._cache)
        found: list[int] = mx.concatenate(guesses).tolist()  # type: ignore[assignment]
        undo.keep(count - 1, 0)
        return found

    def ready(self, pending: int) -> bool:
        """Whether the state of the token before the pending one, at that position, is known and unread."""
        return self.end == pending and self._waiting > 0

    def _forget(self, cache: list[Any], *kept: mx.array) -> None:
        """Go on with a cache, and with these states alone."""
        self._cache, self._unread, self._waiting = cache, list(kept), sum(states.shape[1] for states in kept)

    def _together(self) -> mx.array:
        return self._unread[0] if len(self._unread) == 1 else mx.concatenate(self._unread, axis=1)

    def _following(self) -> list[int]:
        """Return the tokens after each unread state, as far as they are known."""
        first, size = self.end - self._waiting + 1, len(self.prompt)
        return [*self.prompt[first : self.end + 1], *self.generated[max(0, first - size) : max(0, self.end + 1 - size)]]

    def _drop(self) -> None:
        """Forget all states but the last ones, and what was read before them; those of single tokens cost nothing."""
        last = self._unread[-_KEPT:]
        if sum(states.shape[1] for states in last) <= _MOST_UNREAD:
            self._forget(self.head.new_cache(), *last)
            return
        kept = mx.contiguous(self._together()[:, -_KEPT:])
        self._forget(self.head.new_cache(), kept)
        mx.async_eval(kept)

    def _read(self) -> None:
        """Let the head read all states but the last, as far as the tokens after them are known."""
        following = self._following()[: self._waiting - 1]
        if not following:
            return
        unread = self._together()
        self._pass(unread[:, : len(following)], following)
        kept = mx.contiguous(unread[:, len(following) :])
        self._forget(self._cache, kept)
        mx.async_eval([kept, *(cache.state for cache in leaves(self._cache))])

    def _pass(self, states: mx.array, following: list[int]) -> mx.array:
        """Let the head read states for good, with the tokens after them; return its own."""
        read = self.head(states, mx.array([following]), self._cache)
        for cache in leaves(self._cache):
            ADAPTERS[type(cache)].shrink(cache)
        return read


class View(NamedTuple):
    """
    What a head sees of a row of a pass.

    Attributes:
        head: The head's view of the row's sequence; None if it has none.
        start: Tokens of the sequence before the first one that it sees.
        part: Where these tokens are in the row.
    """

    head: HeadKV | None
    start: int
    part: slice = slice(None)


def compute(model: Any, tokens: mx.array, caches: list[Any], views: Sequence[View], *, last: bool = False) -> mx.array:
    """
    Run tokens of sequences through their model, and note the states of those with a head.

    Args:
        model: Called if none has a head.
        tokens: The tokens, shape [rows, tokens].
        caches: The model's caches.
        views: One of each row.
        last: Whether to return the logits after the last token of each row alone, if one has a head.

    Returns:
        What the model returns, with the same bits; with a head, its logits.
    """
    head = next((view.head.head for view in views if view.head is not None), None)
    if head is None:
        return model(tokens, cache=list(caches))  # type: ignore[no-any-return]
    states: mx.array = head.trunk(tokens, list(caches))
    for row, view in enumerate(views):
        if view.head is not None:
            view.head.note(view.start, states[row : row + 1, view.part])
    return head.logits(states[:, -1:] if last else states)
