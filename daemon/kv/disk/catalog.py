"""
The catalog of the disk tier: which pieces lie on the disk, which prefix they make up, and which of them goes next.

Pieces form a tree: each hangs below the piece that has the block before it. A piece is found only if all before it are
there, so the least recently used leaf goes first, and a piece that is damaged takes all below it along.

    added(), writing ──> ready ──> dropped: evicted, invalidated or damaged
                     └─> dropped: it could not be written

Pure: it holds no bytes and opens no file. One thread owns it; times are seconds since 1970 that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush

from daemon.kv.disk.piece import Piece, hash_after, root_hash
from daemon.kv.keys import BLOCK_TOKENS, KEY_BYTES, TOKEN_BYTES, partition_of


@dataclass(slots=True, eq=False)
class Entry:
    """
    A piece on the disk.

    Attributes:
        piece: What it is.
        used: When it was last used.
        ready: Whether it is written, so that it can be read.
        above: The piece that has the block before it; None at the beginning of a path.
        below: The pieces that need this one.
    """

    piece: Piece
    used: float
    ready: bool = True
    above: Entry | None = None
    below: set[Entry] = field(default_factory=set, repr=False)

    @property
    def depth(self) -> int:
        """Blocks before its end."""
        return self.piece.stop


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What to read for a prompt, in the order of its blocks.

    Attributes:
        entries: The pieces; a resume piece comes last.
        blocks: Blocks of the prompt that are in memory afterwards.
        tail: Tokens behind them that are in memory too.
    """

    entries: tuple[Entry, ...] = ()
    blocks: int = 0
    tail: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of the prompt that are in memory afterwards."""
        return self.blocks * BLOCK_TOKENS + self.tail


class Catalog:
    """
    The pieces on the disk.

    Attributes:
        nbytes: Bytes of all of them.
        blocks: Blocks of all of them.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self.blocks = 0
        self._entries: dict[str, Entry] = {}
        self._blocks: dict[bytes, Entry] = {}
        self._resumes: dict[bytes, Entry] = {}
        """Resume pieces, by the hash of the last block or the tail before their position."""
        self._roots: dict[str, set[Entry]] = {}
        self._now = 0.0
        """When a piece was used last, by the same clock."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, name: str) -> Entry | None:
        """Return the piece with a file's name."""
        return self._entries.get(name)

    @property
    def namespaces(self) -> list[str]:
        """Namespaces that have a piece."""
        return list(self._roots)

    def pieces_in(self, namespace: str) -> int:
        """Return how many pieces a namespace has."""
        return len(self._roots.get(namespace, ()))

    def fill(self, found: Iterable[tuple[Piece, float]]) -> list[str]:
        """Add what a scan found, and return the names of those that lack a piece before them, or are there twice."""
        lost: list[str] = []
        for piece, used in sorted(found, key=lambda each: (each[0].start, each[0].resume)):
            if self.add(piece, used) is None:
                lost.append(piece.name)
        return lost

    def add(self, piece: Piece, now: float, *, ready: bool = True) -> Entry | None:
        """Add a piece; None if a block of it is there, or the block before it is not."""
        above = self._blocks.get(piece.parent)
        outermost = above is None and piece.start == 0 and piece.parent == root_hash(piece.namespace)
        end = piece.tail or piece.parent
        known = end in self._resumes if piece.resume else any(each in self._blocks for each in piece.hashes)
        if known or not (outermost or above is not None) or (piece.resume and above is None):
            return None
        entry = Entry(piece, now, ready, above)
        self._entries[piece.name] = entry
        self._now = max(self._now, now)
        self._blocks.update(dict.fromkeys(piece.hashes, entry))
        if piece.resume:
            self._resumes[end] = entry
        if above is not None:
            above.below.add(entry)
        self._roots.setdefault(piece.namespace, set()).add(entry)
        self.nbytes += piece.nbytes
        self.blocks += len(piece.hashes)
        return entry

    def covered(self, hashes: Sequence[bytes]) -> int:
        """Return how many blocks of a path are there, written or being written."""
        for index, each in enumerate(hashes):
            if each not in self._blocks:
                return index
        return len(hashes)

    def resumable(self, end: bytes) -> bool:
        """Whether there is a resume piece at the position after a block or a tail."""
        return end in self._resumes

    def last_resume(self, hashes: Sequence[bytes]) -> int:
        """Return the blocks of a path before its last resume piece that is there or being written; 0 without one."""
        return next((index for index in range(len(hashes), 0, -1) if self._resumes_after(hashes[index - 1])), 0)

    def path(self, hashes: Sequence[bytes]) -> list[Entry]:
        """Return the readable pieces with the blocks of a path, from its beginning, as far as they go."""
        path: list[Entry] = []
        for each in hashes:
            entry = self._blocks.get(each)
            if entry is None or not entry.ready:
                break
            if not path or path[-1] is not entry:
                path.append(entry)
        return path

    def plan(self, hashes: Sequence[bytes], packed: bytes, in_memory: int, restorable: int) -> Plan:
        """
        Return what to read so that more of a prompt can be reused.

        Args:
            hashes: The chain of the blocks of the prompt that may be reused.
            packed: Its token ids, see `keys.pack`.
            in_memory: Blocks of it that are in memory.
            restorable: Tokens of it that a request could reuse already.
        """
        path = self.path(hashes)
        if not path:
            return Plan()
        stop, tail, last = self.covered(hashes[: path[-1].depth]), 0, list[Entry]()
        if not path[0].piece.anywhere:
            stop, tail, last = self._end(hashes[:stop], packed)
        if stop * BLOCK_TOKENS + tail <= restorable:
            return Plan()
        needed = (entry for entry in path if in_memory < entry.piece.reach(hashes) and entry.piece.start < stop)
        return Plan((*needed, *last), stop, tail)

    def holder(self, end: bytes) -> Entry | None:
        """Return the piece that has a block."""
        return self._blocks.get(end)

    def written(self, entry: Entry, nbytes: int) -> None:
        """Note that a piece is on the disk, and the bytes that it takes there."""
        self.nbytes += nbytes - entry.piece.nbytes
        entry.piece = replace(entry.piece, nbytes=nbytes)
        entry.ready = True

    def touch(self, entries: Iterable[Entry], now: float) -> list[Entry]:
        """
        Note a use of pieces and of all before them, and return all of these.

        If the clock went back, no piece counts as used later than now: else it would stay longer than those used since.
        """
        if now < self._now:
            for entry in self:
                entry.used = min(entry.used, now)
        self._now = now
        used = _with_all_before(entries)
        for entry in used:
            entry.used = max(entry.used, now)
        return used

    def shrink(self, most: int, spared: Iterable[Entry] = ()) -> list[str]:
        """Drop the least recently used until at most so many bytes are left, and return the names of the files."""
        names: list[str] = []
        if self.nbytes <= most:
            return names
        kept = set(_with_all_before(spared))
        leaves = [(entry.used, -entry.depth, index, entry) for index, entry in enumerate(self) if not entry.below]
        heapify(leaves)
        while self.nbytes > most and leaves:
            *_, index, entry = heappop(leaves)
            if entry in kept or not entry.ready:
                continue
            above = entry.above
            names += self.drop([entry])
            if above is not None and not above.below:
                heappush(leaves, (above.used, -above.depth, index, above))
        return names

    def drop(self, entries: Iterable[Entry]) -> list[str]:
        """Drop pieces with all that need them, and return the names of their files."""
        names: list[str] = []
        pending = list(entries)
        # The list grows while it is walked.
        for entry in pending:
            if self._entries.pop(entry.piece.name, None) is None:
                continue
            pending.extend(entry.below)
            names.append(entry.piece.name)
            self._unlink(entry)
        return names

    def select(self, accept: Callable[[str], bool], name: str = "") -> list[Entry]:
        """Return the pieces of the namespaces that `accept` names: of models that wrote under a name, or of all."""
        models = tuple(self.of_model(name)) if name else ("",)
        chosen = (each for space, each in self._roots.items() if space.startswith(models) and accept(space))
        return [entry for entries in chosen for entry in entries]

    def beginning_with(self, namespace: str, hashes: Sequence[bytes]) -> list[Entry]:
        """
        Return the pieces that hold anything of the prompts that begin with some tokens.

        Files hold no tokens, so all that follows the last whole block is taken, even if the beginning ends inside the
        next one. What leads to these prompts alone is taken as well.

        Args:
            namespace: Its namespace.
            hashes: The chain of the whole blocks of the beginning.
        """
        if not hashes:
            return self.select(lambda each: each == namespace)
        covered = self.covered(hashes)
        entry = self._blocks.get(hashes[covered - 1]) if covered else None
        if entry is None:
            return []
        if covered < len(hashes) and (entry.depth > covered or _continued(entry)):
            # Other prompts go on here; of these, only tails may.
            return [each for each in entry.below if each.piece.tail and each.piece.parent == hashes[covered - 1]]
        while entry.above is not None and entry.above.depth == entry.piece.start and _continued(entry.above) == 1:
            entry = entry.above
        return [entry]

    def of_model(self, name: str) -> set[str]:
        """Return the digests of the models that wrote pieces under a name."""
        return {entry.piece.model_digest for entry in self if entry.piece.model == name}

    def salted(self, model: str, partition: str) -> list[str]:
        """Return the namespaces of a model's content with a salt: one for each layout that it had."""
        return [each for each in self._roots if each.startswith(model) and partition_of(each) == partition]

    def check(self) -> None:
        """
        Recount.

        Raises:
            AssertionError: If the counts, the tree or the chains disagree.
        """
        assert self.nbytes == sum(entry.piece.nbytes for entry in self), "bytes drifted"
        assert self.blocks == sum(len(entry.piece.hashes) for entry in self) == len(self._blocks), "blocks drifted"
        assert set(self) == {entry for each in self._roots.values() for entry in each}, "a namespace drifted"
        for entry in self:
            above = entry.above
            assert above is None or (above in set(self) and entry in above.below), "a piece hangs below a lost one"
            assert above is None or entry.piece.parent in above.piece.hashes, "a piece hangs below another"
            assert all(below.above is entry for below in entry.below), "a piece counts another's"

    def _end(self, hashes: Sequence[bytes], packed: bytes) -> tuple[int, int, list[Entry]]:
        """Return the blocks and the tail before the last position that has a resume piece, and this piece."""
        for blocks in range(len(hashes), 0, -1):
            rest = packed[blocks * KEY_BYTES :][: KEY_BYTES - TOKEN_BYTES]
            parent = hashes[blocks - 1]
            for size in range(len(rest) if self._has_tail(parent) else 0, -1, -TOKEN_BYTES):
                found = self._resumes.get(hash_after(parent, rest[:size]) if size else parent)
                if found is not None and found.ready:
                    return blocks, size // TOKEN_BYTES, [found]
        return 0, 0, []

    def _has_tail(self, parent: bytes) -> bool:
        """Whether there is a tail behind a block."""
        entry = self._blocks.get(parent)
        return entry is not None and any(each.piece.tail and each.piece.parent == parent for each in entry.below)

    def _resumes_after(self, block: bytes) -> bool:
        return block in self._resumes or self._has_tail(block)

    def _unlink(self, entry: Entry) -> None:
        piece = entry.piece
        for each in piece.hashes:
            del self._blocks[each]
        if piece.resume:
            del self._resumes[piece.tail or piece.parent]
        if entry.above is not None:
            entry.above.below.discard(entry)
        entries = self._roots[piece.namespace]
        entries.discard(entry)
        if not entries:
            del self._roots[piece.namespace]
        self.nbytes -= piece.nbytes
        self.blocks -= len(piece.hashes)


def _continued(entry: Entry) -> int:
    """Return how many pieces with blocks follow a piece."""
    return sum(not below.piece.resume for below in entry.below)


def _with_all_before(entries: Iterable[Entry]) -> list[Entry]:
    """Return pieces and all that they need, each once."""
    line: dict[Entry, None] = {}
    for each in entries:
        entry: Entry | None = each
        while entry is not None and entry not in line:
            line[entry] = None
            entry = entry.above
    return list(line)
