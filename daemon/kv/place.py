"""
The choice of the place at which a request goes on: after a block or a tail, or with full attention inside of either.

    prompt   |....block....|....block....|..rest
    stored   |....block....|....block....|....block....       full attention: after the tokens in common
                           └──tail (5)                        windows, states: after a whole tail that has them
                           └────tail (9)

Tails are asked for by their exact token ids, at most 15 of a block's end; so no list of tails is searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from daemon.kv.keys import KEY_BYTES, TOKEN_BYTES
from daemon.kv.nodes import Node
from daemon.kv.seen_prompts import common_tokens
from daemon.kv.spec import PrefixSpec

MOST_CHILDREN = 256
"""Blocks and tails after the end of a path that a prompt is compared with."""


class Place(NamedTuple):
    """
    A place in a stored prompt at which a request can go on.

    Attributes:
        nodes: Its path: blocks, and at its end perhaps a tail.
        unused: Tokens at the end of the last node that lie behind the place.
    """

    nodes: Sequence[Node]
    unused: int = 0

    @property
    def tokens(self) -> int:
        """Tokens before it."""
        return self.nodes[-1].end - self.unused if self.nodes else 0


def furthest(path: Sequence[Node], packed: bytes, spec: PrefixSpec, *, inside: bool = True) -> Place:
    """
    Return the furthest place at which a request can go on.

    Args:
        path: The stored blocks along the prompt.
        packed: The token ids of the prompt that may be reused, see `keys.pack`.
        spec: What a prefix of the model consists of.
        inside: Whether a place inside of a block or a tail counts.
    """
    if spec.resumes_anywhere and inside:
        return _inside(path, packed)
    blocks = spec.restorable(path)
    for depth in range(len(path), max(1, blocks) - 1, -1):
        tails = tails_along(path[depth - 1], packed[depth * KEY_BYTES :])
        tail = next(filter(spec.resumes_at, tails), None)
        if tail is not None:
            return Place([*path[:depth], tail])
    return Place(path[:blocks])


def tails_along(node: Node, rest: bytes) -> list[Node]:
    """Return the tails behind a block that the rest of a prompt, see `keys.pack`, begins with; the longest first."""
    if not node.tails:
        return []
    most = min(len(rest), KEY_BYTES - TOKEN_BYTES)
    keys = (rest[:stop] for stop in range(most, 0, -TOKEN_BYTES))
    return [tail for key in keys if (tail := node.child(key)) is not None]


def _inside(path: Sequence[Node], packed: bytes) -> Place:
    """Return the place up to which a prompt has its tokens in common with a block or a tail behind its path."""
    if not path:
        return Place(path)
    rest = packed[len(path) * KEY_BYTES :][:KEY_BYTES]
    best, most = None, 0
    for child in islice(path[-1].children(), MOST_CHILDREN):
        common = common_tokens(rest, child.key)
        if common > most:
            best, most = child, common
    return Place(path) if best is None else Place([*path, best], best.tokens - most)


def path_to(node: Node) -> tuple[str, list[Node]]:
    """Return the namespace of a stored block, and the path from the first block to it."""
    path = [node]
    while (parent := path[-1].parent) is not None:
        path.append(parent)
    root = path.pop()
    return root.key.decode(), path[::-1]


def packed_path(node: Node) -> bytes:
    """Return the token ids of a stored path, see `keys.pack`."""
    return b"".join(each.key for each in path_to(node)[1])
