"""Breaks answers: characters go, come and change places, marks come twice, the end is cut off."""

from __future__ import annotations

import re
from random import Random

from tests.support.call_values import PIECES

_MARK = re.compile(r"</?[^<>\s]{1,40}>|\[/?[A-Z_]+\]|```|[{}\[\]\"'(),:=]")
"""What a parser looks for."""


def broken(written: str, random: Random) -> str:
    """Return an answer with up to four faults."""
    for _ in range(random.randrange(1, 5)):
        written = random.choice(_FAULTS)(written, random)
    return written


def pieces(written: str, random: Random) -> list[str]:
    """Return an answer in pieces of random lengths, mostly short."""
    most = random.choice([1, 2, 3, 8, 40])
    found, at = [], 0
    while at < len(written):
        size = random.randint(1, most)
        found.append(written[at : at + size])
        at += size
    return found


def _place(written: str, random: Random) -> int:
    return random.randint(0, len(written))


def _deleted(written: str, random: Random) -> str:
    at = _place(written, random)
    return written[:at] + written[at + random.choice([1, 1, 2, 5, 20]) :]


def _inserted(written: str, random: Random) -> str:
    at = _place(written, random)
    piece = random.choice([*PIECES, "\x00", "\x1f", "\ufffd", "\u202e", "\\ud800", "1e999", "\\u00"])
    return written[:at] + piece + written[at:]


def _swapped(written: str, random: Random) -> str:
    first, second, third = sorted(_place(written, random) for _ in range(3))
    return written[:first] + written[second:third] + written[first:second] + written[third:]


def _mark_twice(written: str, random: Random) -> str:
    marks = list(_MARK.finditer(written))
    if not marks:
        return written
    mark, at = random.choice(marks), _place(written, random)
    at = random.choice([mark.end(), at])
    return written[:at] + mark[0] + written[at:]


def _mark_gone(written: str, random: Random) -> str:
    marks = list(_MARK.finditer(written))
    if not marks:
        return written
    mark = random.choice(marks)
    return written[: mark.start()] + written[mark.end() :]


def _cut(written: str, random: Random) -> str:
    return written[: _place(written, random)]


_FAULTS = (_deleted, _inserted, _swapped, _mark_twice, _mark_gone, _cut)
