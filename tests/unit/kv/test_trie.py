"""The trie finds what a brute-force search over all stored prefixes finds, and evicts what that search would evict."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from daemon.kv.extent_ledger import runs
from daemon.kv.keys import BLOCK_TOKENS, KEY_BYTES
from daemon.kv.lease import PrefixLease
from daemon.kv.nodes import Extent, Node
from daemon.kv.trie import PrefixTrie

A, B, C, D, X, Y = (letter * KEY_BYTES for letter in (b"a", b"b", b"c", b"d", b"x", b"y"))
Path = tuple[bytes, ...]
Place = tuple[str, Path]
NAMESPACES = st.sampled_from(["n", "m"])
PATHS = st.lists(st.sampled_from([A, B]), max_size=4).map(tuple)


def _insert(trie: PrefixTrie, namespace: str, path: Path) -> int:
    with trie.match(namespace, path) as lease:
        rest = path[len(lease.nodes) :]
        extent = Extent(rest, 10 * len(rest), 1, len(lease.nodes), len(rest))
        return trie.insert(lease, rest, (extent,))


def _found(lease: PrefixLease) -> Path:
    """Return the path of a lease, read from its payload."""
    found = (
        (cast("Path", run.payload), run.start // BLOCK_TOKENS, run.stop // BLOCK_TOKENS) for run in runs(lease.nodes, 0)
    )
    return tuple(key for payload, start, stop in found for key in payload[start:stop])


def _places(trie: PrefixTrie) -> set[Place]:
    """Return every stored prefix, by walking all of the trie."""
    pending: list[tuple[str, Path, Node]] = [(name, (), node) for name in ("n", "m") for node in trie.tops(name.__eq__)]
    places: set[Place] = set()
    while pending:
        name, prefix, node = pending.pop()
        path = (*prefix, node.key)
        places.add((name, path))
        pending += [(name, path, child) for child in node.children()]
    return places


@dataclass
class Held:
    """An open lease, its path, and how many blocks of the path are not forgotten."""

    lease: PrefixLease
    namespace: str
    path: Path
    alive: int

    def forget(self, gone: set[Place]) -> None:
        """Update the count after places were forgotten."""
        self.alive = sum((self.namespace, self.path[:n]) not in gone for n in range(1, self.alive + 1))


class TrieMachine(RuleBasedStateMachine):
    """The trie beside a dictionary from every stored prefix to its last use."""

    def __init__(self) -> None:
        super().__init__()
        self.trie = PrefixTrie()
        self.used: dict[Place, int] = {}
        self.time = 0
        self.leases: list[Held] = []

    def longest(self, namespace: str, path: Path) -> Path:
        """Return the longest stored prefix, by trying every length."""
        return max((path[:n] for n in range(len(path) + 1) if not n or (namespace, path[:n]) in self.used), key=len)

    def touch(self, namespace: str, path: Path) -> None:
        """Mark a path and all before it as used now."""
        self.time += 1
        self.used |= {(namespace, path[:n]): self.time for n in range(1, len(path) + 1)}

    def leaves(self) -> list[Place]:
        """Return the unlocked leaves in the order in which they must go."""
        locked = {(held.namespace, held.path[:n]) for held in self.leases for n in range(1, held.alive + 1)}
        inner = {(name, path[:-1]) for name, path in self.used}
        free = [place for place in self.used if place not in inner and place not in locked]
        return sorted(free, key=lambda place: (self.used[place], -len(place[1])))

    @rule(namespace=NAMESPACES, path=PATHS)
    def insert(self, namespace: str, path: Path) -> None:
        """Store a prefix; blocks that are stored already are not stored again."""
        new = sum((namespace, path[:n]) not in self.used for n in range(1, len(path) + 1))
        known = self.longest(namespace, path)
        assert _insert(self.trie, namespace, path) == new
        self.touch(namespace, known)
        if new:
            self.time += 1
            self.used |= {(namespace, path[:n]): self.time for n in range(len(known) + 1, len(path) + 1)}

    @rule(namespace=NAMESPACES, path=PATHS)
    def match(self, namespace: str, path: Path) -> None:
        """Look a prefix up and keep the lease."""
        lease = self.trie.match(namespace, path)
        expected = self.longest(namespace, path)
        assert _found(lease) == expected
        self.touch(namespace, expected)
        self.leases.append(Held(lease, namespace, expected, len(expected)))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """End a lease; until now it kept its payload, through all evictions and invalidations."""
        held = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        assert _found(held.lease) == held.path
        held.lease.release()

    @rule(wanted=st.integers(1, 4))
    def evict(self, wanted: int) -> None:
        """Evict some blocks."""
        expected = 0
        while expected < wanted and (leaves := self.leaves()):
            del self.used[leaves[0]]
            expected += 1
        target = self.trie.blocks - wanted
        evicted = 0
        while self.trie.blocks > target and self.trie.drop_oldest(checkpoints=False):
            evicted += 1
        assert evicted == expected

    @rule(namespace=NAMESPACES, path=PATHS, letter=st.sampled_from([A, B]))
    def forget(self, namespace: str, path: Path, letter: bytes) -> None:
        """Forget all prefixes that begin with a path; no lookup finds them, but leases on them stay usable."""
        before = _places(self.trie)
        self.trie.detach(self.trie.branches(namespace, path, letter))
        begins = (*path, letter)
        gone = before - _places(self.trie)
        assert {place for place in before if place[0] == namespace and place[1][: len(begins)] == begins} <= gone
        assert all(place[0] == namespace and _agree(place[1], begins) for place in gone)
        self.notice(gone)

    @rule()
    def clear(self) -> None:
        """Forget everything."""
        self.trie.detach(self.trie.tops(lambda _: True))
        self.notice(set(self.used))

    def notice(self, gone: set[Place]) -> None:
        """Update the model after places were forgotten."""
        self.used = {place: used for place, used in self.used.items() if place not in gone}
        for held in self.leases:
            held.forget(gone)

    @invariant()
    def is_sound(self) -> None:
        """Recount, and compare what is stored."""
        self.trie.check_integrity()
        assert _places(self.trie) == set(self.used)
        assert self.trie.leases == len(self.leases)

    def teardown(self) -> None:
        """Nothing leaks once all is released and forgotten."""
        for held in self.leases:
            held.lease.release()
        self.trie.detach(self.trie.tops(lambda _: True))
        self.trie.check_integrity()
        assert (self.trie.blocks, self.trie.ledger.nbytes, self.trie.ledger.buffers) == (0, 0, 0)


TrieMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, print_blob=True, derandomize=False
)
TestTrieMachine = TrieMachine.TestCase


def test_a_lease_cannot_be_released_twice() -> None:
    lease = PrefixTrie().match("n", [A])
    lease.release()

    with pytest.raises(RuntimeError, match="twice"):
        lease.release()


def test_empty_insert_leaves_no_trie_root() -> None:
    trie = PrefixTrie()
    _insert(trie, "n", ())

    trie.check_integrity()
    assert trie.tops(lambda _: True) == []


def test_insert_behind_a_dropped_path_stores_nothing() -> None:
    trie = PrefixTrie()
    _insert(trie, "n", (A,))
    lease = trie.match("n", [A])
    trie.detach(trie.tops(lambda _: True))

    with pytest.raises(KeyError, match="forgotten"):
        trie.insert(lease, [B], (Extent((B,), 10, 1, 1, 1),))

    lease.release()
    trie.check_integrity()


def test_dropped_blocks_leave_memory_without_eviction() -> None:
    gc.collect()
    before = _nodes_in_memory()
    trie = PrefixTrie()
    _insert(trie, "n", (A, B))
    _insert(trie, "n", (A, C))
    assert _nodes_in_memory() == before + 4  # the root too

    trie.detach(trie.tops(lambda _: True))

    assert _nodes_in_memory() == before


def test_leased_dropped_path_is_freed_with_its_lease() -> None:
    trie = PrefixTrie()
    _insert(trie, "n", (A,))
    _insert(trie, "n", (A, B))
    with trie.match("n", [A]):
        trie.detach(trie.tops(lambda _: True))
        assert (trie.blocks, trie.ledger.nbytes) == (0, 10)
        trie.check_integrity()

    assert trie.ledger.nbytes == 0
    trie.check_integrity()


def test_drop_removes_lone_ancestors_only() -> None:
    trie = PrefixTrie()
    for path in ((A, B, C, D), (A, X)):
        _insert(trie, "n", path)

    trie.detach(trie.branches("n", [A, B, C], D))

    assert _places(trie) == {("n", (A,)), ("n", (A, X))}


def test_drop_of_an_inner_path_spares_forks() -> None:
    trie = PrefixTrie()
    _insert(trie, "n", (A, B))
    _insert(trie, "n", (A, C, D))

    trie.detach(trie.branches("n", [A, X], Y))
    assert trie.blocks == 4

    trie.detach(trie.branches("n", [A, B, X], Y))
    assert _places(trie) == {("n", (A,)), ("n", (A, C)), ("n", (A, C, D))}


def _agree(one: Path, two: Path) -> bool:
    return all(a == b for a, b in zip(one, two, strict=False))


def _nodes_in_memory() -> int:
    return sum(type(thing) is Node for thing in gc.get_objects())
