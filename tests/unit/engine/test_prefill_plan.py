"""The plan of a prefill turn: whose prompt is next, what it costs, and which prompts share a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from daemon.engine.scheduling.policy import AIM_SECONDS, LEAST_COST, Allowance, Turns
from daemon.engine.scheduling.prefill_plan import PASS_TOKENS, PrefillTurn, can_share

CHUNK = 256
BESIDE, IDLE = Allowance.beside(0.0), Allowance.beside(None)


@dataclass(eq=False)
class Prefill:
    """A prompt of which nothing is cached."""

    length: int
    model_key: str = "m"
    namespace: str = "m"
    program: str = ""
    priority: int = 0

    @property
    def remaining(self) -> int:
        """All but the last token."""
        return self.length - 1

    @property
    def pools(self) -> bool:
        """Whether it computes hidden states."""
        return False

    @property
    def short(self) -> bool:
        """Whether it may share a pass."""
        return self.remaining <= 128

    def cost(self, allowance: Allowance) -> float:
        """Return the cost of all of it, a chunk's at most."""
        return allowance.cost(min(self.remaining, CHUNK), CHUNK)


def run(prefills: list[Prefill], allowance: Allowance, most: int = 1000) -> list[list[Prefill]]:
    """Return the groups that a turn computes, if each prompt is done after its first pass."""
    turn: PrefillTurn[Prefill] = PrefillTurn(allowance, Turns(), lambda _model, _seconds: most)
    left, groups = list(prefills), []
    while not turn.over:
        first = turn.first(left)
        group = turn.flush() if first is None else turn.place(first)
        if first is None and not group:
            break
        left = [prefill for prefill in left if prefill not in group]
        groups.append(group)
    return [group for group in [*groups, turn.flush()] if group]


def test_short_prompts_form_one_group() -> None:
    prefills = [Prefill(30) for _ in range(5)]
    assert run(prefills, IDLE) == [prefills]


def test_a_long_prompt_is_a_group_of_its_own() -> None:
    before, long, after = Prefill(30), Prefill(200), Prefill(30)
    assert run([before, long, after], IDLE) == [[before], [long], [after]]


def test_a_group_holds_no_more_tokens_than_its_pass_has_time_for() -> None:
    """And its rows have their first tokens before others are computed: the turn ends."""
    prefills = [Prefill(31) for _ in range(4)]
    assert run(prefills, IDLE, most=60) == [prefills[:2]]


def test_a_turn_ends_behind_a_pass_that_prompts_share() -> None:
    short, long = [Prefill(30), Prefill(30)], Prefill(200)
    assert run([*short, long], IDLE) == [short]
    assert run([long, *short], IDLE) == [[long], short]


def test_eight_prompts_of_least_cost_fill_a_chunk_beside_streams() -> None:
    """Their costs are floats, and their sum is compared as if it were exact."""
    prefills = [Prefill(2) for _ in range(20)]
    assert 8 * LEAST_COST == AIM_SECONDS
    assert [len(group) for group in run(prefills, BESIDE)] == [8]


def test_a_prompt_that_fills_its_turn_is_the_last() -> None:
    first, second = Prefill(1000), Prefill(1000)
    assert run([first, second], BESIDE) == [[first]]
    assert run([first, second], IDLE) == [[first]]


def test_a_turn_ends_before_a_prompt_that_costs_too_much() -> None:
    """It keeps its place: a cheaper one behind it does not pass."""
    first, second, third = Prefill(30), Prefill(1000), Prefill(30)
    assert run([first, second, third], BESIDE) == [[first]]


def test_prompts_of_two_models_share_no_pass() -> None:
    assert not can_share([Prefill(30, "m"), Prefill(30, "n")], 1000)
    assert can_share([Prefill(200)], 0), "a prompt alone always can"


@given(st.lists(st.integers(2, 129), min_size=2, max_size=20), st.integers(16, 2000))
def test_a_shared_pass_is_bounded_in_tokens_and_in_padding(lengths: list[int], most: int) -> None:
    prefills = [Prefill(length) for length in lengths]
    if can_share(prefills, most):
        remaining = [prefill.remaining for prefill in prefills]
        assert sum(remaining) <= most
        assert max(remaining) * len(remaining) - sum(remaining) <= PASS_TOKENS * len(remaining)


@given(st.lists(st.integers(2, 400), min_size=1, max_size=30), st.sampled_from([BESIDE, IDLE]))
def test_a_turn_costs_no_more_than_its_allowance(lengths: list[int], allowance: Allowance) -> None:
    """And it computes something, unless there is nothing."""
    groups = run([Prefill(length) for length in lengths], allowance)
    assert groups
    assert sum(prefill.cost(allowance) for group in groups for prefill in group) <= allowance.short + 1e-6
