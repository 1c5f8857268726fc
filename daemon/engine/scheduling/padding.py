"""
Decides which prompt lengths may share a batch, by a bound on padding. Pure.

Rows of a batch are padded to the longest, so a batch of unequal rows reserves KV that holds nothing.
"""

from __future__ import annotations

from collections.abc import Collection

MOST_PADDING = 1.25
"""The padded KV of a batch is at most this many times the sum of its rows."""

FREE_PADDING = 64
"""Tokens a row that are allowed on top. A cache grows by 256 at a time anyway, and short rows would seldom agree."""


def fits(lengths: Collection[int]) -> bool:
    """Whether rows of such lengths, in tokens, may share a batch."""
    return max(lengths) * len(lengths) <= MOST_PADDING * sum(lengths) + FREE_PADDING * len(lengths)
