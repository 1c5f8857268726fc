"""The comparison of places: ranks that part and move no more end the group, and no others do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from daemon.engine.group.lockstep import Lockstep


class Group:
    """
    A first rank and another one, whose places the test sets.

    Attributes:
        places: Those of both.
        parted: What the group was ended for.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.places = [5, 5]
        self.parted: list[str] = []
        self._other = SimpleNamespace(name="rank 1", place=0)
        others: Any = [self._other]
        self.lockstep = Lockstep(lambda: self.places[0], others, lambda: self.now, self.parted.append)

    def wait(self, seconds: float) -> None:
        """Look twice a second until so much time has passed, or the ranks have parted."""
        end = self.now + seconds
        while self.now < end and not self.parted:
            self.now += 0.5
            self._other.place = self.places[1]
            self.lockstep.look()


@pytest.mark.parametrize("places", [(5, 6), (6, 5)])
def test_ranks_that_have_parted_end_the_group(places: tuple[int, int]) -> None:
    """Whichever of them went on: within ten seconds, with a beat before."""
    group = Group()
    group.places[:] = places
    group.wait(8)
    assert group.parted == ["ranks wait for each other; one failed alone or is too slow, and its log may have more"]


def test_what_failed_is_told() -> None:
    """Of each rank that told it lately."""
    group = Group()
    group.lockstep.trouble("rank 2", "long ago, everywhere")
    group.wait(60)
    group.lockstep.trouble("rank 1", "no memory")
    group.places[1] += 1
    group.wait(8)
    assert group.parted == ["rank 1 failed alone: no memory"]


def test_long_work_at_one_place_is_no_fault() -> None:
    """All ranks may read a slow disk, or compute a long pass."""
    group = Group()
    group.wait(100)
    assert not group.parted


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_move_have_not_parted(rank: int) -> None:
    """A beat is old when it comes, and the first rank may be two turns ahead."""
    group = Group()
    group.places[0] += 2
    for _ in range(20):
        group.places[rank] += 10
        group.wait(2)
    assert not group.parted


def test_time_of_a_stopped_first_rank_does_not_count() -> None:
    """The beats of that time are read later."""
    group = Group()
    group.places[1] += 1
    group.wait(4)
    group.now += 100
    group.wait(1)
    assert not group.parted
