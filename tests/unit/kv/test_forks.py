"""Where prompts diverge, which of these positions get a resume point, and which prompt has to be computed first."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.kv import forks as module
from daemon.kv.forks import MOST_FORKS, Beginning, fork, forks, needed_first
from daemon.kv.keys import BLOCK_TOKENS

NAMESPACE = "model/salt"


def ids(count: int, seed: int = 0) -> list[int]:
    """Return `count` tokens; prompts of different seeds share no block."""
    return [1000 * seed + index for index in range(count)]


def beginning(tokens: list[int], namespace: str = NAMESPACE) -> Beginning:
    """Return the part of a prompt that other prompts may share."""
    return Beginning(namespace, tokens)


def by_token(one: list[int], other: list[int]) -> int:
    """Return where two prompts diverge, in tokens of whole blocks, by comparing token after token."""
    most = min(len(one), len(other)) - 1
    same = next((index for index in range(most) if one[index] != other[index]), max(0, most))
    return same - same % BLOCK_TOKENS


@dataclass
class Leader:
    """A prompt that is being computed."""

    beginning: Beginning
    done: int = 0
    stored: int = 0


prompts = st.builds(
    lambda common, end, seed: ids(common) + ids(end, seed), st.integers(0, 300), st.integers(0, 80), st.integers(1, 3)
)
"""Prompts that share all of their blocks, many of them, or none."""


@given(one=prompts, other=prompts, beyond=st.integers(0, 320))
def test_prompts_fork_at_whole_blocks(one: list[int], other: list[int], beyond: int) -> None:
    """The last token of a prompt does not count, because it is always computed. Neither do tokens before `beyond`."""
    expected = by_token(one, other)
    assert fork(beginning(one), beginning(other), beyond) == (expected if expected > beyond else 0)


def test_prompts_of_other_namespaces_have_no_fork() -> None:
    assert fork(beginning(ids(100)), beginning(ids(100), "model/other")) == 0


def test_fork_is_the_first_divergence_only() -> None:
    """The block that is compared first may be equal by chance."""
    one, other = ids(100), [9, *ids(100)[1:]]
    assert fork(beginning(one), beginning(other), 32) == 0


def test_fork_search_looks_at_one_block_per_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A pair that shares only stored tokens costs a comparison of one block, for prompts of any length. Otherwise the
    cost is a few comparisons, of not much more than what they share.
    """
    compared: list[int] = []
    agree = module._agree

    def counted(one: Beginning, other: Beginning, start: int, stop: int) -> bool:
        compared.append(stop - start)
        return agree(one, other, start, stop)

    monkeypatch.setattr(module, "_agree", counted)
    common = ids(64_000)
    waiting = [beginning(common + ids(500, seed)) for seed in range(100, 200)]
    leader = beginning(common + ids(500, 99))
    assert forks(leader, waiting, beyond=64_000) == []
    assert not compared
    assert forks(leader, waiting) == [64_000]
    assert len(compared) <= 30 * len(waiting)
    assert sum(compared) <= 3 * len(waiting) * (64_000 // BLOCK_TOKENS)


def test_prompt_is_resumable_at_each_waiting_fork() -> None:
    leader = beginning(ids(200))
    waiting = [beginning(ids(count) + ids(30, 5)) for count in (70, 70, 130, 5)]
    assert forks(leader, waiting) == [64, 128]
    assert forks(leader, waiting, beyond=64) == [128]


def test_resume_points_that_save_most_are_kept() -> None:
    """A fork with more followers, or far from the fork before it, stays."""
    leader = beginning(ids(1600))
    near = [beginning(ids(800 + 16 * index) + ids(30, 5)) for index in range(1, 12)]
    wanted = [beginning(ids(880) + ids(30, 5)) for _ in range(9)]
    far = beginning(ids(400) + ids(30, 5))
    chosen = forks(leader, [*near, *wanted, far])
    assert len(chosen) == MOST_FORKS
    assert {400, 880} <= set(chosen)


@given(leader=prompts, waiting=st.lists(prompts, max_size=20), beyond=st.integers(0, 20))
def test_resume_points_are_few_ascending_forks(leader: list[int], waiting: list[list[int]], beyond: int) -> None:
    chosen = forks(beginning(leader), map(beginning, waiting), beyond)
    assert len(chosen) <= MOST_FORKS
    assert all(one < other for one, other in pairwise(chosen))
    assert set(chosen) <= {by_token(leader, other) for other in waiting} - set(range(beyond + 1))


def test_prompt_with_the_longest_prefill_leads() -> None:
    follower = beginning(ids(300))
    some = Leader(beginning(ids(100) + ids(99, 1)), done=32, stored=32)
    more = Leader(beginning(ids(200) + ids(99, 1)), done=96, stored=96)
    assert needed_first(follower, [some, more]) == ([], more)
    assert needed_first(follower, [more, some]) == ([], more)


def test_unstored_computed_prefix_is_stored_first() -> None:
    follower = beginning(ids(300))
    past = Leader(beginning(ids(100) + ids(400, 1)), done=256, stored=0)
    assert needed_first(follower, [past]) == ([past], None)
    past.stored = 256
    assert needed_first(follower, [past]) == ([], None)


def test_no_prompt_waits_for_a_small_shared_prefix() -> None:
    follower, leader = beginning(ids(300)), Leader(beginning(ids(100) + ids(99, 1)))
    assert needed_first(follower, [leader], shortest=97) == ([], None)
    assert needed_first(follower, [leader], shortest=96) == ([], leader)


def test_prompt_without_a_leader_does_not_wait() -> None:
    leaders = [Leader(beginning(ids(300, 7))), Leader(beginning(ids(300), "model/other"))]
    assert needed_first(beginning(ids(300)), leaders) == ([], None)
