"""The lease of one match in the prefix trie: as long as it is held, the match is not evicted."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING

from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.nodes import Checkpoint

if TYPE_CHECKING:
    from daemon.kv.nodes import Node


class PrefixLease:
    """
    Holds the nodes of one match against eviction. Release it exactly once, or use it as a context manager.

    Attributes:
        namespace: Namespace of the match.
        nodes: The matched path, shallowest first, without the root.
        branch: Number of prompt tokens stored in the trie, in whole blocks; a request may be able to go on before.
        unused: Tokens at the end of the last node that the prompt does not have.
    """

    __slots__ = ("_give_back", "_released", "branch", "namespace", "nodes", "unused")

    def __init__(
        self,
        namespace: str,
        nodes: list[Node],
        branch: int,
        give_back: Callable[[PrefixLease], None],
        unused: int = 0,
    ) -> None:
        self.namespace = namespace
        self.nodes = nodes
        self.branch = branch
        self.unused = unused
        self._give_back = give_back
        self._released = False

    @property
    def tokens(self) -> int:
        """Tokens of the match."""
        return self.nodes[-1].end - self.unused if self.nodes else 0

    @property
    def checkpoint(self) -> Checkpoint | None:
        """State of the recurrent layers after the match."""
        return self.nodes[-1].checkpoint if self.nodes else None

    @property
    def forgotten(self) -> bool:
        """Whether another lookup would not find all of the match any more."""
        return bool(self.nodes) and self.nodes[-1].detached

    def in_common(self, other: PrefixLease) -> int:
        """Return the tokens of both matches that are the same blocks, in whole blocks."""
        most = min(len(self.nodes), len(other.nodes))
        # A path is a line from the root: where two have a block in common, they have all before it.
        same = bisect_left(range(most), True, key=lambda index: self.nodes[index] is not other.nodes[index])
        return min(same * BLOCK_TOKENS, self.tokens, other.tokens) // BLOCK_TOKENS * BLOCK_TOKENS

    def release(self) -> None:
        """
        Unlock the nodes.

        Raises:
            RuntimeError: If the lease was released before.
        """
        if self._released:
            raise RuntimeError("a lease was released twice")
        self._released = True
        self._give_back(self)

    def __enter__(self) -> PrefixLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
