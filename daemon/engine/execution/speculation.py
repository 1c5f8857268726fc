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
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import mlx.core as mx

from daemon.cache.context_length import MOST, most_positions
from daemon.cache.mlx.loader import LoadedModel
from daemon.engine.execution.draft_guesses import DraftGuesses
from daemon.engine.execution.head_guesses import MOST_OF_HEAD, HeadGuesses
from daemon.engine.execution.head_kv import HeadKV
from daemon.engine.execution.ngram_guesses import NgramGuesses
from daemon.engine.execution.request import Speculation
from daemon.engine.execution.sampling import Sampled, Sampler, draw_likeliest, sample_guessed
from daemon.engine.execution.sequence import Sequence
from daemon.engine.scheduling.governor import MOST_GUESSES, Check, Governor, Source
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx.guess_passes import Exactness, Undo
from daemon.kv.mlx.shared_attention import FEW
from daemon.shared.readings import about_to_wait

_AUTOMATIC = (Exactness.EXACT, Exactness.SHARED)
"""How exact a pass has to be for guesses that no request asks for."""
MOST_FED = 64
"""Most tokens of a pass that rows share, padding included: with more, it is no longer bound by reading weights."""


class GuessSource(Protocol):
    """A source of guesses for one sequence."""

    def ready(self) -> bool:
        """
        Whether there may be guesses with the next pass; `offer` is called only then.

        Called once for each step. It costs next to nothing where there are none: most steps of prose are such.
        """

    def offer(self, most: int) -> tuple[Source, int]:
        """Return from what it may guess, and how many tokens: `most`, or fewer; `guess` is called only if any."""

    def guess(self, pending: Callable[[], int], most: int, *, known: bool) -> tuple[Source, list[int]]:
        """
        Guess the tokens after the pending one.

        Args:
            pending: Returns the pending token; may wait for the device.
            most: Tokens to guess, as many as were offered or fewer; there may be fewer.
            known: Whether the pending token is known to the host, as the last of the sequence's tokens.

        Returns:
            What they are guessed from, and the guesses, which may be none.
        """

    def checked(self, right: int) -> None:
        """Learn how many of the last guesses were right. Called once for guesses, before the next are asked for."""


class Guesser:
    """
    What guesses for one sequence, and checks its guesses.

    Exact: a guess is right only if the request's sampler, with its own random key, history and mask, draws the same
    token from the model's logits. Guesses change the speed of an answer and never its tokens.

    Args:
        sequence: The request.
        source: Guesses its tokens.

    Attributes:
        apart: Whether the sequence shares no pass with others.
        most: Tokens that a pass may check.
        unfed: Tokens before the pending one that the caches lack.
        last: What was guessed last; None if nothing was, or `taken` returned it. No tokens were, if the pending one was
            waited for in vain.
        asked: Whether the request asks for guesses whatever they cost.
    """

    def __init__(self, sequence: Sequence, source: GuessSource) -> None:
        self.apart = sequence.draft is not None
        self.most = most_guesses(sequence)
        self.unfed: list[int] = []
        self._sequence = sequence
        self._source = source
        self.last: Check | None = None
        self.asked = self.apart or sequence.request.speculation is not Speculation.AUTO

    def offer(self, left: int, longest: int = 0) -> tuple[Source, int] | None:
        """
        Return what may be guessed with the next pass, and how many tokens; None if there are none. Waits for nothing.

        Args:
            left: Tokens that the sequence may still have behind the pending one.
            longest: Tokens that the longest row holds of those that share the pass; 0 if it has no others.
        """
        self.last = None
        if left < 2 or not self._source.ready():
            return None
        most = min(left - 1, self._room(longest))
        if most < 1 or (longest and not self._goes_back_beside_others):
            return None
        source, count = self._source.offer(most)
        return (source, count) if count else None

    def guess(self, pending: Callable[[], int], count: int, *, known: bool) -> list[int]:
        """
        Guess the tokens after the pending one.

        Args:
            pending: Returns the pending token; may wait for the device.
            count: Tokens that were offered.
            known: Whether the pending token is the last of the sequence's tokens.
        """
        waited = False

        def awaited() -> int:
            nonlocal waited
            waited = not known
            return pending()

        label, guesses = self._source.guess(awaited, count, known=known)
        self.last = Check(label, len(guesses), 0, self.asked, len(self.unfed)) if guesses or waited else None
        return guesses

    def cut(self, guesses: list[int], width: int) -> list[int]:
        """Keep no more guesses of the last than a pass shall be wide; all that the request asks for."""
        if self.last is None or self.last.asked or not guesses:
            return guesses
        if not width:
            self._source.checked(0)
        self.last = replace(self.last, guessed=min(width, len(guesses)))
        return guesses[:width]

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
        drawn = draw_likeliest(logits)
        sampled, sampler = sample_guessed(sampler, logits, guesses, sequence.request.stop_ids, drawn)
        right = len(sampled) - 1
        known = before + 1 + right
        kept = undo.keep(len(fed), known)
        self.unfed = fed[kept:known]
        if sequence.head is not None:
            sequence.head.keep(sequence.kv.held + known)
        sequence.kv.advanced(kept, caches)
        self.found(right)
        return sampled, sampler

    def taken(self) -> Check | None:
        """Return what the last step guessed and found out, once; None if it did not try to."""
        last, self.last = self.last, None
        return last

    def found(self, right: int) -> None:
        """Take how many of the last guesses were right, if there were any."""
        if self.last is None or not self.last.guessed:
            return
        self._source.checked(right)
        self.last = replace(self.last, accepted=right)
        kind, guesses = self.last.source.kind, self._sequence.guesses
        guessed, accepted = guesses.get(kind, (0, 0))
        guesses[kind] = guessed + self.last.guessed, accepted + right

    @property
    def _goes_back_beside_others(self) -> bool:
        """Whether the sequence can take back its own part of a pass that it shares, exactly enough for its request."""
        level, request = self._sequence.loaded.guess_exactness_together, self._sequence.request
        return level in _AUTOMATIC or (level is not Exactness.WRONG and request.speculation is not Speculation.AUTO)

    def _room(self, longest: int) -> int:
        """Return how many guesses a pass may have so that what is stored of the sequence stays whole and exact."""
        kv, layout = self._sequence.kv, self._sequence.loaded.layout
        fed = len(self.unfed) + 1
        # A reader of a shared prefix attends in parts as long as a pass has few tokens, with the bits of single ones.
        few = BLOCK_TOKENS if kv.common is None else FEW - fed
        few = min(few, self._positions - max(longest, kv.held) - fed)  # rows are padded to the widest
        if layout.parts.resumes_anywhere:
            return few
        room = BLOCK_TOKENS - kv.held % BLOCK_TOKENS - fed
        if self._window:
            room = min(room, self._window - max(longest, kv.held) - fed)  # windows of all rows turn together
        return min(room, few)

    @cached_property
    def _positions(self) -> int:
        """Positions that its model has: it would be fed what lies behind its table."""
        return most_positions(self._sequence.loaded.source.config) or MOST

    @cached_property
    def _window(self) -> int:
        """Tokens of the shortest window, until which its passes have the same bits; 0 if that limits nothing."""
        loaded, request = self._sequence.loaded, self._sequence.request
        windows = [group.window for group in loaded.layout.parts.groups if group.window is not None]
        limits = loaded.guess_exactness is Exactness.EXACT and request.speculation is Speculation.AUTO
        return min(windows, default=0) if limits else 0


def head_of(sequence: Sequence, governor: Governor) -> HeadKV | None:
    """
    Return the view of its model's MTP head on a sequence that has begun nothing; None if that shall not guess.

    Unless the request asks for it, the head reads what it guesses nothing from only while the governor finds a gain.
    """
    speculation, mtp = sequence.request.speculation, sequence.loaded.mtp
    alone = not sequence.samples and sequence.draft is None
    if isinstance(mtp, str) or not has_head(speculation, sequence.loaded, alone=alone):
        return None
    always, source = speculation is Speculation.MTP, Source(Speculation.MTP)
    return HeadKV(mtp, sequence.prompt, sequence.generated, lambda: always or governor.gains(source))


def has_head(speculation: Speculation, loaded: LoadedModel, *, alone: bool) -> bool:
    """Return whether a request has its model's MTP head; `alone` if it has neither samples nor a draft model."""
    automatic = speculation is Speculation.AUTO and loaded.guess_exactness in _AUTOMATIC
    return alone and not isinstance(loaded.mtp, str) and (automatic or speculation is Speculation.MTP)


def guesser_of(sequence: Sequence, governor: Governor) -> Guesser | None:
    """Return what guesses for a sequence, by what its request asks for and what its model can; None if nothing."""
    if sequence.draft is not None:
        return Guesser(sequence, DraftGuesses(sequence))
    ngrams = NgramGuesses(sequence, governor) if sequence.request.speculation is not Speculation.MTP else None
    if sequence.head is not None:
        return Guesser(sequence, HeadGuesses(sequence, governor, ngrams))
    return Guesser(sequence, ngrams) if ngrams is not None and most_guesses(sequence) else None


def most_guesses(sequence: Sequence) -> int:
    """Return how many tokens a pass may check for a sequence; a text to embed has no such pass."""
    if sequence.pooled is not None:
        return 0
    drafted = 0 if sequence.draft is None else sequence.draft.count
    return guessable(sequence.request.speculation, sequence.loaded.guess_exactness, drafted)


def guessable(speculation: Speculation, exactness: Exactness, drafted: int) -> int:
    """
    Return how many tokens a pass may check.

    Args:
        speculation: What the request asks for.
        exactness: How exact passes over guesses of its model are.
        drafted: Tokens that a draft model guesses at a time; 0 without one.
    """
    if speculation is Speculation.MTP:
        return MOST_OF_HEAD
    automatic = speculation is Speculation.AUTO and exactness in _AUTOMATIC
    return drafted or (MOST_GUESSES if automatic or speculation is Speculation.NGRAM else 0)
