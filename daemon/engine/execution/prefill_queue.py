"""
Looks prompts up in the prefix cache and computes them, in the order and the groups that the plan of a turn decides.

`scheduling/prefill_plan.py` decides which prompt is next, at what cost, and in which group. This half has the effects:
lookups, forward passes, and the hand-over of beginnings that several prompts have in common (ADR 11). It returns
outcomes, in the order in which they come about.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from daemon.cache.identity import ModelKey
from daemon.engine.execution.batched_prefill import PrefillBatch
from daemon.engine.execution.bill import widest, widest_draft
from daemon.engine.execution.prefill import Prefill
from daemon.engine.execution.readers import Readers
from daemon.engine.execution.row_bills import LEAST_WIDTH
from daemon.engine.execution.sequence import Sequence
from daemon.engine.scheduling.policy import CHUNK_SECONDS, MAX_CHUNK, Allowance, ChunkSizer, Turns
from daemon.engine.scheduling.prefill_plan import PrefillTurn
from daemon.kv.forks import needed_first
from daemon.kv.mlx.shared_prefix import SharedPrefix
from daemon.kv.prefix_cache import PrefixCache
from daemon.shared.errors import SidecarError


@dataclass(frozen=True, slots=True)
class Begun:
    """The prefix cache was searched for a prompt, and the match was restored."""

    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Failed:
    """A prompt could not begin, or could not be scored."""

    sequence: Sequence
    error: Exception


@dataclass(frozen=True, slots=True)
class Postponed:
    """A prompt could not begin: others have computed less of it than it was billed for, and the rest does not fit."""

    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Computed:
    """
    A part of a prompt was computed.

    Attributes:
        sequence: The sequence.
        tokens: Tokens of this part; none if it was a part of the draft model's.
        done: Tokens of the prompt that are in the cache now.
    """

    sequence: Sequence
    tokens: int
    done: int


@dataclass(frozen=True, slots=True)
class Ready:
    """
    Sequences can decode.

    Attributes:
        sequences: One sequence that holds its own cache, or several that are the rows of a batch.
        caches: The caches of that batch, one for each layer; None for a single sequence.
    """

    sequences: list[Sequence]
    caches: list[Any] | None = None


Prefilled = Begun | Failed | Postponed | Computed | Ready


class PrefillQueue:
    """
    The prompts of sequences that have a slot.

    Args:
        prefixes: The prefix cache.
        sizer: Step times of the models; it learns from each pass.
        clock: Seconds that never go back.
        readers: The running sequences, as readers of prefixes that they have in common.
        make_room: Frees memory until what is billed fits, and returns whether it does now.

    Attributes:
        computed: Whether the last turn had a prompt to compute.
    """

    def __init__(
        self,
        prefixes: PrefixCache,
        sizer: ChunkSizer,
        clock: Callable[[], float],
        readers: Readers,
        make_room: Callable[[], bool],
    ) -> None:
        self.computed = False
        self._make_room = make_room
        self._readers = readers
        self._prefixes = prefixes
        self._sizer = sizer
        self._clock = clock
        self._turns: Turns[Prefill] = Turns()
        self._prefills: dict[Sequence, Prefill] = {}
        self._expected: dict[Sequence, Prefill] = {}
        """Prefills of sequences that wait for a slot."""

    def __len__(self) -> int:
        return len(self._prefills)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._prefills)

    @property
    def active(self) -> int:
        """Prompts that are not paused."""
        return sum(not sequence.paused for sequence in self._prefills)

    def of(self, model: Hashable) -> int:
        """Return the number of slots that prompts of a model have: one for each sample."""
        return sum(sequence.rows for sequence in self._prefills if sequence.model_key == model)

    def expect(self, sequence: Sequence) -> None:
        """Announce a sequence that waits for a slot: running prompts become resumable where it diverges from them."""
        expected = Prefill(sequence, self._prefixes, self._sizer, self._clock)
        for running in self._shared() if expected.reads else ():
            running.prepare_for(expected.beginning)
        self._expected[sequence] = expected

    def add(self, sequence: Sequence) -> None:
        """Take an expected sequence that has got a slot."""
        self._prefills[sequence] = self._expected.pop(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence; an unknown one is no error."""
        self._vacate(sequence)
        self._expected.pop(sequence, None)

    def limit_passes(self, spare: Callable[[int], int]) -> None:
        """
        Limit the passes of the next turn to what memory allows, those of draft models and of scored prompts as well.

        Args:
            spare: Frees cached prefixes until so many bytes are free, as far as that helps, and returns how many are.
        """
        by_model: dict[ModelKey, list[Prefill]] = {}
        for prefill in self._prefills.values():
            by_model.setdefault(prefill.model_key, []).append(prefill)
        limits: dict[Hashable, int] = {}
        for model, prefills in by_model.items():
            self._sizer.limit(model, MAX_CHUNK)
            width = widest([prefill.sequence for prefill in prefills], self._sizer.most(model), spare)
            for key, most in chain([(model, width)], *(_widths(prefill, width) for prefill in prefills)):
                limits[key] = min(most, limits.get(key, most))
        for key, most in limits.items():
            self._sizer.limit(key, most)

    def step(self, decode: float | None) -> Iterator[Prefilled]:
        """
        Do one turn: compute a part of a long prompt, or several short ones.

        The turn goes on only as its outcomes are consumed. A sequence may be dropped between two of them.

        Args:
            decode: Seconds that a turn's decode usually takes; None if no stream waits for its next token.
        """
        self.computed = bool(self.active)
        end = self._clock() + CHUNK_SECONDS
        turn = PrefillTurn(Allowance.beside(decode), self._turns, self._sizer.most_together)
        while not turn.over and self._clock() < end:
            # A paused prompt has no turn of its own. It may still get that of a prompt that begins like it.
            first = turn.first([prefill for sequence, prefill in self._prefills.items() if not sequence.paused])
            prefill = self._leader(first) if first is not None else None
            if prefill is None or prefill in turn.group:
                if not turn.group:
                    return
                # A leader in the group is computed before its follower is looked up: the follower reuses it.
                yield from self._compute(turn.flush(), turn.allowance)
            elif prefill.begun or (yield from self._begin(prefill)):
                yield from self._compute(turn.place(prefill), turn.allowance)
        yield from self._compute(turn.flush(), turn.allowance)

    def _shared(self) -> list[Prefill]:
        """Return the running prefills that others can reuse, those of draft models included."""
        begun = (prefill for prefill in self._prefills.values() if prefill.begun)
        return [part for prefill in begun for part in prefill.parts if part.writes]

    def _leader(self, prefill: Prefill) -> Prefill:
        """
        Return the prefill that has the turn in this one's place: its leader if it has one, or else itself.

        A leader computes the beginning that both have in common. The turn is lent to it, so that no token is computed
        twice, and the follower never waits for a turn that does not come. Running prefills that hold more of the
        beginning than they stored store it now, so that the lookup after this call finds it.
        """
        if prefill.begun:
            return prefill
        for part in (part for part in prefill.parts if part.reads):
            unstored, leader = needed_first(part.beginning, self._shared(), self._prefixes.min_prefix_len)
            for running in unstored:
                running.store_computed()
            if leader is not None:
                return next(owner for owner in self._prefills.values() if leader in owner.parts)
        return prefill

    def _begin(self, prefill: Prefill) -> Generator[Prefilled, None, bool]:
        """
        Search the prefix cache for a prompt, right before its first chunk, and return whether that went well.

        The search comes this late because the prefill before it may compute the beginning that both have in common. A
        prompt may be billed for less than all of it, because others are to compute its beginning. If they have computed
        less, and all of the prompt does not fit, it waits for a slot again. From then on it counts on no others.
        """
        fell_short = self._readers.outlooks.correct(prefill.sequence)
        if fell_short and not self._make_room():
            self._expected[prefill.sequence] = prefill
            self._vacate(prefill.sequence)
            self._readers.outlooks.distrust(prefill.sequence)
            self._readers.outlooks.renew()
            yield Postponed(prefill.sequence)
            return False
        if fell_short:  # the passes of this turn were chosen for a bill with less of it to compute
            self._narrow(prefill)
        others = chain(self._prefills.values(), self._expected.values())
        waiting = [other.beginning for other in others if other.reads and other is not prefill and not other.begun]
        leased = [kv.leased for kv in prefill.sequence.kvs]
        try:
            prefill.begin(self._readers.common, waiting)
            self._readers.outlooks.renew()
        except Exception as error:
            yield Failed(prefill.sequence, error)
            return False
        if any(kv.cached < tokens for kv, tokens in zip(prefill.sequence.kvs, leased, strict=True)):
            self._narrow(prefill)  # not all of it could be restored: here too, there is more to compute
        yield Begun(prefill.sequence)
        return True

    def _vacate(self, sequence: Sequence) -> None:
        """Take the slot of a sequence away, if it has one."""
        prefill = self._prefills.pop(sequence, None)
        if prefill is not None:
            self._turns.left(prefill)

    def _narrow(self, prefill: Prefill) -> None:
        """Let the passes of this turn be the narrowest, of a prompt and of others that are computed like it."""
        for key in (prefill.model_key, *(part.sizer_key for part in prefill.parts)):
            self._sizer.limit(key, LEAST_WIDTH)

    def _compute(self, group: list[Prefill], allowance: Allowance) -> Iterator[Prefilled]:
        """Compute the next part of a single prompt, or the rest of several in one pass; nothing without any."""
        if len(group) > 1:
            for part in _by_root(group):
                yield from self._compute_together(part) if len(part) > 1 else self._compute(part, allowance)
        elif group:
            prefill, sequence = group[0], group[0].sequence
            try:
                tokens = prefill.step(allowance)
            except SidecarError as error:  # of this prompt alone; what other exceptions mean is not known
                yield Failed(sequence, error)
                return
            yield Computed(sequence, tokens, prefill.done)
            if not prefill.remaining:
                self.drop(sequence)
                yield Ready([sequence])

    def _compute_together(self, group: list[Prefill]) -> Iterator[Prefilled]:
        began, remaining = self._clock(), [prefill.remaining for prefill in group]
        caches = PrefillBatch(group).compute()
        self._sizer.measured(group[0].model_key, sum(remaining), self._clock() - began)
        for prefill, tokens in zip(group, remaining, strict=True):
            yield Computed(prefill.sequence, tokens, prefill.done)
            self.drop(prefill.sequence)
        yield Ready([prefill.sequence for prefill in group], caches)


def _widths(prefill: Prefill, width: int) -> list[tuple[Hashable, int]]:
    """Return the most tokens of the passes of a prompt and of its draft model, by what the sizer knows them by."""
    own, *draft = prefill.parts[::-1]
    return [(own.sizer_key, width), *((part.sizer_key, widest_draft(prefill.sequence, width)) for part in draft)]


def _by_root(group: list[Prefill]) -> Iterable[list[Prefill]]:
    """Part a group by the prefix that its prompts share; a later one may have shared its own since it joined."""
    parts: dict[SharedPrefix | None, list[Prefill]] = {}
    for prefill in group:
        parts.setdefault(prefill.sequence.kv.root, []).append(prefill)
    return parts.values()
