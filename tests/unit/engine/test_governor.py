"""The governor guesses where that gains, parks what loses, and pays little to find out."""

from __future__ import annotations

import random

import pytest

from daemon.engine.scheduling.governor import MOST_GUESSES, Check, Governor, Governors, Source
from daemon.engine.scheduling.pass_costs import LOSS_SHARE, SAVED
from daemon.engine.scheduling.rests import Rests

GOOD, BAD = Source(3, "long"), Source(3, "short")
STEP = 0.01


def run(governor: Governor, tokens: int, chances: dict[Source, float], cost: float, seed: int) -> float:
    """
    Decode so many tokens with sources that come by in turn.

    Args:
        governor: The governor.
        tokens: How many.
        chances: The chance that a guess of each source is right.
        cost: What a guess adds to a pass, as a share of it.
        seed: Of what comes.

    Returns:
        The seconds that it took, divided by those without guesses.
    """
    source, seconds, done = random.Random(seed), 0.0, 0
    while done < tokens:
        label = source.choice(list(chances))
        count = governor.count(label, MOST_GUESSES)
        took = STEP * (1 + cost * count) * source.uniform(0.9, 1.1)
        if count:
            right = next((i for i in range(count) if source.random() > chances[label]), count)
            governor.guessed(took, [Check(label, count, right)], right + 1)
            done += right + 1
        else:
            governor.plain(took)
            done += 1
        seconds += took
    return seconds / (done * STEP)


SEEDS = pytest.mark.parametrize("seed", range(3))


@SEEDS
@pytest.mark.parametrize("cost", [0.01, 0.3])
def test_good_guesses_make_decoding_faster(cost: float, seed: int) -> None:
    governor = Governor()
    assert run(governor, 3000, {GOOD: 0.95}, cost, seed) < 0.6
    assert governor.gain(GOOD) > 1.5
    assert not governor.parked(GOOD)


@SEEDS
@pytest.mark.parametrize("cost", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("chance", [0.0, 0.1])
def test_bad_guesses_cost_at_most_their_share(cost: float, chance: float, seed: int) -> None:
    """And a little more: the first tries are made before anything is known."""
    governor = Governor()
    assert run(governor, 5000, {BAD: chance}, cost, seed) < 1 + LOSS_SHARE + 0.01
    assert governor.parked(BAD)


@SEEDS
def test_source_that_loses_does_not_park_one_that_gains(seed: int) -> None:
    governor = Governor()
    assert run(governor, 5000, {BAD: 0.05, GOOD: 0.95}, 0.1, seed) < 0.7
    assert governor.parked(BAD)
    assert not governor.parked(GOOD)


@SEEDS
def test_parked_source_is_used_again_when_it_gains(seed: int) -> None:
    governor = Governor()
    run(governor, 2000, {BAD: 0.0}, 0.3, seed)
    assert governor.parked(BAD)
    run(governor, 20_000, {BAD: 0.95}, 0.3, seed)
    assert not governor.parked(BAD)


def run_together(governor: Governor, passes: int, chances: list[float], cost: float, seed: int) -> float:
    """
    Decode rows that share each pass; half of the time a row has nothing to guess.

    Args:
        governor: The governor.
        passes: How many.
        chances: The chance that a guess is right, of each row; each has a source of its own.
        cost: What a guess of each row adds to a pass, as a share of it.
        seed: Of what comes.

    Returns:
        The seconds that it took, divided by those without guesses.
    """
    source, seconds, done = random.Random(seed), 0.0, 0
    governor.set_rows(len(chances))
    for _ in range(passes):
        offers = [(Source(3, str(row)), row) for row in range(len(chances)) if source.random() < 0.5]
        counts = {row: count for label, row in offers if (count := governor.count(label, MOST_GUESSES))}
        width = governor.width([(Source(3, str(row)), count) for row, count in counts.items()]) if counts else 0
        took = STEP * (1 + cost * min(width, max(counts.values(), default=0))) * source.uniform(0.9, 1.1)
        checks = []
        for row, count in counts.items() if width else ():
            guessed = min(width, count)
            right = next((i for i in range(guessed) if source.random() > chances[row]), guessed)
            checks.append(Check(Source(3, str(row)), guessed, right))
        tokens = len(chances) + sum(check.accepted for check in checks)
        if checks:
            governor.guessed(took, checks, tokens)
        else:
            governor.plain(took)
        seconds += took
        done += tokens
    return seconds / (done * STEP / len(chances))


@SEEDS
@pytest.mark.parametrize("rows", [2, 4, 8])
def test_rows_that_guess_well_gain_together(rows: int, seed: int) -> None:
    governor = Governor()
    assert run_together(governor, 3000, [0.95] * rows, 0.05, seed) < 0.7
    assert governor.gain(Source(3, "0")) > 1.2


@SEEDS
@pytest.mark.parametrize("cost", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("good", [0.0, 0.5, 0.95])
def test_one_row_costs_its_neighbours_their_share_at_most(cost: float, good: float, seed: int) -> None:
    """A pass is as wide as its widest row: what one row gains may be less than what all of them wait."""
    governor = Governor()
    assert run_together(governor, 5000, [good] + [0.0] * 7, cost, seed) < 1 + LOSS_SHARE + 0.01


def test_what_a_guess_costs_is_known_for_each_number_of_rows() -> None:
    """Eight rows of a small model may be bound by products where one is by its weights."""
    governor = Governor()
    run(governor, 2000, {GOOD: 0.8}, 0.05, 1)
    assert governor.count(GOOD, MOST_GUESSES) > 2
    governor.set_rows(8)
    assert governor.count(GOOD, MOST_GUESSES) == 0
    for _ in range(200):
        governor.plain(STEP)
    for _ in range(60):
        governor.guessed(3 * STEP, [Check(GOOD, 1, 1)], 9)
    assert governor.count(GOOD, MOST_GUESSES) == 0
    governor.set_rows(1)
    assert governor.count(GOOD, MOST_GUESSES) > 2
    assert not governor.parked(GOOD)


def test_guesses_that_are_asked_for_are_not_paid_by_others() -> None:
    """What they cost is known, and what they lose is no reason to try less."""
    governor = Governor()
    for _ in range(200):
        governor.plain(STEP)
    for _ in range(200):
        governor.guessed(STEP * 5, [Check(BAD, 4, 0, asked=True)], 1)
    assert governor.parked(BAD)
    assert governor.count(BAD, MOST_GUESSES) == 1  # a try


def test_guesses_of_unknown_time_count_as_what_is_feared() -> None:
    """Passes of several batches have no time of their own: a source that fails is tried as rarely as with one."""
    governor = Governor()
    for _ in range(200):
        governor.plain(STEP)
    tries = 0
    for _ in range(1000):
        count = governor.count(BAD, MOST_GUESSES)
        governor.unmeasured(1, [Check(BAD, count, 0)] if count else [])
        if not count:
            governor.plain(STEP)
        tries += count > 0
    assert 2 < tries <= 1 + SAVED
    assert governor.records[BAD].guessed >= tries
    assert governor.gain(BAD) == 0, "a gain needs a time"


def test_guesses_of_unknown_time_that_are_asked_for_cost_nothing() -> None:
    governor = Governor()
    for _ in range(200):
        governor.plain(STEP)
    for _ in range(50):
        governor.unmeasured(1, [Check(BAD, 4, 0, asked=True)])
    assert governor.count(BAD, MOST_GUESSES) == 1  # a try, which the budget of before pays


def test_gain_of_the_past_pays_for_few_passes() -> None:
    """A text that is guessed well may be followed by one that is not: its answer shall not take longer."""
    governor = Governor()
    run(governor, 5000, {GOOD: 0.95}, 0.3, 1)
    lost, passes = 0.0, 300
    for _ in range(passes):
        count = governor.count(GOOD, MOST_GUESSES)
        took = STEP * (1 + 0.3 * count)
        lost += took - STEP
        governor.stepped(took, 1, [Check(GOOD, count, 0)] if count else [], 1)
    assert lost < (LOSS_SHARE * 1.1 * passes + SAVED + 4) * STEP


def test_shorter_steps_are_found_behind_guesses() -> None:
    """Guesses seem to gain as long as a step is believed to take what it took before."""
    governor = Governor()
    for _ in range(100):
        governor.plain(STEP)
    for _ in range(12):
        governor.guessed(1.7 * STEP, [Check(GOOD, 1, 1)], 2)
    passes = 0
    while governor.count(GOOD, 1) and passes < 10:
        governor.guessed(1.7 * STEP / 2, [Check(GOOD, 1, 1)], 2)
        passes += 1
    assert passes <= 4


@pytest.mark.parametrize("behind", [1.0, 1.5])
def test_what_the_pass_behind_takes_longer_is_part_of_the_cost(behind: float) -> None:
    """It begins late, and a recurrent state is fed tokens again. Guesses that gain less than that are not made."""
    governor = Governor()
    for _ in range(200):
        governor.plain(STEP)
    for place in range(60):
        right = place % 3 == 0
        governor.stepped(1.1 * STEP, 1, [Check(BAD, 1, right)], 1 + right)
        governor.stepped(behind * STEP, 1, [], 1)
    assert governor.parked(BAD) == (behind > 1)


def test_first_cost_of_more_rows_is_that_of_fewer() -> None:
    """So that a wide first pass is not made where it cannot gain."""
    governor = Governor()
    run(governor, 2000, {GOOD: 0.3}, 1.0, 1)
    governor.set_rows(4)
    for _ in range(10):
        governor.plain(STEP)
    assert governor.count(GOOD, MOST_GUESSES) == 0


def test_pass_is_as_wide_as_gains_most_for_its_rows() -> None:
    governor = Governor()
    run_together(governor, 2000, [1.0, 1.0], 0.2, 1)
    both = [(Source(3, "0"), 8), (Source(3, "1"), 8)]
    assert governor.width(both) == 8
    governor.set_rows(2)
    assert governor.width([(Source(3, "0"), 2)]) <= 2


def test_nothing_is_guessed_before_a_plain_step_is_known() -> None:
    governor = Governor()
    assert governor.count(GOOD, MOST_GUESSES) == 0
    governor.guessed(STEP, [Check(GOOD, 4, 4)], 5)  # asked for by the request, whatever it gains
    assert governor.gain(GOOD) == 0
    assert (governor.records[GOOD].guessed, governor.records[GOOD].accepted) == (4, 4)


def test_clock_that_stands_still_is_no_division_by_zero() -> None:
    governor = Governor()
    for _ in range(10):
        governor.plain(0.0)
    governor.guessed(0.0, [Check(GOOD, 4, 2)], 3)
    assert governor.gain(GOOD) == 0
    assert governor.count(GOOD, MOST_GUESSES) >= 0


def test_no_more_is_guessed_than_allowed() -> None:
    governor = Governor()
    run(governor, 1000, {GOOD: 1.0}, 0.01, 1)
    assert governor.count(GOOD, 3) == 2  # a power of two
    assert governor.count(GOOD, 0) == 0


def test_governor_of_a_model_is_kept_among_the_latest() -> None:
    governors = Governors()
    first = governors.of("first")
    assert governors.of("first") is first
    for model in range(70):
        governors.of(model)
        governors.of("second")
    assert governors.of("second") is governors.of("second")
    assert governors.of("first") is not first
    assert len(list(governors)) <= 64


@pytest.mark.parametrize("cost", [0.2, 0.5, 1.0])
def test_source_that_rests_is_allowed_no_guess_meanwhile(cost: float) -> None:
    """So nothing is lost by not asking it; and it rests for nearly all steps between two tries."""
    governor = Governor()
    run(governor, 500, {BAD: 0.0}, cost, 1)
    rested = asked = 0
    for _ in range(500):
        rest = governor.rest(BAD)
        for _ in range(rest):
            governor.plain(STEP)
            assert not governor.count(BAD, MOST_GUESSES) or governor.rest(BAD) == 0
        rested += rest
        count = governor.count(BAD, MOST_GUESSES)
        asked += 1
        if count:
            governor.guessed(STEP * (1 + cost * count), [Check(BAD, count, 0)], 1)
        else:
            governor.plain(STEP)
    assert rested > 3 * asked


def test_source_that_may_gain_does_not_rest() -> None:
    governor = Governor()
    assert governor.rest(GOOD) == 0
    run(governor, 500, {BAD: 0.0}, 0.2, 1)
    both, bad = Rests(governor, GOOD, BAD), Rests(governor, BAD)
    governor.guessed(STEP * 2, [Check(BAD, 1, 0)], 1)
    while both.count(BAD, MOST_GUESSES) or bad.count(BAD, MOST_GUESSES):
        governor.guessed(STEP * 2, [Check(BAD, 1, 0)], 1)
    assert [rests.step() for rests in (both, bad)] == [False, True]
