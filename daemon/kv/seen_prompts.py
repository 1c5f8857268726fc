"""
The record of prompts that were stored lately, which outlives their blocks: it tells why a prompt is not found.

The trie knows what is stored now. The record knows what was stored, when, and under which namespace:

    stored() ---> known: its token ids ---> invalidated(): a fingerprint of each block, no ids
                     |                          |
                     +--- forgotten: the oldest go first, beyond 512 prompts or 1,048,576 tokens

A prompt that goes on where a recorded prompt ends takes its place, so a conversation is one entry. An eviction is not
recorded: what was stored, was not invalidated and is not in the trie was evicted.

Size: 4 bytes a token, 4 MiB at most, and about 300 bytes a prompt. Cost: `stored` hashes the bytes of the prompt once;
`closest` compares one token with most entries, and the bytes that are equal with few. Neither depends on the trie.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from daemon.kv.keys import BLOCK_TOKENS, KEY_BYTES, TOKEN_BYTES, UNSALTED, differing, partition_of

MOST_PROMPTS = 512
MOST_TOKENS = 1 << 20


@dataclass(slots=True, eq=False)
class Seen:
    """
    A prompt that was stored.

    Attributes:
        namespace: Digest of its namespace.
        packed: Its token ids, see `pack`; empty once it was invalidated.
        tokens: How many it has.
        at: When it was last stored, in seconds of the clock.
        fingerprints: Once it was invalidated, a hash of each of its blocks and all blocks before it.
    """

    namespace: str
    packed: bytes = field(repr=False)
    tokens: int
    at: float
    fingerprints: array[int] = field(default_factory=lambda: array("q"), repr=False)


_End = tuple[str, int]


class SeenPrompts:
    """
    The latest prompts that were stored.

    Args:
        clock: Seconds that never go back.
        most_prompts: Most prompts that are remembered.
        most_tokens: Most tokens of all of them together. The latest prompt stays, however long it is.
    """

    def __init__(
        self, clock: Callable[[], float], most_prompts: int = MOST_PROMPTS, most_tokens: int = MOST_TOKENS
    ) -> None:
        self._clock = clock
        self._most_prompts = most_prompts
        self._most_tokens = most_tokens
        self._entries: dict[Seen, None] = {}
        """Oldest first."""
        self._ends: dict[_End, list[Seen]] = {}
        """Those that are not invalidated, by namespace and a hash of their full blocks."""
        self._tokens = 0

    def __iter__(self) -> Iterator[Seen]:
        return iter(self._entries)

    def stored(self, namespace: str, packed: bytes, blocks: int) -> None:
        """
        Note that a prompt is stored now.

        Args:
            namespace: Digest of its namespace.
            packed: Its token ids, the tail that fills no block included.
            blocks: Blocks of it that were stored before; an entry that ends there is a part of it.
        """
        ends = self._ends.get(_end(namespace, packed[: blocks * KEY_BYTES]), ())
        for older in [entry for entry in ends if packed.startswith(entry.packed)]:
            self._forget(older)
        entry = Seen(namespace, packed, len(packed) // TOKEN_BYTES, self._clock())
        self._entries[entry] = None
        self._tokens += entry.tokens
        self._ends.setdefault(_end_of(entry), []).append(entry)
        while len(self._entries) > 1 and self._full:
            self._forget(next(iter(self._entries)))

    def invalidated(self, accept: Callable[[Seen], bool]) -> None:
        """Replace the token ids of the prompts that are accepted by fingerprints."""
        for entry in [entry for entry in self._entries if entry.packed and accept(entry)]:
            self._leave_ends(entry)
            entry.fingerprints = fingerprints(entry.packed)
            entry.packed = b""

    def closest(self, namespace: str, packed: bytes) -> tuple[int, Seen | None]:
        """Return how many tokens a prompt has in common with a known prompt of its namespace, and the latest such."""
        return _closest((entry for entry in reversed(self._entries) if entry.namespace == namespace), packed)

    def closest_elsewhere(self, namespace: str, packed: bytes) -> tuple[int, Seen | None]:
        """
        Return the same for the other namespaces of the same salt, and for those without a salt.

        A prompt that was stored under a salt is never told of to a request of another: that is what salts are for.
        """
        visible = {partition_of(namespace), UNSALTED}
        others = (
            entry
            for entry in reversed(self._entries)
            if entry.namespace != namespace and partition_of(entry.namespace) in visible
        )
        # Of equally long ones, that which differs in the fewest parts: it explains the most.
        return _closest(sorted(others, key=lambda entry: len(differing(namespace, entry.namespace))), packed)

    def closest_invalidated(self, namespace: str, packed: bytes) -> tuple[int, Seen | None]:
        """Return how many tokens, in whole blocks, a prompt has in common with an invalidated one, and the latest."""
        gone = [entry for entry in reversed(self._entries) if entry.fingerprints and entry.namespace == namespace]
        best: tuple[int, Seen | None] = 0, None
        mine = fingerprints(packed) if gone else array("q")
        for entry in gone:
            # A fingerprint stands for all blocks before it too, so equal ones come first.
            pairs = range(min(len(mine), len(entry.fingerprints)))
            blocks = bisect_left(pairs, True, key=lambda i, marks=entry.fingerprints: mine[i] != marks[i])  # type: ignore[misc]
            if blocks * BLOCK_TOKENS > best[0]:
                best = blocks * BLOCK_TOKENS, entry
        return best

    def ends_with(self, namespace: str, packed: bytes) -> bool:
        """Tell whether some known prompt consists of exactly these tokens."""
        return any(entry.packed == packed for entry in self._ends.get(_end(namespace, _whole(packed)), ()))

    @property
    def _full(self) -> bool:
        return len(self._entries) > self._most_prompts or self._tokens > self._most_tokens

    def _forget(self, entry: Seen) -> None:
        del self._entries[entry]
        self._tokens -= entry.tokens
        if entry.packed:
            self._leave_ends(entry)

    def _leave_ends(self, entry: Seen) -> None:
        end = _end_of(entry)
        self._ends[end].remove(entry)
        if not self._ends[end]:
            del self._ends[end]


def fingerprints(packed: bytes) -> array[int]:
    """Return a hash of each full block of a prompt together with all blocks before it."""
    chain, marks = 0, array("q")
    for start in range(0, len(packed) - KEY_BYTES + 1, KEY_BYTES):
        chain = hash((chain, packed[start : start + KEY_BYTES]))
        marks.append(chain)
    return marks


def common_tokens(one: bytes, two: bytes) -> int:
    """Return how many tokens two packed prompts begin with in common, in time linear in their number."""
    low, high = 0, min(len(one), len(two)) // TOKEN_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if one[low * TOKEN_BYTES : middle * TOKEN_BYTES] == two[low * TOKEN_BYTES : middle * TOKEN_BYTES]:
            low = middle
        else:
            high = middle - 1
    return low


def _closest(entries: Iterator[Seen] | Sequence[Seen], packed: bytes) -> tuple[int, Seen | None]:
    best: tuple[int, Seen | None] = 0, None
    for entry in entries:
        next_token = slice(best[0] * TOKEN_BYTES, (best[0] + 1) * TOKEN_BYTES)
        # Most entries differ in the token that would make them the best.
        if entry.packed[next_token] == packed[next_token] != b"":
            common = common_tokens(entry.packed, packed)
            if common > best[0]:
                best = common, entry
    return best


def _whole(packed: bytes) -> bytes:
    return packed[: len(packed) // KEY_BYTES * KEY_BYTES]


def _end(namespace: str, blocks: bytes) -> _End:
    return namespace, hash(blocks)


def _end_of(entry: Seen) -> _End:
    return _end(entry.namespace, _whole(entry.packed))
