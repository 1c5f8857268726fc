"""The prompts that are being computed: whose turn it is, how much of it, and which are computed together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from itertools import chain
from typing import Any, Protocol

from daemon.engine.execution.batched_prefill import PrefillBatch
from daemon.engine.execution.prefill import Prefill
from daemon.engine.execution.sequence import Sequence
from daemon.engine.scheduling.policy import CHUNK_SECONDS, Allowance, ChunkSizer, Turns
from daemon.kv.forks import needed_first
from daemon.kv.prefix_cache import PrefixCache


class Listener(Protocol):
    """Who is told how prompts fare."""

    def begun(self, sequence: Sequence) -> None:
        """A prompt was looked up in the prefix cache."""

    def failed(self, sequence: Sequence, error: Exception) -> None:
        """A prompt could not be looked up, or what was found could not be restored."""

    def computed(self, sequence: Sequence, tokens: int, done: int) -> None:
        """So many tokens of a prompt were computed, and the first `done` of it are there."""

    def ready(self, sequences: list[Sequence], caches: list[Any] | None) -> None:
        """Sequences can decode: one that holds its own cache, or several that are the rows of a batch's."""


class PrefillQueue:
    """
    Sequences that have a slot and wait for their prompts to be computed.

    Args:
        prefixes: The prefix cache.
        listener: Told how they fare.
        clock: Seconds that never go back.
    """

    def __init__(self, prefixes: PrefixCache, listener: Listener, clock: Callable[[], float]) -> None:
        self._prefixes = prefixes
        self._listener = listener
        self._clock = clock
        self._sizer = ChunkSizer()
        self._turns: Turns[Sequence] = Turns()
        self._prefills: dict[Sequence, Prefill] = {}
        self._expected: dict[Sequence, Prefill] = {}
        """Those that wait for a slot."""
        self._computed = False
        """Whether the last step had something to do."""

    def __len__(self) -> int:
        return len(self._prefills)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._prefills)

    def of(self, model: Hashable) -> int:
        """Return how many of them a model has."""
        return sum(sequence.model_key == model for sequence in self._prefills)

    def expect(self, sequence: Sequence) -> None:
        """Take note of a sequence that waits for a slot: running prompts become resumable where it parts from them."""
        expected = Prefill(sequence, self._prefixes, self._sizer, self._clock)
        self._expected[sequence] = expected
        for running in self._shared() if expected.reads else ():
            running.prepare_for(expected.beginning)

    def add(self, sequence: Sequence) -> None:
        """Take an expected sequence that has a slot."""
        self._prefills[sequence] = self._expected.pop(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence; an unknown one is no error."""
        self._prefills.pop(sequence, None)
        self._expected.pop(sequence, None)

    def stepped(self, model: Hashable, seconds: float) -> None:
        """Take note of how long a decode step of a model took."""
        self._sizer.stepped(model, seconds, after_prefill=self._computed)

    def usual_step(self, model: Hashable) -> float:
        """Return how many seconds a decode step of a model usually takes; 0 before the first."""
        return self._sizer.usual_step(model)

    def step(self, decode: float | None) -> None:
        """
        Compute what a chunk has room for: a part of a long prompt, or several short ones, whoever's turn it is.

        Args:
            decode: Seconds that a turn's decode usually takes; None if nobody waits for their next token meanwhile.
        """
        self._computed = bool(self._prefills)
        end, together = self._clock() + CHUNK_SECONDS, PrefillBatch()
        allowance = Allowance.beside(decode)
        chunks, room = allowance.chunks, allowance.room
        while room > 0 and self._clock() < end:
            waiting = [sequence for sequence in self._prefills if sequence not in together]
            first = self._turns.first(waiting)
            if first is None and not together.prefills:
                return
            prefill = self._leader(self._prefills[first]) if first is not None else together.prefills[0]
            sequence = prefill.sequence
            if sequence in together:
                together = self._compute(together, allowance)
                continue
            if not prefill.begun and not self._begin(prefill):
                continue
            share = prefill.share(allowance)
            if share > room:
                break
            room = room - share if share < chunks else 0.0  # whatever fills a step has the rest of the turn
            self._turns.took(sequence, waiting)
            if not together.has_room_for(prefill, self._sizer.most_together(sequence.model_key, allowance.room)):
                together = self._compute(together, allowance)
            together.prefills.append(prefill)
        self._compute(together, allowance)

    def _shared(self) -> list[Prefill]:
        """Return what is being computed and others can reuse: prompts, and those of their draft models."""
        begun = (prefill for prefill in self._prefills.values() if prefill.begun)
        return [part for prefill in begun for part in prefill.parts if part.writes]

    def _leader(self, prefill: Prefill) -> Prefill:
        """
        Return whose turn it is in a prompt's place: one that computes its beginning, as far as both have it in common.

        The prompt's turns are lent to it, so that nothing is computed twice and the prompt never waits for a turn that
        does not come. What is computed already of the prompt's beginning is stored.
        """
        if prefill.begun:
            return prefill
        for part in (part for part in prefill.parts if part.reads):
            unstored, ahead = needed_first(part.beginning, self._shared(), self._prefixes.min_prefix_len)
            for running in unstored:
                running.store_computed()
            if ahead is not None:
                return next(owner for owner in self._prefills.values() if ahead in owner.parts)
        return prefill

    def _begin(self, prefill: Prefill) -> bool:
        """
        Look a prompt up right before its first chunk, and tell whether that went well.

        Not earlier: the prefill before it may just be computing the beginning that both have in common.
        """
        others = chain(self._prefills.values(), self._expected.values())
        waiting = [one.beginning for one in others if one.reads and one is not prefill and not one.begun]
        try:
            prefill.begin(waiting)
        except Exception as error:
            self._listener.failed(prefill.sequence, error)
            return False
        self._listener.begun(prefill.sequence)
        return True

    def _compute(self, together: PrefillBatch, allowance: Allowance) -> PrefillBatch:
        """Compute a part of one prompt, or all of several, and return an empty collection for the next."""
        prefills = together.prefills
        if len(prefills) == 1:
            self._step(prefills[0], allowance)
        elif prefills:
            began, lacking = self._clock(), [prefill.remaining for prefill in prefills]
            caches = together.compute()
            self._sizer.measured(prefills[0].sequence.model_key, sum(lacking), self._clock() - began)
            for prefill, tokens in zip(prefills, lacking, strict=True):
                self._listener.computed(prefill.sequence, tokens, prefill.done)
                self.drop(prefill.sequence)
            self._listener.ready([prefill.sequence for prefill in prefills], caches)
        return PrefillBatch()

    def _step(self, prefill: Prefill, allowance: Allowance) -> None:
        sequence = prefill.sequence
        tokens = prefill.step(allowance)
        self._listener.computed(sequence, tokens, prefill.done)
        if not prefill.remaining:
            self.drop(sequence)
            self._listener.ready([sequence], None)
