"""Prompts become resumable at a few positions, chosen for the requests that are likely to follow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.kv.resume import INTERVAL, resume_points

END = 2


def points(prompt: list[int], cached: int = 0, forks: tuple[int, ...] = (), ends: tuple[int, ...] = ()) -> list[int]:
    """Return the resume points of a prompt, all tokens of which are computed."""
    return resume_points(prompt, cached, forks, ends, len(prompt))


def test_end_of_a_prompt_is_a_resume_point() -> None:
    """And the end of a block before its last token: the same prompt comes again, or goes on in another way."""
    assert points([5] * 100) == [96, 100]
    assert points([5] * 97) == [96, 97]
    assert points([5] * 96) == [80, 96]


def test_token_left_to_the_decoder_is_none() -> None:
    assert resume_points([5] * 100, 0, (), (), 99) == [96, 99]
    assert resume_points([5] * 97, 0, (), (), 96) == [96]


def test_prompt_below_a_block_has_no_resume_point() -> None:
    assert points([5] * 15) == []
    assert points([]) == []


def test_message_ends_are_resume_points() -> None:
    messages = [*[5] * 40, END, *[5] * 200, END, *[5] * 40, END, *[5] * 150]

    assert points(messages, ends=(END,)) == [41, 283, 432, 433]


@pytest.mark.parametrize(("behind", "found"), [(1, [41, 82]), (16, [41, 82]), (17, [41, 82, 99])])
def test_message_that_ends_within_a_block_of_the_end_is_its_point(behind: int, found: list[int]) -> None:
    """What a template puts behind it is short, and rewritten by the next turn."""
    assert points([*[5] * 40, END, *[5] * 40, END, *[5] * behind], ends=(END,)) == found


def test_forks_from_other_prompts_are_resume_points() -> None:
    assert points([5] * 400, 32, (80,)) == [80, 384, 400]
    assert points([5] * 400, 32, (16, 80, 128, 80)) == [80, 128, 384, 400]


@pytest.mark.parametrize(("cached", "found"), [(271, [384, 400]), (272, [400]), (384, [400])])
def test_point_near_the_end_saves_another(cached: int, found: list[int]) -> None:
    """A pass is split at each point: a turn of few tokens is one pass."""
    assert points([5] * 400, cached) == found
    assert points([5] * 400, 32, (cached,)) == sorted({cached, *found})


def test_message_that_ends_in_the_first_block_saves_no_point() -> None:
    assert points([*[5] * 10, END, *[5] * 22], ends=(END,)) == [32, 33]


def test_restored_part_gets_no_new_resume_point() -> None:
    messages = [*[5] * 40, END, *[5] * 40, END, *[5] * 40]

    assert points(messages, 82, (80,), (END,)) == [122]


def test_resume_points_get_denser_towards_the_end() -> None:
    assert points([5] * (20 * INTERVAL + 1)) == [
        *(4 * INTERVAL, 12 * INTERVAL, 16 * INTERVAL, 18 * INTERVAL, 19 * INTERVAL),
        *(20 * INTERVAL, 20 * INTERVAL + 1),
    ]


@given(
    length=st.integers(0, 40_000), cached=st.integers(0, 1600), branch=st.integers(0, 40_000), end=st.integers(1, 5000)
)
def test_resume_points_are_few_and_ascending(length: int, cached: int, branch: int, end: int) -> None:
    prompt = [END if index % end == 0 else 5 for index in range(length)]

    found = points(prompt, cached, (min(branch, length),), (END,))

    assert found == sorted(set(found))
    assert all(max(cached, 15) < point <= length for point in found)
    assert len(found) <= 5 + max(1, length // INTERVAL).bit_length()
