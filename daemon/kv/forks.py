"""
Forks: where prompts part that are computed, or wait, at the same time.

The prefix cache knows what is stored. This is about what is not stored yet: which running prompt computes the beginning
of another one, and where a running prompt is left by those that wait. Pure policy: positions in tokens, no mlx, no
clock. Prompts are compared by whole blocks, many at a time, and one block tells most pairs apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeVar

from daemon.kv.keys import BLOCK_TOKENS, KEY_BYTES, block_keys

MOST_FORKS = 8
"""Positions at which one prompt is made resumable for those that wait: each costs a pass, and a window or a state."""


@dataclass(eq=False)
class Beginning:
    """
    The part of a prompt that another one may have in common with it: its whole blocks, the last token left out.

    Attributes:
        namespace: Digest under which KV may be shared.
        tokens: The prompt.
    """

    namespace: str
    tokens: Sequence[int] = field(repr=False)

    @cached_property
    def packed(self) -> bytes:
        """The keys of its blocks, one behind the other; made when more of it than a block is compared."""
        return b"".join(block_keys(self.tokens[: self.blocks * BLOCK_TOKENS]))

    def block(self, index: int) -> Sequence[int]:
        """Return the tokens of a block."""
        return self.tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]

    @property
    def blocks(self) -> int:
        """How many whole blocks it has; the last token of the prompt is never restored."""
        return max(0, len(self.tokens) - 1) // BLOCK_TOKENS


class Running(Protocol):
    """A prompt that is being computed, and that others may share."""

    @property
    def beginning(self) -> Beginning:
        """What others may share of it."""

    @property
    def done(self) -> int:
        """Tokens that are computed or restored."""

    @property
    def stored(self) -> int:
        """Tokens that were restored, or handed to the prefix cache."""


R = TypeVar("R", bound=Running)


def fork(leader: Beginning, follower: Beginning, beyond: int = 0) -> int:
    """
    Return after how many tokens, a multiple of the block size, a follower leaves what a leader computes.

    Takes O(1) for those that part before `beyond`, else time for comparing the bytes that they share.

    Returns:
        More than `beyond`; 0 if they have no more than that in common.
    """
    if leader.namespace != follower.namespace:
        return 0
    most, next_block = min(leader.blocks, follower.blocks), beyond // BLOCK_TOKENS
    if next_block >= most or leader.block(next_block) != follower.block(next_block):
        return 0
    common = _common_blocks(leader, follower, most) * BLOCK_TOKENS
    return common if common > beyond else 0


def forks(leader: Beginning, followers: Iterable[Beginning], beyond: int = 0) -> list[int]:
    """
    Return where those that wait leave a prompt: the positions at which it is worth being made resumable.

    Of more than `MOST_FORKS` positions those stay that save most: tokens since the position before, for each follower.

    Args:
        leader: The prompt that will be computed.
        followers: Those that wait and may share it.
        beyond: Tokens of it that are there already.

    Returns:
        Positions in tokens, multiples of the block size, ascending, all above `beyond`.
    """
    wanted = Counter(fork(leader, follower, beyond) for follower in followers)
    del wanted[0]
    positions = sorted(wanted)
    while len(positions) > MOST_FORKS:
        before = dict(zip(positions, [beyond, *positions], strict=False))
        least = min(positions, key=lambda position: wanted[position] * (position - before[position]))
        positions.remove(least)
        wanted[before[least]] += wanted[least]
    return positions


def needed_first(follower: Beginning, running: Iterable[R], shortest: int = BLOCK_TOKENS) -> tuple[list[R], R | None]:
    """
    Tell what has to happen before a prompt is looked up, so that it finds what others compute.

    Args:
        follower: The prompt, which may share what others compute.
        running: Those that are being computed, and that others may share.
        shortest: Fewest tokens that are worth sharing.

    Returns:
        Those that hold more of it than they stored, and the one that has to go on first because it will compute more of
        it, the most of all; None if there is none.
    """
    unstored: list[R] = []
    ahead: tuple[int, R | None] = 0, None
    for leader in running:
        parts_at = fork(leader.beginning, follower, max(leader.stored, shortest - 1))
        if parts_at > leader.done:
            ahead = max(ahead, (parts_at, leader), key=lambda pair: pair[0])
        elif parts_at:
            unstored.append(leader)
    return unstored, ahead[1]


def _common_blocks(one: Beginning, other: Beginning, most: int) -> int:
    """Count the equal blocks at the start of two prompts: in steps that double, then within the first that differs."""
    equal, step = 0, 1
    while _agree(one, other, equal, min(most, equal + step)):
        equal = min(most, equal + step)
        step *= 2
        if equal == most:
            return equal
    most = min(most, equal + step) - 1
    while equal < most:
        middle = (equal + most + 1) // 2
        if _agree(one, other, equal, middle):
            equal = middle
        else:
            most = middle - 1
    return equal


def _agree(one: Beginning, other: Beginning, start: int, stop: int) -> bool:
    first, last = start * KEY_BYTES, stop * KEY_BYTES
    return one.packed[first:last] == other.packed[first:last]
