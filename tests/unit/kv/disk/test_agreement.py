"""What ranks make of the work of their disks: no more than each has, and the same for all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.kv.disk.agreement import DifferError, adopted, merged, told
from daemon.kv.disk.found import Found
from daemon.kv.disk.limits import Space, WriteLimit, budget, least
from daemon.kv.disk.piece import Part
from tests.unit.kv.disk.pieces import HASHES, PIECE

T = TypeVar("T")

PIECES = [replace(PIECE, start=start, parent=HASHES[start], hashes=(HASHES[start + 1],)) for start in range(6)]

SPACES = st.builds(Space, st.integers(0, 10**13), st.integers(0, 10**13))
HOURS = st.lists(st.tuples(st.integers(470_000, 470_010), st.integers(0, 10**9)).map(list), max_size=4)
HELD = st.dictionaries(
    st.sampled_from(range(len(PIECES))), st.tuples(st.integers(1, 10**7), st.floats(0, 2e9), st.booleans())
)


def found(held: dict[int, tuple[int, float, bool]], hours: list[list[int]], space: Space, noted: bool) -> Found:
    """Return what a scan found; of some pieces the model had another name."""
    pieces = [
        (replace(PIECES[number], nbytes=nbytes, model="org/other" if other else "org/model"), used)
        for number, (nbytes, used, other) in held.items()
    ]
    return Found(pieces=pieces, hours=hours, space=space, noted=noted)


FOUND = st.builds(found, HELD, HOURS, SPACES, st.booleans())


def agreed(results: Sequence[T]) -> list[T]:
    """Return what each rank acts on."""
    common = merged([told(each) for each in results])
    return [adopted(each, common) for each in results]


@given(st.lists(FOUND, min_size=2, max_size=4))
def test_ranks_have_the_pieces_that_all_have(ranks: list[Found]) -> None:
    """With the same facts, in the same order, in the largest size. All others are named, so that all remove them."""
    first, *others = agreed(ranks)
    everywhere = set.intersection(*({(piece.name, piece.model) for piece, _ in each.pieces} for each in ranks))
    assert {(piece.name, piece.model) for piece, _ in first.pieces} == everywhere
    known = {piece.name for each in ranks for piece, _ in each.pieces}
    assert {*first.orphans} == known - {name for name, _ in everywhere}
    for piece, used in first.pieces:
        sizes = [other.nbytes for each in ranks for other, _ in each.pieces if other.name == piece.name]
        assert piece.nbytes == max(sizes)
        assert used in [when for other, when in ranks[0].pieces if other.name == piece.name]
    assert first.noted == any(each.noted for each in ranks)
    for other in others:
        assert (other.pieces, other.orphans, other.hours, other.space, other.noted) == (
            first.pieces, first.orphans, first.hours, first.space, first.noted,
        )  # fmt: skip


def test_each_rank_knows_the_disks_of_all() -> None:
    """The smallest of them counts, and a log line says where it is."""
    disks = [("/first/kv/group", Space(1000, 900)), ("/other/kv/group", Space(100, 50))]
    for each in agreed([Found(directory=directory, space=space) for directory, space in disks]):
        assert each.disks == disks
        assert each.space == least([space for _, space in disks])


def test_file_that_a_rank_could_not_open_is_an_orphan() -> None:
    """No rank can use it alone."""
    whole = Found(pieces=[(PIECES[0], 1.0), (PIECES[1], 1.0)])
    lacking = Found(pieces=[(PIECES[0], 1.0)], left=[PIECES[1].name, "closed.kv"])
    for each in agreed([whole, lacking]):
        assert each.orphans == sorted([PIECES[1].name, "closed.kv"])


@given(st.lists(SPACES, min_size=1, max_size=4), st.none() | st.integers(0, 10**13), st.integers(0, 10**12))
def test_budget_of_all_is_the_smallest(spaces: list[Space], wanted: int | None, used: int) -> None:
    """Whatever the reserve of each disk is, and what is free of it."""
    assert budget(wanted, used, least(spaces)) == min(budget(wanted, used, space) for space in spaces)


@given(st.lists(HOURS, min_size=1, max_size=4), st.integers(0, 10**10), st.integers(0, 10**10))
def test_writes_of_all_are_those_that_each_allows(ranks: list[list[list[int]]], nbytes: int, most: int) -> None:
    """A rank that has lost its index knows of none."""
    now = 470_005 * 3600.0
    if WriteLimit.of_all(ranks).allows(nbytes, most, now):
        assert all(WriteLimit.of_all([pairs]).allows(nbytes, most, now) for pairs in ranks)


def test_largest_file_and_least_space_count() -> None:
    """A rank with more layers has more bytes in a piece."""
    assert agreed([7, 9, 8]) == [9, 9, 9]
    full = Space(100, 5)
    assert agreed([Space(100, 50), full]) == [least([Space(100, 50), full])] * 2
    assert agreed([None, None]) == [None, None]


def test_parts_stay_those_of_each_rank() -> None:
    """Their bytes and shapes are its own; how many there are, and of what, is not."""
    one = [Part({"group": 0, "start": 0, "stop": 4, "array": 0, "shape": [4, 2, 64, 8]}, b"one")]
    other = [Part({"group": 0, "start": 0, "stop": 4, "array": 0, "shape": [2, 2, 64, 8]}, b"other")]
    assert agreed([one, other]) == [one, other]
    with pytest.raises(DifferError, match="other parts"):
        agreed([one, [*other, *other]])


def test_ranks_that_did_other_work_are_told() -> None:
    """Instead of a value that is none."""
    with pytest.raises(DifferError, match="other work"):
        merged([told(7), told(None)])


@pytest.mark.parametrize("name", ["../../mine.kv", "/etc/mine.kv", "mine.txt", "a\\b.kv", "a\0.kv"])
def test_file_elsewhere_is_no_piece(name: str) -> None:
    """All ranks would remove it, as one that not all have."""
    sound = told(Found())
    with pytest.raises(DifferError, match="not in the directory"):
        merged([sound, sound.replace(b'"left":[]', b'"left":' + json.dumps([name]).encode())])
    with pytest.raises(DifferError, match="not in the directory"):
        adopted(Found(), merged([sound] * 2).replace(b'"orphans":[]', b'"orphans":' + json.dumps([name]).encode()))
