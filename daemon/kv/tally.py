"""Tallies: what one namespace of the trie stores, and how often it was of use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Tally:
    """
    Running totals of one namespace, from its first block until it stores nothing any more.

    Attributes:
        partition: Whose share of the budget it counts against.
        blocks: Blocks that a lookup can find.
        hits: Lookups whose prefix was reused.
        tokens_reused: Tokens whose KV was reused.
    """

    partition: str = ""
    blocks: int = 0
    hits: int = 0
    tokens_reused: int = 0
