"""A dictionary that forgets the entries that were used longest ago."""

from __future__ import annotations

from daemon.cache.lru_dict import LruDict


def test_the_entry_that_was_used_longest_ago_is_forgotten() -> None:
    numbers = LruDict[str, int](2, [("a", 1), ("b", 2)])
    assert numbers.get("a") == 1

    numbers.put("c", 3)

    assert numbers.copy() == {"a": 1, "c": 3}
    assert numbers.get("b") is None
    assert "b" not in numbers
    assert len(numbers) == 2


def test_an_entry_that_is_set_again_counts_as_used() -> None:
    numbers = LruDict[str, int](2, [("a", 1), ("b", 2)])

    numbers.put("a", 4)
    numbers.put("c", 3)
    numbers.discard("c")
    numbers.discard("not there")

    assert numbers.copy() == {"a": 4}
