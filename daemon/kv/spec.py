"""Parts: what a stored prefix must consist of before a request can go on from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.nodes import Node


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """
    Layers that share extents.

    Attributes:
        block_bytes: Bytes of one block, all its layers.
        window: Tokens that its layers look back at; None if they look back at everything.
    """

    block_bytes: int
    window: int | None = None

    def visible(self, blocks: int) -> int:
        """Return how many blocks before a position the layers need there."""
        return blocks if self.window is None else min(blocks, -(-self.window // BLOCK_TOKENS))


@dataclass(frozen=True, slots=True)
class PrefixSpec:
    """
    What a prefix of one cache layout consists of.

    Attributes:
        groups: Its layers whose KV is kept in blocks.
        state_bytes: Bytes of a checkpoint of its recurrent layers; 0 if it has none.
    """

    groups: tuple[LayerGroup, ...]
    state_bytes: int = 0

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of the layers that look back at everything."""
        return sum(group.block_bytes for group in self.groups if group.window is None)

    @property
    def windowed(self) -> bool:
        """Whether some layer forgets old tokens."""
        return any(group.window is not None for group in self.groups)

    @property
    def stride(self) -> int:
        """
        After how many tokens of an answer to store again, so that no window forgets a block before it is stored;
        0 if there are none.
        """
        windows = [group.window for group in self.groups if group.window is not None]
        return max(1, min(windows) // 2 // BLOCK_TOKENS) * BLOCK_TOKENS if windows else 0

    @property
    def resumes_anywhere(self) -> bool:
        """Whether every stored block is a position to go on from."""
        return not (self.windowed or self.state_bytes)

    def restorable(self, path: Sequence[Node]) -> int:
        """Return the most blocks of a stored path, from its root, after which a request can go on."""
        blocks = len(path)
        if self.resumes_anywhere:
            return blocks
        while blocks:
            fewer = self._before_what_is_missing(path, blocks)
            if fewer == blocks:
                break
            blocks = fewer
        return blocks

    def _before_what_is_missing(self, path: Sequence[Node], blocks: int) -> int:
        """Return how many blocks of a path come before something that is missing to go on after `blocks`, or those."""
        if self.state_bytes and path[blocks - 1].checkpoint is None:
            return blocks - 1
        for index, group in enumerate(self.groups):
            if group.window is None:
                continue
            for position in range(blocks - 1, blocks - 1 - group.visible(blocks), -1):
                if path[position].extents[index] is None:
                    return position
        return blocks
