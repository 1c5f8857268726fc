"""Prompts become resumable at a few positions, chosen for the requests that are likely to follow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.kv.resume import INTERVAL, resume_points

END = 2


def test_the_end_of_a_prompt_is_one_floored_to_a_block_with_a_token_left_to_compute() -> None:
    assert resume_points([5] * 100, 0, (), ()) == [96]
    assert resume_points([5] * 97, 0, (), ()) == [96]
    assert resume_points([5] * 96, 0, (), ()) == [80]


def test_a_prompt_of_less_than_a_block_has_none() -> None:
    assert resume_points([5] * 16, 0, (), ()) == []
    assert resume_points([], 0, (), ()) == []


def test_the_ends_of_the_first_and_of_the_last_message_are_among_them() -> None:
    messages = [*[5] * 40, END, *[5] * 40, END, *[5] * 40, END, *[5] * 30]

    assert resume_points(messages, 0, (), {END}) == [32, 112, 144]


def test_so_are_the_positions_where_a_prompt_parts_from_others() -> None:
    assert resume_points([5] * 200, 32, [80], ()) == [80, 192]
    assert resume_points([5] * 200, 32, [16, 80, 128, 80], ()) == [80, 128, 192]


def test_nothing_that_was_restored_is_made_resumable_again() -> None:
    messages = [*[5] * 40, END, *[5] * 40, END, *[5] * 40]

    assert resume_points(messages, 80, [80], {END}) == [112]


def test_a_long_prompt_has_more_of_them_closer_together_towards_its_end() -> None:
    points = resume_points([5] * (20 * INTERVAL + 1), 0, (), ())

    assert points == [4 * INTERVAL, 12 * INTERVAL, 16 * INTERVAL, 18 * INTERVAL, 19 * INTERVAL, 20 * INTERVAL]


@given(
    length=st.integers(0, 40_000), cached=st.integers(0, 100), branch=st.integers(0, 40_000), end=st.integers(1, 5000)
)
def test_they_are_few_ascending_and_within_the_prompt(length: int, cached: int, branch: int, end: int) -> None:
    prompt = [END if index % end == 0 else 5 for index in range(length)]

    points = resume_points(prompt, 16 * cached, [min(branch, length)], {END})

    assert points == sorted(set(points))
    assert all(16 * cached < point < length and point % 16 == 0 for point in points)
    assert len(points) <= 4 + max(1, length // INTERVAL).bit_length()
