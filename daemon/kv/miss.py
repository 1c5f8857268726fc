"""
Why a prompt was not reused further: the explanation of a lookup, from the trie and the record of prompts. Pure.

Four lengths of a prompt decide, all in tokens from its start:

    reused  <=  stored (its path in the trie)  <=  known (the closest prompt of the record)      reach
                                                                                 (the last token is always computed)

    reused >= reach                           nothing is missing
    reused or stored < min_prefix_len         TOO_SHORT
    reused < stored                           RESUME_POINT: windows and states are not stored at every position
    known covers a block beyond stored        EVICTED, or INVALIDATED
    another namespace knows more than both    OTHER_NAMESPACE
    else                                      DIVERGED where the closest prompt differs; NEVER_SEEN without such a
                                              prompt; nothing is missing if the prompt goes on where the closest ends
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from daemon.kv.keys import BLOCK_TOKENS, KEY_BYTES, TOKEN_BYTES, differing, pack
from daemon.kv.nodes import Node
from daemon.kv.seen_prompts import Seen, SeenPrompts, common_tokens


class MissReason(Enum):
    """Why a prompt was not reused further; the values are the names of the API."""

    NEVER_SEEN = "never_seen"
    DIVERGED = "diverged"
    EVICTED = "evicted"
    INVALIDATED = "invalidated"
    OTHER_NAMESPACE = "other_namespace"
    TOO_SHORT = "too_short"
    RESUME_POINT = "resume_point"


PLACED = frozenset({MissReason.DIVERGED, MissReason.RESUME_POINT})
"""Reasons with the position where a prompt leaves the closest one; other reasons have the end of a block."""


@dataclass(frozen=True, slots=True)
class Miss:
    """
    Why a prompt was not reused further.

    Attributes:
        reason: The reason.
        token: Tokens that the prompt has in common with the prompt that explains it.
        resume_token: The resume point that was reused instead, in tokens, for RESUME_POINT.
        seen: Seconds since the prompt that explains it was stored; None if that is not known.
        differs: The parts of the namespace that differ, for OTHER_NAMESPACE.
    """

    reason: MissReason
    token: int = 0
    resume_token: int = 0
    seen: float | None = None
    differs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lookup:
    """
    What a lookup found.

    Attributes:
        namespace: Digest of the request's namespace.
        tokens: The prompt.
        path: The stored path along it; the root is not in it.
        children: The blocks and tails that are stored behind this path.
        resumable: Tokens of the prompt after which a request can go on.
        least: Fewest tokens that are reused.
        lead: Tokens that all prompts begin with, such as the marks before the first message: these say nothing.
    """

    namespace: str
    tokens: Sequence[int]
    path: Sequence[Node]
    children: Sequence[Node]
    resumable: int
    least: int
    lead: int = 0

    @property
    def stored(self) -> int:
        """Tokens of the stored path."""
        return len(self.path) * BLOCK_TOKENS

    @property
    def reach(self) -> int:
        """Most tokens of the prompt in whole blocks that can be reused: without the last token."""
        return _floor(len(self.tokens) - 1)


def explain(lookup: Lookup, seen: SeenPrompts, now: float) -> Miss | None:
    """
    Return why a prompt was not reused further; None if everything that could be reused was.

    Args:
        lookup: What the lookup found.
        seen: The prompts that were stored lately.
        now: Seconds of the clock of `seen`.
    """
    reach, resumable = lookup.reach, lookup.resumable
    if reach < lookup.least or 0 < lookup.stored < lookup.least or 0 < resumable < lookup.least:
        return Miss(MissReason.TOO_SHORT, min(lookup.stored, reach))
    if resumable >= reach:
        return None
    packed = pack(lookup.tokens)
    known, closest = seen.closest(lookup.namespace, packed)
    token = max(known, _stored_tokens(lookup, packed))
    age = now - closest.at if closest is not None and known == token else None
    if resumable < lookup.stored:
        return Miss(MissReason.RESUME_POINT, token, resumable, age)
    lost = _lost(lookup, packed, known, closest, seen, now)
    if lost is not None:
        return lost
    if token <= lookup.lead and not lookup.stored:
        return Miss(MissReason.NEVER_SEEN)
    ends = seen.ends_with(lookup.namespace, packed[: token * TOKEN_BYTES])
    forgotten = known < token and not _goes_on(lookup, packed)  # the record has forgotten the prompt that ends here
    return None if ends or forgotten else Miss(MissReason.DIVERGED, token, seen=age)


def _lost(
    lookup: Lookup, packed: bytes, known: int, closest: Seen | None, seen: SeenPrompts, now: float
) -> Miss | None:
    """Return why blocks are missing that were stored once, here or in another namespace; None if none were."""
    gone, invalidated = seen.closest_invalidated(lookup.namespace, packed)
    elsewhere, other = seen.closest_elsewhere(lookup.namespace, packed)
    here = min(_floor(known), lookup.reach)
    gone, elsewhere = min(gone, lookup.reach), min(_floor(elsewhere), lookup.reach)
    if other is not None and elsewhere >= lookup.least and elsewhere > max(lookup.stored, here, gone):
        parts = differing(lookup.namespace, other.namespace)
        return Miss(MissReason.OTHER_NAMESPACE, elsewhere, seen=now - other.at, differs=parts)
    if max(here, gone) <= lookup.stored:
        return None
    # A prompt that was invalidated and stored again since was evicted since.
    if closest is not None and here >= gone:
        return Miss(MissReason.EVICTED, here, seen=now - closest.at)
    assert invalidated is not None
    return Miss(MissReason.INVALIDATED, gone, seen=now - invalidated.at)


def _stored_tokens(lookup: Lookup, packed: bytes) -> int:
    """Return how many tokens a prompt has in common with what is stored, parts of a block included."""
    block = packed[lookup.stored * TOKEN_BYTES :][:KEY_BYTES]
    return lookup.stored + max((common_tokens(block, child.key) for child in lookup.children), default=0)


def _goes_on(lookup: Lookup, packed: bytes) -> bool:
    """Whether something that is stored behind the path does not only end there, as a tail of the prompt does."""
    block = packed[lookup.stored * TOKEN_BYTES :][:KEY_BYTES]
    return not all(child.is_tail and block.startswith(child.key) for child in lookup.children)


def _floor(tokens: int) -> int:
    """Return the largest multiple of the block size that is not above `tokens`; 0 for a negative number."""
    return max(0, tokens) // BLOCK_TOKENS * BLOCK_TOKENS
