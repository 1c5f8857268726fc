"""Tries of what failed become rarer, and a wait for a token that may not be the expected one is weighed."""

from __future__ import annotations

from copy import deepcopy

import pytest

from daemon.engine.scheduling.governor import Check, Governor, Source
from daemon.engine.scheduling.pass_costs import LOSS_SHARE, PassCosts, Purse

COMPARED, UNSEEN = Source(3, "short"), Source(5)
"""A source whose guesses are compared with what is decoded, and one whose guesses cost a pass each."""


def until_a_try(governor: Governor, source: Source) -> int:
    """Return the plain steps until a source may guess."""
    steps = 0
    while not governor.count(source, 1):
        governor.plain(1.0)
        steps += 1
    return steps


def test_tries_in_a_row_that_fail_become_rarer_up_to_eight_times() -> None:
    governor, waits = Governor(), list[int]()
    for _ in range(12):
        waits.append(until_a_try(governor, UNSEEN))
        governor.stepped(2.0, 1, [Check(UNSEEN, 1, 0)], 1)
    share = 1 / LOSS_SHARE  # a try loses a step
    assert waits[1:] == pytest.approx([share, 2 * share, 4 * share, *[8 * share] * 8], abs=9)


def test_rarer_tries_pay_for_the_step_behind_as_well() -> None:
    waits = []
    for behind in (1.0, 1.5):
        governor = Governor()
        for _ in range(3):
            until_a_try(governor, UNSEEN)
            governor.stepped(2.0, 1, [Check(UNSEEN, 1, 0)], 1)
            governor.stepped(behind, 1, [], 1)
        waits.append(until_a_try(governor, UNSEEN))
    assert waits[1] / waits[0] == pytest.approx(1.5, rel=0.05)


def test_step_that_begins_a_pass_behind_one_that_fed_tokens_again_is_paid() -> None:
    """No pass was under way while that one was computed, so the next one has yet to begin."""
    waits = []
    for begin in (0.0, 0.9):
        governor = Governor()
        governor.set_rows(4)
        until_a_try(governor, UNSEEN)
        steps = [(2.0, 4, [Check(UNSEEN, 1, 0)]), (1.0, 4, list[Check]()), (begin, 0, []), (1.0, 4, [])]
        for seconds, tokens, checks in steps:
            governor.stepped(seconds, 4, checks, tokens)
        waits.append(until_a_try(governor, UNSEEN))
    assert waits[1] / waits[0] == pytest.approx(1.9, rel=0.05)


def failing(times: int) -> Governor:
    governor = Governor()
    for _ in range(times):
        until_a_try(governor, UNSEEN)
        governor.stepped(2.0, 1, [Check(UNSEEN, 1, 0)], 1)
    return governor


def test_pass_that_gains_ends_the_wait_for_tries() -> None:
    governor = failing(6)
    governor.stepped(1.2, 1, [Check(UNSEEN, 1, 1)], 2)
    assert until_a_try(governor, UNSEEN) < until_a_try(failing(6), UNSEEN) / 5


def test_guesses_that_are_right_without_a_pass_end_the_wait_for_tries() -> None:
    governor = failing(6)
    governor.right(UNSEEN)
    assert until_a_try(governor, UNSEEN) < until_a_try(failing(6), UNSEEN) / 5


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(("chance", "vain", "waits"), [(0.4, 1.0, True), (0.4, 1.9, False), (0.95, 1.9, True)])
def test_wait_for_a_token_is_a_bet_on_it(rows: int, chance: float, vain: float, waits: bool) -> None:
    """A guess that continues another token than the pending one is none, and the pass behind the wait begins late."""
    governor = Governor()
    governor.set_rows(rows)
    for place in range(400):
        governor.plain(1.0)
        governor.guessed(1.05, [Check(COMPARED, 1, 1, asked=True)] * rows, 2 * rows)
        governor.see(COMPARED, place * 20 * chance % 20 < 20 * chance)
    for _ in range(40):
        governor.stepped(vain, rows, [Check(COMPARED, 0, 0)], rows)
        for _ in range(60):
            governor.stepped(1.0, rows, [], rows)
    offers = [(COMPARED, 1)] * rows
    assert governor.width(offers) == 1
    assert governor.width(offers, waits=True) == waits


def test_cost_of_guesses_is_the_same_however_often_asked() -> None:
    """Figures ask at moments of their own, and all ranks of a group have to decide alike."""
    asked, seldom = PassCosts(Purse()), PassCosts(Purse())
    for costs in (asked, seldom):
        for _ in range(9):
            costs.plain(0.01)
        for _ in range(4):
            costs.guessed(0.02, 1)
            costs.guessed_at(0.02, 1.0)
    known = asked.cost(1)
    while (cost := asked.cost(1)) == known:
        assert deepcopy(seldom).cost(1) == cost
        for costs in (asked, seldom):
            costs.plain(0.01)
    assert seldom.cost(1) == cost
