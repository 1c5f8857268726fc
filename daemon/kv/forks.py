"""
The forks between prompts that are computed, or wait, at the same time: the positions where they diverge.

The prefix cache knows what is stored. This module is about KV that is not stored yet. It finds the running prompt that
computes the beginning of another prompt, and the positions where waiting prompts diverge from a running one.

Pure policy: positions in tokens, no mlx, no clock. Prompts are compared by whole blocks, many of them in one comparison
of bytes. For most pairs a comparison of a single block is enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeVar

from daemon.kv.keys import BLOCK_TOKENS, KEY_BYTES, block_keys

MOST_FORKS = 8
"""Most positions at which a prompt is made resumable for waiting ones: each costs a pass, and a window or a state."""


@dataclass(eq=False)
class Beginning:
    """
    The part of a prompt that other prompts can share: its whole blocks, without its last token.

    Attributes:
        namespace: Digest under which KV may be shared.
        tokens: The prompt.
    """

    namespace: str
    tokens: Sequence[int] = field(repr=False)

    @cached_property
    def packed(self) -> bytes:
        """The concatenated keys of its blocks, computed when more than a block of it is first compared."""
        return b"".join(block_keys(self.tokens[: self.blocks * BLOCK_TOKENS]))

    def block(self, index: int) -> Sequence[int]:
        """Return the tokens of a block."""
        return self.tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]

    @property
    def blocks(self) -> int:
        """Number of its whole blocks; the last token of the prompt is never restored."""
        return max(0, len(self.tokens) - 1) // BLOCK_TOKENS


class Running(Protocol):
    """A prompt that is being computed, and that other prompts may share."""

    @property
    def beginning(self) -> Beginning:
        """The part of it that can be shared."""

    @property
    def done(self) -> int:
        """Tokens that are computed or restored."""

    @property
    def stored(self) -> int:
        """Tokens that were restored, or handed to the prefix cache."""


R = TypeVar("R", bound=Running)


def fork(leader: Beginning, follower: Beginning, beyond: int = 0) -> int:
    """
    Return where a follower diverges from a leader.

    Takes O(1) for a pair that diverges before `beyond`, otherwise the time to compare the bytes that they share.

    Returns:
        A number of tokens, a multiple of the block size and more than `beyond`; 0 if they have no more in common.
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
    Return where waiting prompts diverge from a prompt: the positions at which it is worth making it resumable.

    Of more than `MOST_FORKS` positions, those that save most stay. A position saves each of its followers the tokens
    since the position before it.

    Args:
        leader: The prompt that will be computed.
        followers: Waiting prompts that may share it.
        beyond: Tokens of the leader that are computed already.

    Returns:
        Positions in tokens, multiples of the block size, ascending, all above `beyond`.
    """
    wanted = Counter(fork(leader, follower, beyond) for follower in followers)
    del wanted[0]
    positions = sorted(wanted)
    while len(positions) > MOST_FORKS:
        previous = dict(zip(positions, [beyond, *positions], strict=False))
        least = min(positions, key=lambda position: wanted[position] * (position - previous[position]))
        positions.remove(least)
        # Its followers go on from the position before it.
        wanted[previous[least]] += wanted[least]
    return positions


def needed_first(follower: Beginning, running: Iterable[R], shortest: int = BLOCK_TOKENS) -> tuple[list[R], R | None]:
    """
    Tell which running prompts have to store or to compute more before a waiting prompt is looked up.

    Args:
        follower: The waiting prompt.
        running: Prompts that are being computed and may be shared.
        shortest: Fewest tokens that are worth sharing.

    Returns:
        The running prompts that hold more of the follower than they have stored, and the running prompt that will
        compute the longest part of it. The second is None if all that the follower can share is computed.
    """
    unstored: list[R] = []
    longest: tuple[int, R | None] = 0, None
    for leader in running:
        diverges_at = fork(leader.beginning, follower, max(leader.stored, shortest - 1))
        if diverges_at > leader.done:
            longest = max(longest, (diverges_at, leader), key=lambda pair: pair[0])
        elif diverges_at:
            unstored.append(leader)
    return unstored, longest[1]


def _common_blocks(leader: Beginning, follower: Beginning, most: int) -> int:
    """
    Count the equal blocks at the start of two prompts, at most `most`.

    The compared range doubles until it differs; a binary search then finds the first different block in it.
    """
    equal, step = 0, 1
    while _agree(leader, follower, equal, min(most, equal + step)):
        equal = min(most, equal + step)
        step *= 2
        if equal == most:
            return equal
    most = min(most, equal + step) - 1
    while equal < most:
        middle = (equal + most + 1) // 2
        if _agree(leader, follower, equal, middle):
            equal = middle
        else:
            most = middle - 1
    return equal


def _agree(leader: Beginning, follower: Beginning, start: int, stop: int) -> bool:
    first, last = start * KEY_BYTES, stop * KEY_BYTES
    return leader.packed[first:last] == follower.packed[first:last]
