"""
Plans prefills: which waiting request gets a slot, which prompt is computed next, and which share a pass. Pure.

Terms. A request with a loaded model *waits* for a slot (`WaitingList`). A *prefill* is a prompt with a slot. It
*begins* when the prefix cache is searched for it, which is as late as possible: the prefill before it may compute the
very tokens that both have in common. Its *leader* is a running prefill that will compute more of its beginning
(`daemon/kv/forks.py`). A *group* is the prefills that will share the next pass.

A prefill turn goes through these states. `PrefillTurn` decides, and `execution/prefill_queue.py` has the effects.

            first()               place()
    PICK ------------> CANDIDATE ---------> PICK ... until the time is spent ... END: the group is computed

    state      event                               effect                                      next
    PICK       a prefill is left                   its leader, if it has one, takes its place  CANDIDATE
    PICK       all are in the group, of one        it is computed                              PICK
    PICK       all are in the group, of several                                                END
    PICK       no prefill, no group                                                            END
    CANDIDATE  is in the group (it is a leader)    the same as if all were in the group
    CANDIDATE  has not begun                       it begins; an error drops it, and it waits  CANDIDATE, or PICK
                                                   for a slot again if it does not fit
    CANDIDATE  costs more than is left             it keeps its place for the next turn        END
    CANDIDATE  cannot share a pass of several      it keeps its place for the next turn        END
    CANDIDATE  cannot share the pass of one        that is computed; it starts a new group     PICK
    CANDIDATE  can share the pass                  it joins the group                          PICK

Why the group waits. A short prompt reads all weights for a few tokens, so several short prompts are collected and
computed in one pass. A long prompt fills a pass on its own: it is a group of one, and the group before it is computed
first.

Why a shared pass ends the turn. The decode step that comes next feeds its rows their last tokens, so they have their
first tokens before other prompts are computed.

Why costs. Each prefill is billed the seconds of its pass before the pass, by the measured speed of its model
(`Allowance.cost`). The turn ends when the next prefill costs more than is left.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from daemon.engine.scheduling.padding import fits
from daemon.engine.scheduling.policy import Allowance, Budget, Candidate, Turns

PASS_TOKENS = 32
"""
Tokens of padding a row that a shared pass may have. Reading a model's weights takes about as long as computing so many
tokens, so less padding than that is cheaper than a pass of its own.
"""


class WaitingRequest(Candidate, Protocol):
    """A request that waits for a slot."""

    @property
    def arrived(self) -> float:
        """Its arrival, in seconds of the engine's clock."""

    @property
    def rows(self) -> int:
        """Slots that it takes."""


W = TypeVar("W", bound=WaitingRequest)


class WaitingList(Generic[W]):
    """
    Requests with a loaded model that wait for a slot, in order of arrival.

    It also has the figures of the batching window: how many have just arrived, and which models they wait for.
    """

    def __init__(self) -> None:
        self._requests: list[W] = []
        self._turns: Turns[W] = Turns()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[W]:
        return iter(self._requests)

    @property
    def models(self) -> set[Hashable]:
        """The models that requests wait for."""
        return {request.model_key for request in self._requests}

    def add(self, request: W) -> None:
        """Append a request."""
        self._requests.append(request)

    def put_back(self, request: W) -> None:
        """Take a request that had a slot and did not begin; it keeps its place in the order of arrival."""
        insort(self._requests, request, key=lambda one: one.arrived)

    def remove(self, request: W) -> None:
        """Remove a request; an unknown one is no error."""
        if request in self._requests:
            self._requests.remove(request)
        self._turns.left(request)

    def arrived_since(self, moment: float) -> int:
        """Return the number of requests if all of them arrived since a moment; 0 if an older one waits."""
        return 0 if any(request.arrived < moment for request in self._requests) else len(self._requests)

    def starting(self, running: Callable[[Hashable], int], max_batch: int, fits: Callable[[W], bool]) -> Iterator[W]:
        """
        Remove and yield the requests that get a slot now, one after the other; the caller gives each its slot.

        A request that does not fit in memory now blocks the requests behind it: smaller ones that pass would starve it.
        One that needs more slots than are free blocks those of its model alone.

        Args:
            running: Returns how many requests of a model have a slot.
            max_batch: Most slots of a model.
            fits: Whether a request fits in memory now; may free memory.
        """
        candidates = [request for request in self._requests if running(request.model_key) < max_batch]
        while (first := self._turns.first(candidates)) is not None:
            if running(first.model_key) + first.rows > max_batch:
                candidates = [request for request in candidates if request.model_key != first.model_key]
            elif fits(first):
                self._turns.took(first, candidates)
                self._requests.remove(first)
                yield first
                candidates = [request for request in self._requests if running(request.model_key) < max_batch]
            else:
                return


class PendingPrefill(Candidate, Protocol):
    """A prefill, as far as the plan needs to know it. `remaining`, `short` and the cost are known once it has begun."""

    @property
    def length(self) -> int:
        """Tokens of its prompt that are in no prefix that it shares."""

    @property
    def remaining(self) -> int:
        """Tokens of its prompt that are left to compute."""

    @property
    def short(self) -> bool:
        """Whether the rest of its prompt can share a pass."""

    @property
    def pools(self) -> bool:
        """Whether it computes hidden states, which a pass with logits does not."""

    def cost(self, allowance: Allowance) -> float:
        """Return the seconds that its next pass is billed."""


P = TypeVar("P", bound=PendingPrefill)


class PrefillTurn(Generic[P]):
    """
    One prefill turn.

    Args:
        allowance: What the turn may take.
        turns: The order of turns among prefills; lasts longer than this turn.
        most_together: Returns the most tokens of a model that may share a pass of so many seconds.

    Attributes:
        allowance: What the turn may take.
        group: Prefills that will share the next pass.
    """

    def __init__(self, allowance: Allowance, turns: Turns[P], most_together: Callable[[Hashable, float], int]) -> None:
        self.allowance = allowance
        self.group: list[P] = []
        self._turns = turns
        self._most_together = most_together
        self._budget = Budget(allowance)
        self._candidates: list[P] = []
        self._over = False

    @property
    def over(self) -> bool:
        """Whether no further prefill is taken; the group may still have to be computed."""
        return self._over or self._budget.spent

    def first(self, prefills: Iterable[P]) -> P | None:
        """Return the prefill that has the next turn; None if all of them are in the group."""
        self._candidates = [prefill for prefill in prefills if prefill not in self.group]
        return self._turns.first(self._candidates)

    def place(self, prefill: P) -> list[P]:
        """
        Give a prefill that has begun its turn: it joins the group.

        The turn is over instead if it costs too much, or if the group has several and it cannot share their pass.

        Args:
            prefill: The prefill that `first` returned, or the leader that computes its beginning.

        Returns:
            The prefill before it, which has to be computed now because the two cannot share a pass; often none.
        """
        cost = prefill.cost(self.allowance)
        most = self._most_together(prefill.model_key, self.allowance.short)
        shares = can_share([*self.group, prefill], most)
        if not self._budget.covers(cost) or (len(self.group) > 1 and not shares):
            self._over = True
            return []
        self._budget.spend(cost)
        self._turns.took(prefill, self._candidates)
        before = [] if shares else self.flush()
        self.group.append(prefill)
        return before

    def flush(self) -> list[P]:
        """Return the group, which is computed now, and begin a new one. A pass that prompts share ends the turn."""
        group, self.group = self.group, []
        self._over = self._over or len(group) > 1
        return group


def can_share(prefills: Sequence[PendingPrefill], most: int) -> bool:
    """
    Whether prefills can be computed in one pass; a single one always can.

    Args:
        prefills: Members of a group; the last of them is to join.
        most: Tokens that the pass may have in all, without padding.
    """
    if len(prefills) == 1:
        return True
    remaining = [prefill.remaining for prefill in prefills]
    padding = max(remaining) * len(prefills) - sum(remaining)
    return (
        all(prefill.short for prefill in prefills)
        and sum(remaining) <= most
        and prefills[0].model_key == prefills[-1].model_key
        and prefills[0].pools == prefills[-1].pools
        and fits([prefill.length for prefill in prefills])
        and padding <= PASS_TOKENS * len(prefills)
    )
