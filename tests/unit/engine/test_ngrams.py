"""The index of n-grams finds the longest of the latest matches, as a search through all tokens does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.engine.scheduling.ngrams import DEPTH, LEAST, MOST, NgramIndex

TOKENS = st.lists(st.integers(0, 2), max_size=80)


def common(tokens: list[int], place: int) -> int:
    """Count the tokens that end at a place and are equal to the last ones."""
    past, last = tokens[: place + 1][::-1], tokens[::-1]
    return next((i for i, (a, b) in enumerate(zip(past, last, strict=False)) if a != b), len(past))


def searched(tokens: list[int]) -> tuple[int, int]:
    """Return the match that the index promises, by a search through all tokens."""
    places = [place for place in range(len(tokens) - 1) if common(tokens, place) >= LEAST][::-1][:DEPTH]
    lengths = [(min(MOST, common(tokens, place)), place + 1) for place in places]
    return max(lengths, default=(0, 0))


def index_of(tokens: list[int]) -> NgramIndex:
    """Return an index of tokens."""
    index = NgramIndex()
    index.extend(tokens)
    return index


@given(TOKENS)
def test_match_is_the_one_that_a_search_finds(tokens: list[int]) -> None:
    assert index_of(tokens).match() == searched(tokens)


@given(TOKENS, st.integers(0, 12))
def test_guess_is_what_followed_the_match(tokens: list[int], count: int) -> None:
    """Behind the last token it goes on with itself, as the sequence would if it kept repeating."""
    index = index_of(tokens)
    length, after = index.match()
    guess = index.following(after, count) if length else []
    assert all((tokens + guess)[len(tokens) + i] == (tokens + guess)[after + i] for i in range(len(guess)))
    assert len(guess) == (count if length else 0)
    assert after < len(tokens) or not length


def test_longer_match_wins_over_the_later_one() -> None:
    tokens = [9, 1, 2, 3, 4, 8, 1, 2, 3, 5, 9, 1, 2, 3]
    index = index_of(tokens)
    assert index.match() == (4, 4)
    assert index.following(4, 2) == [4, 8]


def test_ids_that_share_low_bits_are_told_apart() -> None:
    large = (1 << 20) + 5
    assert index_of([5, 6, 7, 1, large, 6, 7]).match() == (0, 0)


@given(st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=12))
def test_match_follows_each_extension(parts: list[list[int]]) -> None:
    """It is asked for between them, and kept until the next."""
    index, tokens = NgramIndex(), list[int]()
    for part in parts:
        index.extend(part)
        tokens += part
        assert index.match() == index.match() == searched(tokens)
