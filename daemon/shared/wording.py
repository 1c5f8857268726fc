"""Formats sizes, counts, dates and hints for commands, pages and errors. Sizes are in powers of 1024."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

_UNITS = ("KiB", "MiB", "GiB", "TiB")
_LATEST = 253_402_300_799
"""The last second of the year 9999. Disks and settings may have any time, and later ones have no date."""


def size(nbytes: int) -> str:
    """Return a number of bytes as text: "512 B", "1.5 GiB"."""
    if nbytes < 1024:
        return f"{nbytes} B"
    power = 1
    while nbytes >= 1023.95 * 1024**power and power < len(_UNITS):
        power += 1
    return f"{nbytes / 1024**power:.1f} {_UNITS[power - 1]}"


def sizes_apart(one: int, other: int) -> tuple[str, str]:
    """Return two sizes to be compared as text; to the byte if they would read alike."""
    shown = size(one), size(other)
    return (f"{one:,} B", f"{other:,} B") if one != other and shown[0] == shown[1] else shown


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number of things: "1 block", "1,234 blocks"; `plural` is for nouns that take more than an "s"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def date(seconds: float) -> datetime:
    """Return a time in seconds since 1970 as a date of UTC, or the nearest from 1970 to 9999."""
    return datetime.fromtimestamp(min(max(seconds, 0), _LATEST), UTC)


_LONGEST = 64
"""Characters of a word that are compared: the comparison takes long for long ones, and no name is longer."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question for the known name that is closest to a word: "did you mean auto?"; empty if none is close."""
    from difflib import get_close_matches

    names = {name.lower(): name for name in known}
    near = get_close_matches(word[:_LONGEST].lower(), names, n=1)
    return f"did you mean {names[near[0]]}?" if near else ""
