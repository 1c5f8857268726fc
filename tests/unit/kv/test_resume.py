"""Prompts become resumable at a few positions, chosen for the requests that are likely to follow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.kv.resume import INTERVAL, resume_points

END = 2


def test_resume_point_at_the_end_leaves_one_token() -> None:
    assert resume_points([5] * 100, 0, (), ()) == [96, 99]
    assert resume_points([5] * 97, 0, (), ()) == [96]
    assert resume_points([5] * 96, 0, (), ()) == [80, 95]


def test_prompt_below_a_block_has_no_resume_point() -> None:
    assert resume_points([5] * 16, 0, (), ()) == []
    assert resume_points([], 0, (), ()) == []


def test_message_ends_are_resume_points() -> None:
    messages = [*[5] * 40, END, *[5] * 40, END, *[5] * 40, END, *[5] * 30]

    assert resume_points(messages, 0, (), {END}) == [41, 123, 144, 152]


@pytest.mark.parametrize(("behind", "points"), [(1, [41, 82]), (16, [41, 82]), (17, [41, 82, 96, 98])])
def test_message_that_ends_within_a_block_of_the_end_is_its_point(behind: int, points: list[int]) -> None:
    """What a template puts behind it is short, and rewritten by the next turn."""
    assert resume_points([*[5] * 40, END, *[5] * 40, END, *[5] * behind], 0, (), {END}) == points


def test_forks_from_other_prompts_are_resume_points() -> None:
    assert resume_points([5] * 200, 32, [80], ()) == [80, 192, 199]
    assert resume_points([5] * 200, 32, [16, 80, 128, 80], ()) == [80, 128, 192, 199]


def test_restored_part_gets_no_new_resume_point() -> None:
    messages = [*[5] * 40, END, *[5] * 40, END, *[5] * 40]

    assert resume_points(messages, 82, [80], {END}) == [112, 121]


def test_resume_points_get_denser_towards_the_end() -> None:
    points = resume_points([5] * (20 * INTERVAL + 1), 0, (), ())

    assert points == [4 * INTERVAL, 12 * INTERVAL, 16 * INTERVAL, 18 * INTERVAL, 19 * INTERVAL, 20 * INTERVAL]


@given(
    length=st.integers(0, 40_000), cached=st.integers(0, 1600), branch=st.integers(0, 40_000), end=st.integers(1, 5000)
)
def test_resume_points_are_few_and_ascending(length: int, cached: int, branch: int, end: int) -> None:
    prompt = [END if index % end == 0 else 5 for index in range(length)]

    points = resume_points(prompt, cached, [min(branch, length)], {END})

    assert points == sorted(set(points))
    assert all(max(cached, 15) < point < length for point in points)
    assert len(points) <= 5 + max(1, length // INTERVAL).bit_length()
