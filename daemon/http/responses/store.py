"""
Answers that are kept: in the memory of this process, bounded by count and bytes, and gone with it.

An answer is kept with its whole conversation, so that one that goes on needs nothing else. Items are kept as JSON: that
is what their size is counted in. The answer that was used longest ago goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

MOST_ANSWERS = 1000
"""Most answers that are kept."""
MOST_BYTES = 32 << 20
"""Most bytes of all of them, each with its conversation."""


@dataclass(frozen=True, slots=True)
class Kept:
    """
    An answer, as JSON.

    Attributes:
        response: The answer.
        given: The items that it answers, with those of the conversation before; each has an id.
        output: The items of the answer.
    """

    response: bytes
    given: tuple[bytes, ...]
    output: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Its bytes. What it shares with earlier answers is counted again, as it stays when they go."""
        return len(self.response) + sum(map(len, self.given)) + sum(map(len, self.output))


class Store:
    """Answers by their id."""

    def __init__(self, answers: int = MOST_ANSWERS, size: int = MOST_BYTES) -> None:
        self._most_answers = answers
        self._most_bytes = size
        self._bytes = 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._items: dict[str, tuple[str, int]] = {}

    def put(self, name: str, kept: Kept, item_ids: Iterable[str]) -> None:
        """
        Keep an answer, unless it alone is too large.

        Args:
            name: Its id.
            kept: The answer.
            item_ids: The ids of the items of its output.
        """
        if kept.size > self._most_bytes:
            return
        self._kept[name] = kept
        self._bytes += kept.size
        self._items.update({item: (name, index) for index, item in enumerate(item_ids)})
        while len(self._kept) > self._most_answers or self._bytes > self._most_bytes:
            self.drop(next(iter(self._kept)))

    def get(self, name: str) -> Kept | None:
        """Return an answer, which counts as a use of it; None if it is not kept."""
        if name in self._kept:
            self._kept.move_to_end(name)
        return self._kept.get(name)

    def item(self, item_id: str) -> bytes | None:
        """Return an item of the output of an answer; None if it is not kept."""
        if (place := self._items.get(item_id)) is None or (kept := self.get(place[0])) is None:
            return None
        return kept.output[place[1]]

    def drop(self, name: str) -> bool:
        """Forget an answer; returns whether it was kept."""
        if (kept := self._kept.pop(name, None)) is None:
            return False
        self._bytes -= kept.size
        self._items = {item: place for item, place in self._items.items() if place[0] != name}
        return True
