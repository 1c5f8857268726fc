"""The contract between a model's caches and the prefix cache: what a stored prefix consists of, and its source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.nodes import Checkpoint, Extent, Node


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """
    Layers of equal shape, which share extents.

    Attributes:
        block_bytes: Bytes of one block, all layers of the group together.
        window: Tokens that its layers attend to; None for full attention.
    """

    block_bytes: int
    window: int | None = None

    def visible(self, blocks: int) -> int:
        """Return how many blocks before a position the layers need there."""
        return blocks if self.window is None else min(blocks, -(-self.window // BLOCK_TOKENS))

    def seen(self, tokens: int) -> int:
        """Return how many tokens before a position the layers need there."""
        return tokens if self.window is None else min(tokens, self.window)


@dataclass(frozen=True, slots=True)
class PrefixSpec:
    """
    What a stored prefix of one cache layout consists of.

    Attributes:
        groups: The layers with KV in blocks.
        state_bytes: Bytes of a checkpoint of the recurrent layers; 0 without recurrent layers.
    """

    groups: tuple[LayerGroup, ...]
    state_bytes: int = 0

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of the layers with full attention."""
        return sum(group.block_bytes for group in self.groups if group.window is None)

    def resume_bytes(self, blocks: int) -> int:
        """Return the bytes of the windows and the states that a request needs to go on after so many blocks."""
        windows = (group.block_bytes * group.visible(blocks) for group in self.groups if group.window is not None)
        return self.state_bytes + sum(windows)

    @property
    def windowed(self) -> bool:
        """Whether some layer forgets old tokens."""
        return any(group.window is not None for group in self.groups)

    @property
    def stride(self) -> int:
        """
        Tokens of an answer after which to store again, so that no window forgets a block before it is stored.

        0 if there are no windows.
        """
        windows = [group.window for group in self.groups if group.window is not None]
        return max(1, min(windows) // 2 // BLOCK_TOKENS) * BLOCK_TOKENS if windows else 0

    @property
    def resumes_anywhere(self) -> bool:
        """Whether a request can go on after every stored token."""
        return not (self.windowed or self.state_bytes)

    def resumes_at(self, tail: Node) -> bool:
        """Whether a request can go on after a tail, which has windows and states of its own."""
        return None not in tail.extents and not (self.state_bytes and tail.checkpoint is None)

    def tail_bytes(self, tokens: int, end: int) -> int:
        """Return the bytes of a tail of so many tokens that ends after `end` tokens: its KV, windows and state."""
        seen = (tokens if group.window is None else group.seen(end) for group in self.groups)
        kv = sum(group.block_bytes * each for group, each in zip(self.groups, seen, strict=True))
        return kv // BLOCK_TOKENS + self.state_bytes

    def restorable(self, path: Sequence[Node]) -> int:
        """Return the largest number of blocks of a stored path, from its root, after which a request can go on."""
        blocks = len(path)
        # Each round moves back before a gap, which may move a window onto another gap.
        if self.resumes_anywhere:
            return blocks
        while blocks:
            fewer = self._before_gap(path, blocks)
            if fewer == blocks:
                break
            blocks = fewer
        return blocks

    def _before_gap(self, path: Sequence[Node], blocks: int) -> int:
        """Return how many blocks come before a part that is missing to go on after `blocks`; `blocks` if none is."""
        if self.state_bytes and path[blocks - 1].checkpoint is None:
            return blocks - 1
        for index, group in enumerate(self.groups):
            if group.window is None:
                continue
            for position in range(blocks - 1, blocks - 1 - group.visible(blocks), -1):
                if path[position].extents[index] is None:
                    return position
        return blocks


class NotHeldError(ValueError):
    """A source does not hold these tokens, or no longer: a window has moved past them."""


class KVSource(Protocol):
    """KV that can be copied into the prefix cache: of a running request, or of a state noted earlier."""

    def pack(self, group: int, start: int, stop: int) -> Extent:
        """
        Copy blocks `start` to `stop` of one layer group into an evaluated extent.

        Raises:
            NotHeldError: If it does not hold them, or no longer.
        """

    def tail(self, group: int, first: int, last: int) -> Extent:
        """
        Copy tokens `first` to `last` of one layer group, which end inside a block, into an extent of that block.

        Raises:
            NotHeldError: If it does not hold them, or no longer.
        """

    def checkpoint(self, tokens: int) -> Checkpoint | None:
        """Return the state of the recurrent layers after exactly `tokens` tokens; None if it is not held."""


class Below(Protocol):
    """What the prefix cache tells a tier below it."""

    def used(self, namespace: str, path: Sequence[Node], *, kept: bool = False) -> None:
        """Take a path that was used again, or that is kept."""

    def idle(self, namespace: str, path: Sequence[Node], seconds: float) -> bool:
        """Take a path that goes soon, as it was not used for so long; False if it should be offered again later."""

    def reused(self, tokens: int) -> None:
        """Count tokens of a prompt that came from below and were reused."""

    def forget(self, accept: Callable[[str], bool]) -> None:
        """Forget the namespaces that `accept` names."""

    def forget_prefix(self, namespace: str, keys: Sequence[bytes]) -> None:
        """Forget all prompts that begin with some blocks; without any, the whole namespace."""


class Resume(Enum):
    """
    Whether a store makes the end of its tokens a resume point, after which requests can go on.

    With full attention in every layer, every token is one anyway.
    """

    NO = auto()
    """Only whole blocks are stored."""
    PART = auto()
    """The same, and however few they are: more of the prompt is stored next."""
    PASSING = auto()
    """A resume point until a later store of the same prompt; it saves KV that a window is about to forget."""
    YES = auto()
    """The rest that fills no block is stored as a tail."""


def packed(source: KVSource, group: int, start: int, stop: int) -> Extent:
    """
    Copy blocks out of a source.

    Raises:
        ValueError: If the source returned other blocks than it was asked for.
    """
    extent = source.pack(group, start, stop)
    if (extent.start, extent.stop) != (start, stop):
        raise ValueError(f"asked for blocks {start} to {stop}, got {extent.start} to {extent.stop}")
    return extent
