"""
Guessing ahead: a source guesses the next tokens of a sequence, and its model checks all of them in one forward pass.

One step, with three guesses of which one is right:

    tokens known     ... a b                      b is pending: the model has not seen it
    guesses                c d e
    model is fed         b c d e                  and the request's sampler draws a token after each of them:
    samples                c x                    c was guessed; x was not, and all behind it is void
    result                 c x                    two tokens of one pass; x is pending now
    caches           d and e are taken out again

A layer with a recurrent state cannot take out a part of a pass: it goes back to its state before the pass, and so do
all layers. Then b and c are `unfed`: the next pass is fed them once more, before its own tokens.

A pass with guesses never crosses the end of a block in models that resume from checkpoints or windows, because what is
there at the end of a block is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import mlx.core as mx

from daemon.engine.execution.head_kv import HeadKV
from daemon.engine.execution.request import Speculation
from daemon.engine.execution.sampling import Sampled, Sampler, sample_ahead
from daemon.engine.execution.sequence import Sequence
from daemon.engine.scheduling.governor import MOST_GUESSES, Governor, Source
from daemon.engine.scheduling.ngrams import NgramIndex
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx.ahead import Ahead, Undo
from daemon.shared.readings import about_to_wait

_LONG_MATCH = 8
"""Tokens of a match from which it counts as a source of its own, `LONG`: its guesses are better."""
LONG = "long"
_MOST_OF_HEAD = 4
"""Tokens that a head guesses at most: it was trained for one, and goes on from its own states."""
_ON_REQUEST = 4
"""Tokens guessed where the request asks for guesses and nothing is known of their gain."""
_INDEXED = 1 << 16
"""Tokens of a prompt, its last ones, that are indexed."""
_INDEXED_AT_ONCE = 1024
"""Tokens indexed in a step: half a millisecond."""


class Guesses(Protocol):
    """A source of guesses for one sequence."""

    def guess(self, pending: Callable[[], int], most: int, *, known: bool) -> tuple[Source, list[int]]:
        """
        Guess the tokens after the pending one.

        Args:
            pending: Returns the pending token; may wait for the device.
            most: Most tokens to guess.
            known: Whether the pending token is known to the host, as the last of the sequence's tokens.

        Returns:
            What they are guessed from, and the guesses, which may be none.
        """

    def checked(self, right: int) -> None:
        """Learn how many of the last guesses were right."""


class Guesser:
    """
    What guesses for one sequence, and checks its guesses.

    Exact: a guess is right only if the request's sampler, with its own random key, history and mask, draws the same
    token from the model's logits. Guesses change the speed of an answer and never its tokens.

    Args:
        sequence: The request.
        source: Guesses its tokens.
        governor: Decides how many, and is told what they bring.

    Attributes:
        apart: Whether the sequence shares no pass with others, so that it can always guess.
        unfed: Tokens before the pending one that the caches lack.
    """

    def __init__(self, sequence: Sequence, source: Guesses, governor: Governor) -> None:
        self.apart = sequence.draft is not None
        self.unfed: list[int] = []
        self._sequence = sequence
        self._source = source
        self._governor = governor
        self._last: tuple[Source, int, int] | None = None
        """What the last step guessed: its source, how many tokens, and how many were right; None if it did not."""
        self._usual = False
        """Whether the step before the last did not guess either, so that the time of the last is that of a token."""

    def guess(self, pending: Callable[[], int], left: int, *, known: bool) -> list[int]:
        """
        Guess the tokens after the pending one.

        Args:
            pending: Returns the pending token; may wait for the device.
            left: Tokens that the sequence may still have behind the pending one.
            known: Whether the pending token is the last of the sequence's tokens.
        """
        most = min(left - 1, self._room()) if self.apart or self._sequence.kv.root is None else 0
        self._usual, self._last = self._last is None, None
        if most < 1:
            return []
        label, guesses = self._source.guess(pending, most, known=known)
        if guesses:
            self._last = label, len(guesses), 0
        return guesses

    def check(
        self, pending: int, guesses: list[int], sampler: Sampler, caches: list[Any]
    ) -> tuple[list[Sampled], Sampler]:
        """
        Feed the pending token and guesses in one pass, and keep what is right.

        Returns:
            The tokens after the pending one, evaluated: the guesses that were right, and one more, which is pending
            now; and the sampler of the token after them.
        """
        sequence, before = self._sequence, len(self.unfed)
        fed = [*self.unfed, pending, *guesses]
        undo = Undo(caches)
        logits = sequence.module(sequence.kv)(mx.array([fed]), cache=list(caches))[0, before:]
        about_to_wait()
        sampled, sampler = sample_ahead(sampler, logits, guesses, sequence.request.stop_ids)
        right = len(sampled) - 1
        known = before + 1 + right
        kept = undo.keep(len(fed), known)
        self.unfed = fed[kept:known]
        if sequence.head is not None:
            sequence.head.keep(sequence.kv.held + known)
        sequence.kv.advanced(kept, caches)
        self._source.checked(right)
        assert self._last is not None
        label, count, _ = self._last
        self._last = label, count, right
        guessed, accepted = sequence.guesses.get(label.kind, (0, 0))
        sequence.guesses[label.kind] = guessed + count, accepted + right
        return sampled, sampler

    def measured(self, seconds: float | None, tokens: int) -> None:
        """
        Take the time of a step in which nothing else decoded.

        Args:
            seconds: How long it took; None if others decoded as well.
            tokens: Tokens that it brought.
        """
        if self._last is not None:
            label, guessed, right = self._last
            if seconds is None:
                self._governor.counted(label, guessed, right)
            else:
                self._governor.guessed(label, seconds, guessed, right, tokens)
        elif seconds is not None and tokens == 1 and self._usual:
            self._governor.plain(seconds)

    def _room(self) -> int:
        """Return how many guesses a pass may have so that what is stored of the sequence stays whole and exact."""
        kv, layout = self._sequence.kv, self._sequence.loaded.layout
        fed = len(self.unfed) + 1
        if layout.parts.resumes_anywhere:
            return BLOCK_TOKENS
        room = BLOCK_TOKENS - kv.held % BLOCK_TOKENS - fed
        exact = self._sequence.loaded.ahead is Ahead.EXACT
        windows = [group.window for group in layout.parts.groups if group.window is not None]
        if exact and windows and self._sequence.request.speculation is Speculation.AUTO:
            room = min(room, min(windows) - kv.held - fed)
        return room


class NgramGuesses:
    """
    Guesses that a sequence goes on as it did before, after the same tokens.

    Args:
        sequence: The request.
        governor: Decides how many tokens to guess, unless the request asks for guesses in any case.
    """

    def __init__(self, sequence: Sequence, governor: Governor) -> None:
        self._sequence = sequence
        self._governor = governor
        self._index = NgramIndex()
        self._read = max(0, len(sequence.prompt) - _INDEXED)
        """Tokens of the sequence that are in the index, or are left out of it."""
        self._always = sequence.request.speculation is Speculation.NGRAM

    def guess(self, pending: Callable[[], int], most: int, *, known: bool) -> tuple[Source, list[int]]:
        """
        Guess what followed the last match.

        A token that the device still computes is waited for only if a match before it tells which one it may be.
        """
        label = Source(Speculation.NGRAM)
        if not self._follow():
            return label, []
        length, after = self._index.match()
        label = Source(Speculation.NGRAM, LONG if length >= _LONG_MATCH else "short")
        count = self._count(label, min(most, MOST_GUESSES)) if length else 0
        if known or not count:
            return label, self._index.following(after, count) if count else []
        first, *guesses = self._index.following(after, count + 1)
        stops = first in self._sequence.request.stop_ids  # what is fed behind it could not be resumed after it
        return label, guesses if pending() == first and not stops else []

    def checked(self, right: int) -> None:
        """Nothing has to be taken back: the index follows the tokens of the sequence."""

    def _count(self, label: Source, most: int) -> int:
        return self._governor.count(label, most) or (min(most, _ON_REQUEST) if self._always else 0)

    def _follow(self) -> bool:
        """Index tokens, and return whether all are."""
        prompt, generated = self._sequence.prompt, self._sequence.generated
        end = min(len(prompt) + len(generated), self._read + _INDEXED_AT_ONCE)
        for place in range(self._read, end):
            self._index.add(prompt[place] if place < len(prompt) else generated[place - len(prompt)])
        self._read = end
        return end == len(prompt) + len(generated)


class DraftGuesses:
    """
    Guesses of a smaller model, which continues greedily.

    It is fed what it has not seen, and all of its guesses but the last. What was wrong is taken out of its cache again;
    if a layer keeps a state or a window, all guesses are, and the right ones are fed again.

    Args:
        sequence: The request, with a draft model.
    """

    def __init__(self, sequence: Sequence) -> None:
        assert sequence.draft is not None
        self._sequence = sequence
        self._draft = sequence.draft
        self._undo: Undo | None = None
        self._fed = 0
        """Guesses that it was fed."""

    def guess(self, pending: Callable[[], int], most: int, *, known: bool) -> tuple[Source, list[int]]:
        """Let the draft model continue."""
        kv, sequence = self._draft.kv, self._sequence
        assert kv.cache is not None
        start = len(sequence.prompt)
        unseen = [*sequence.prompt[kv.held :], *sequence.generated[max(0, kv.held - start) :]]
        unseen += [] if known else [pending()]
        count = min(self._draft.count, most)
        tokens, guesses = mx.array(unseen), []
        for index in range(count):
            logits = kv.loaded.model(tokens[None], cache=kv.cache)[:, -1, : sequence.loaded.vocab_size]
            tokens = mx.argmax(logits, axis=-1)
            guesses.append(tokens)
            if not index:
                kv.advanced(len(unseen), kv.cache)
                self._undo = Undo(kv.cache, whole=True)
        self._fed = count - 1
        return Source(Speculation.DRAFT), mx.concatenate(guesses).tolist()  # type: ignore[return-value]

    def checked(self, right: int) -> None:
        """Take wrong guesses out of the draft model's cache."""
        kv, fed = self._draft.kv, self._fed
        kept = min(right, fed)
        assert self._undo is not None
        if kept < fed and not kv.loaded.layout.parts.resumes_anywhere:
            kept = 0
        if kept < fed:
            self._undo.keep(fed, kept)
        kv.held += kept
        self._undo = None


class HeadGuesses:
    """
    Guesses of the model's own MTP head; where it has none to make, or n-grams have a long match, those of n-grams.

    Args:
        sequence: The request, with a view of the head.
        governor: Decides how many tokens to guess, unless the request asks for the head's.
    """

    def __init__(self, sequence: Sequence, governor: Governor) -> None:
        self._sequence = sequence
        self._governor = governor
        self._always = sequence.request.speculation is Speculation.MTP
        self._ngrams = None if self._always else NgramGuesses(sequence, governor)

    def guess(self, pending: Callable[[], int], most: int, *, known: bool) -> tuple[Source, list[int]]:
        """Guess from a long match; else let the head guess, as far as it has seen all tokens but the pending one."""
        label, guesses = Source(Speculation.NGRAM), list[int]()
        if self._ngrams is not None:
            label, guesses = self._ngrams.guess(pending, most, known=known)
        if guesses and label.quality == LONG:
            return label, guesses
        own = Source(Speculation.MTP)
        found = self._of_head(own, pending, most, known=known)
        return (own, found) if found else (label, guesses)

    def checked(self, right: int) -> None:
        """Nothing has to be taken back: the head has done so, and gets the states of accepted tokens."""

    def _of_head(self, label: Source, pending: Callable[[], int], most: int, *, known: bool) -> list[int]:
        sequence, head = self._sequence, self._sequence.head
        most = min(most, _MOST_OF_HEAD)
        count = self._governor.count(label, most) or (min(most, _ON_REQUEST) if self._always else 0)
        if head is None or not count or not head.ready(len(sequence.prompt) + len(sequence.generated) - known):
            return []
        token = pending()
        return [] if token in sequence.request.stop_ids else head.guess(token, count, sequence.loaded.vocab_size)


def head_of(sequence: Sequence) -> HeadKV | None:
    """Return the view of its model's MTP head on a sequence that has begun nothing; None if that shall not guess."""
    speculation, loaded = sequence.request.speculation, sequence.loaded
    exact = loaded.ahead in (Ahead.EXACT, Ahead.SHARED)
    wanted = speculation is Speculation.MTP or (speculation is Speculation.AUTO and exact)
    if not wanted or isinstance(loaded.mtp, str) or sequence.samples or sequence.draft is not None:
        return None
    return HeadKV(loaded.mtp, sequence.prompt, sequence.generated)


def guesser_of(sequence: Sequence, governor: Governor) -> Guesser | None:
    """Return what guesses for a sequence, by what its request asks for and what its model can; None if nothing."""
    speculation, ahead = sequence.request.speculation, sequence.loaded.ahead
    if sequence.draft is not None:
        return Guesser(sequence, DraftGuesses(sequence), governor)
    exact = ahead in (Ahead.EXACT, Ahead.SHARED)
    if sequence.head is not None:
        return Guesser(sequence, HeadGuesses(sequence, governor), governor)
    if speculation is Speculation.NGRAM or (speculation is Speculation.AUTO and exact):
        return Guesser(sequence, NgramGuesses(sequence, governor), governor)
    return None
