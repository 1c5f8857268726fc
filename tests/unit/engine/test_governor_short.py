"""A first answer of a model is short: guessing loses next to nothing of it where it loses, and gains where it gains."""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import mean

import pytest

from daemon.engine.scheduling.governor import MOST_GUESSES, Check, Governor, Source

TOKENS = 300
SEEN, UNSEEN = Source(3, "short"), Source(5)
"""A source whose guesses are compared with what is decoded, and one whose guesses cost a pass each."""

LINES: dict[str, Callable[[int], float]] = {
    "bound by weights": lambda fed: 1 + 0.02 * (fed - 1),
    "bound by products": lambda fed: 0.1 + 0.9 * fed,
    "other kernels for several tokens": lambda fed: 1.0 if fed == 1 else 2.8 + 0.02 * fed,
}
"""What a pass takes, in plain steps, by the tokens of a row."""


def answered(
    governor: Governor, line: Callable[[int], float], source: Source, chance: float, seed: int, rows: int = 1
) -> tuple[float, int]:
    """
    Decode an answer in simulated time.

    Args:
        governor: The governor of its model.
        line: What a pass takes.
        source: What guesses.
        chance: The chance that a guess is right.
        seed: Of what is right, and of the noise of what is measured.
        rows: Rows that share its passes; the first one alone guesses.

    Returns:
        The time, divided by that without guesses, and the tokens before the first guess.
    """
    luck, seconds, done, tokens, began = random.Random(seed), 0.0, 0, 0, TOKENS
    text = [luck.random() < chance for _ in range(TOKENS + MOST_GUESSES)]
    while done < TOKENS:
        governor.set_rows(rows)
        width = governor.count(source, MOST_GUESSES)
        width = min(width, governor.width([(source, width)])) if rows > 1 and width else width
        right = next((place for place in range(width) if not text[done + place]), width)
        took = line(1 + width) * luck.uniform(0.97, 1.03)
        began = min(began, done) if width else began
        for told in text[done : done + right + 1] if source == SEEN else ():
            governor.see(source, told)
        governor.stepped(took, rows, [Check(source, width, right)] if width else [], rows + right)
        seconds += took
        tokens += rows + right
        done += right + 1
    return seconds * rows / tokens, began


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("source", [SEEN, UNSEEN])
def test_guesses_that_lose_cost_three_percent_of_a_first_answer_at_most(line: str, source: Source) -> None:
    for seed, chance in enumerate([0.0, 0.1, 0.3, 0.5, 0.7] * 4):
        ratio, _ = answered(Governor(), LINES[line], source, chance, seed)
        assert ratio <= 1.03, f"chance {chance}, seed {seed}"


@pytest.mark.parametrize("line", LINES)
def test_tries_of_all_batch_sizes_lose_three_percent_together(line: str) -> None:
    for seed, chance in enumerate([0.0, 0.1, 0.2, 0.3] * 5):
        governor = Governor()
        ratios = [answered(governor, LINES[line], UNSEEN, chance, seed, rows)[0] for rows in (1, 2, 4)]
        assert mean(ratios) <= 1.02, f"chance {chance}, seed {seed}: {ratios}"


def test_guesses_known_to_be_wrong_are_not_tried_again() -> None:
    """What was decoded tells it: no pass is needed."""
    governor = Governor()
    answered(governor, LINES["bound by products"], SEEN, 0.1, 1)
    tried = governor.records[SEEN].guessed
    for seed in range(10):
        answered(governor, LINES["bound by products"], SEEN, 0.1, seed)
    assert governor.records[SEEN].guessed - tried <= 1


@pytest.mark.parametrize(("line", "ratio"), [("bound by weights", 0.35), ("other kernels for several tokens", 0.75)])
def test_guesses_that_gain_do_so_from_the_first_tokens_on(line: str, ratio: float) -> None:
    answers = [answered(Governor(), LINES[line], SEEN, 0.97, seed) for seed in range(20)]
    assert max(began for _, began in answers) <= 8
    assert mean(took for took, _ in answers) <= ratio


def test_source_that_made_no_guess_has_no_record_to_show() -> None:
    governor = Governor()
    governor.see(SEEN, True)
    assert governor.kinds() == {}
    governor.counted([Check(SEEN, 1, 1)])
    assert governor.kinds() == {SEEN.kind: [SEEN]}


def test_wait_for_a_token_that_was_guessed_wrongly_is_paid() -> None:
    """The pass after the waited one begins late; the step behind it is as long as any."""
    waits, plain = Governor(), Governor()
    for governor in (waits, plain):
        for _ in range(400):
            governor.stepped(1.0, 1, [], 1)
    steps = 0
    while waits.count(UNSEEN, 1) and steps < 400:
        waits.stepped(1.2, 1, [Check(UNSEEN, 0, 0)], 1)
        plain.stepped(1.0, 1, [], 1)
        steps += 1
    assert steps < 40
    assert plain.count(UNSEEN, 1)
