"""Prompts of ids that do not repeat themselves."""

from __future__ import annotations

VOCABULARY = 700


def ids(count: int, salt: int = 0) -> list[int]:
    """Return a prompt that does not repeat itself."""
    return [(i * i + 7 * i + i // 5 + salt * (i + 1)) % VOCABULARY + 3 for i in range(count)]


def apart(count: int, seed: int) -> list[int]:
    """Return so many tokens; another seed shares none of their blocks."""
    return [5 + (i * i + 3 * i + i // 7 + 101 * seed) % 700 for i in range(count)]
