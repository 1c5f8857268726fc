"""
What the ranks of a group make of the work of their disks. Pure.

Each rank does the work in its own directory, and tells what it found, as JSON. The first rank makes one value of all,
and every rank acts on that one instead of its own: so all decide alike.

    work           | told                           | all act on
    ---------------|--------------------------------|---------------------------------------------------------
    scan           | pieces, hours, disk, the note  | the pieces that all have; the least space and hours left
    write          | bytes of the file              | the most
    index, space   | space                          | the least
    read           | what its parts are             | that they are the same, else an error
    others         | that it is done                | that all are done

An error of one rank is that of all. It does not come here: work that failed at a rank has failed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from daemon.kv.disk.found import Found
from daemon.kv.disk.limits import Space, WriteLimit, least
from daemon.kv.disk.piece import Part, Piece, is_file_name

T = TypeVar("T")

_DIGITS = 16
"""Digits of the digest of a piece's facts: names tell pieces apart already."""

_OWN = ("shape",)
"""What ranks may know otherwise about a part: with other numbers of layers, arrays have other shapes."""


class DifferError(ValueError):
    """Ranks did other work, or have other things where they must have the same."""


def told(result: object) -> bytes:
    """Return what the other ranks must know of a result."""
    match result:
        case Found():
            return _encoded("scan", _scan_told(result))
        case Space():
            return _encoded("space", _numbers(result))
        case int():
            return _encoded("write", result)
        case list():
            return _encoded("read", _parts_told(result))
        case _:
            return _encoded("done", None)


def merged(values: Sequence[bytes]) -> bytes:
    """
    Return what all ranks act on.

    Args:
        values: What each rank told, the first rank first.

    Raises:
        DifferError: If they did other work, read other parts, or name what cannot be a piece.
    """
    kinds, every = zip(*map(json.loads, values), strict=True)
    match kinds[0] if len(set(kinds)) == 1 else None:
        case "scan":
            return _encoded("scan", _scan_merged(every))
        case "space":
            return _encoded("space", _numbers(least([Space(*each) for each in every])))
        case "write":
            return _encoded("write", max(every))
        case "read" | "done" as kind if all(each == every[0] for each in every):
            return _encoded(kind, every[0])
        case "read":
            raise DifferError("the file has other parts than those of the other ranks")
        case _:
            raise DifferError("the ranks did other work")


def adopted(result: T, value: bytes) -> T:
    """
    Return what a rank acts on: what all have in common, with what only this rank needs to know of its own.

    Raises:
        DifferError: If it names what cannot be a piece.
    """
    _, common = json.loads(value)
    match result:
        case Found():
            return cast("T", _scan_adopted(result, common))
        case Space():
            return cast("T", Space(*common))
        case int():
            return cast("T", common)
        case _:
            return result


def _encoded(kind: str, body: Any) -> bytes:
    return json.dumps([kind, body], separators=(",", ":")).encode()


def _scan_told(found: Found) -> dict[str, Any]:
    pieces = {piece.name: [_facts(piece), piece.nbytes, used] for piece, used in found.pieces}
    return {
        "pieces": pieces,
        "left": found.left,
        "hours": found.hours,
        "disk": [found.directory, *_numbers(found.space)],
        "noted": found.noted,
    }


def _scan_merged(every: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first, *others = [each["pieces"] for each in every]
    pieces = {}
    for name, (facts, _, used) in first.items():
        if all(name in other and other[name][0] == facts for other in others):
            # The times of use are those of the first rank: so are those of the clock that they are compared with.
            pieces[name] = [max(each["pieces"][name][1] for each in every), used]
    names = {name for each in every for name in (*each["pieces"], *each["left"])}
    _check(names)
    return {
        "pieces": pieces,
        "orphans": sorted(names - pieces.keys()),
        "hours": WriteLimit.of_all(each["hours"] for each in every).pairs,
        "disks": [each["disk"] for each in every],
        "noted": any(each["noted"] for each in every),
    }


def _scan_adopted(found: Found, common: Mapping[str, Any]) -> Found:
    _check(common["orphans"])
    own = {piece.name: piece for piece, _ in found.pieces}
    pieces = [(replace(own[name], nbytes=nbytes), used) for name, (nbytes, used) in common["pieces"].items()]
    disks = [(directory, Space(*numbers)) for directory, *numbers in common["disks"]]
    return replace(
        found,
        pieces=pieces,
        orphans=common["orphans"],
        hours=common["hours"],
        space=least([space for _, space in disks]),
        disks=disks,
        noted=common["noted"],
    )


def _check(names: Iterable[str]) -> None:
    """Refuse names of files elsewhere: all ranks remove what one of them lacks."""
    if not all(map(is_file_name, names)):
        raise DifferError("a rank named a file that is not in the directory of the disk tier")


def _facts(piece: Piece) -> str:
    """Return a digest of what decisions depend on, and the name does not tell."""
    facts = (piece.namespace, piece.model, piece.start, piece.parent, piece.hashes, piece.anywhere, piece.tail)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:_DIGITS]


def _parts_told(parts: Sequence[Part]) -> str:
    """Return a digest of what turns depend on: each moves a part."""
    about = [{key: value for key, value in part.about.items() if key not in _OWN} for part in parts]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def _numbers(space: Space) -> list[int]:
    return [space.total, space.free]
