"""The tree that the nodes of the prefix trie make up: roots, edges and paths, without the counts of what they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from daemon.kv.keys import partition_of
from daemon.kv.nodes import NamespaceCounters, Node


class Tree:
    """
    One root for each namespace that has a block. An edge is a block's token ids, so a path is a prefix.

    It is the base class of `PrefixTrie` and not a part of it, because callers ask a trie for its paths (`tops`,
    `branches`, `tallies`) as often as for its KV: as a part, each of them would be written twice. `grow` and `unlink`
    move pointers only; `PrefixTrie` calls them and keeps the counts.
    """

    def __init__(self) -> None:
        self._roots: dict[str, Node] = {}

    @property
    def namespaces(self) -> list[str]:
        """Namespaces that have a block."""
        return list(self._roots)

    def tallies(self) -> dict[str, tuple[NamespaceCounters, int]]:
        """Return, for each namespace that has a block, its counters and its number of different first blocks."""
        return {namespace: (root.counters, root.degree) for namespace, root in self._roots.items()}

    def tally(self, namespace: str) -> tuple[NamespaceCounters, int] | None:
        """Return counters and number of first blocks of one namespace; None if it has no block."""
        root = self._roots.get(namespace)
        return None if root is None else (root.counters, root.degree)

    def root(self, namespace: str) -> Node:
        """Return the root of a namespace; it joins the tree with its first block."""
        new = NamespaceCounters(partition_of(namespace))
        return self._roots.get(namespace) or Node(namespace.encode(), None, 0, new)

    def walk(self, namespace: str, keys: Sequence[bytes]) -> list[Node]:
        """Return the longest stored path along `keys`, which may be empty."""
        path: list[Node] = []
        self.follow(namespace, path, keys)
        return path

    def follow(self, namespace: str, path: list[Node], keys: Sequence[bytes]) -> None:
        """Lengthen a stored path along `keys`, the keys of the blocks that follow it, as far as they are stored."""
        node = path[-1] if path else self._roots.get(namespace)
        if node is not None:
            for key in keys:
                node = node.child(key)
                if node is None:
                    break
                path.append(node)

    def after(self, namespace: str, path: Sequence[Node], most: int) -> tuple[Node, ...]:
        """Return the blocks right behind a stored path of a namespace, at most `most` of them."""
        end = path[-1] if path else self._roots.get(namespace)
        return () if end is None else tuple(islice(end.children(), most))

    def grow(self, parent: Node, key: bytes) -> Node:
        """Add a block below a node that has no child with this key."""
        if parent.depth == 0:
            self._roots[parent.key.decode()] = parent
        child = Node(key, parent, parent.depth + 1, parent.counters)
        parent.adopt(child)
        return child

    def unlink(self, node: Node) -> None:
        """Take a node, and with it all below it, out of the tree."""
        parent, node.parent = node.parent, None
        assert parent is not None, "a block left the trie twice"
        parent.disown(node)
        if parent.depth == 0 and not parent.degree:
            del self._roots[parent.key.decode()]

    def tops(self, accept: Callable[[str], bool]) -> list[Node]:
        """Return the topmost blocks of the namespaces that are accepted."""
        roots = [root for namespace, root in self._roots.items() if accept(namespace)]
        return [child for root in roots for child in root.children()]

    def branches(self, namespace: str, keys: Sequence[bytes], part: bytes) -> list[Node]:
        """
        Return the topmost nodes that lead only to prompts which begin with `keys` and `part` of a block.

        A stored path that ends on the way counts too: the rest of its prompt is not stored, and may have been theirs.
        """
        path = self.walk(namespace, keys)
        end = path[-1] if path else self.root(namespace)
        tops = [each for each in end.children() if each.key.startswith(part)] if len(path) == len(keys) else []
        if not tops and path:
            rest = b"".join((*keys[len(path) :], part))
            ends = [each for each in end.children() if each.is_tail and rest.startswith(each.key)]
            tops = path[-1:] if end.degree == len(ends) else ends
        return _with_lone_ancestors(tops)

    def subtree(self, tops: Sequence[Node]) -> list[Node]:
        """Return nodes and everything below them."""
        nodes = list(tops)
        # The list grows while it is walked: breadth first, without recursion, however long the prompts are.
        for node in nodes:
            nodes.extend(node.children())
        return nodes

    def check_shape(self, nodes: Sequence[Node]) -> None:
        """
        Check that `nodes`, all nodes of the tree, and its roots agree.

        Raises:
            AssertionError: If parents and children disagree, or an empty root was kept.
        """
        for node in nodes:
            assert node.parent is not None, "a stored block has no parent"
            assert node.parent.child(node.key) is node, "parent and child disagree"
            assert node.depth == node.parent.depth + 1, "depth is wrong"
            assert node.tails == sum(child.is_tail for child in node.children()), "tails are miscounted"
            assert not (node.is_tail and node.degree), "a block follows a tail"
        for root in self._roots.values():
            assert root.parent is None, "a root has a parent"
            assert root.degree, "an empty root was kept"
            below = self.subtree([*root.children()])
            assert all(node.counters is root.counters for node in below), "a block is counted elsewhere"
            assert root.counters.blocks == len(below), "blocks of a namespace are miscounted"


def _with_lone_ancestors(tops: Sequence[Node]) -> list[Node]:
    """Move siblings up together to their highest ancestor that leads to nothing else."""
    chosen = list(tops)
    while chosen and (up := chosen[0].parent) is not None and up.depth > 0 and up.degree == len(chosen):
        chosen = [up]
    return chosen


def path_to(node: Node) -> tuple[str, list[Node]]:
    """Return the namespace of a stored block, and the path from the first block to it."""
    path = [node]
    while (parent := path[-1].parent) is not None:
        path.append(parent)
    root = path.pop()
    return root.key.decode(), path[::-1]


def packed_path(node: Node) -> bytes:
    """Return the token ids of a stored path, see `seen_prompts.pack`."""
    return b"".join(each.key for each in path_to(node)[1])
