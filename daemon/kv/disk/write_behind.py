"""
Write-behind: prefixes that were used again become pieces on the disk, a slice for each turn of the engine.

    used() ──> a job: a path ──> blocks that the disk lacks ──> its resume piece ──> done
                  │  └─ some of it was evicted from memory: what is left of it is written
                  └─ dropped: the disk is full, busy or failing, the day's limit is reached, or it was invalidated

What to write and whether it may be written is decided here; `DiskTier` hands the bytes to the disk's thread.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from daemon.kv.disk.catalog import Catalog
from daemon.kv.disk.codec import PART_BYTES, Codec
from daemon.kv.disk.piece import Part, Piece, chain, hash_after, root_hash
from daemon.kv.extent_ledger import EXTENT_BLOCKS
from daemon.kv.keys import KEY_BYTES, TOKEN_BYTES
from daemon.kv.nodes import Node
from daemon.kv.place import furthest
from daemon.kv.spec import PrefixSpec
from daemon.kv.trie import PrefixTrie

MOST_JOBS = 32
"""Paths that wait to be written; the oldest is dropped for another: what is used again comes back."""

MOST_NAMESPACES = 1024
"""Namespaces that are known, the latest: callers choose salts, and each makes one."""

MOST_UNDERWAY = 2
"""Pieces that the disk's thread has and has not written. A slow disk holds up writing and nothing else."""


@dataclass(slots=True)
class Job:
    """
    A path that is written.

    Attributes:
        namespace: Digest of its namespace.
        keys: The keys of its blocks.
        tail: The key of the tail behind them; empty if there is none.
        hashes: The chain of the blocks.
        done: Blocks that are on the disk or are not to be written.
    """

    namespace: str
    keys: Sequence[bytes]
    tail: bytes = b""
    hashes: Sequence[bytes] = ()
    done: int = 0


@dataclass(slots=True)
class Draft:
    """A piece that is being turned into bytes."""

    piece: Piece
    encoding: Iterator[Part]
    parts: list[Part] = field(default_factory=list)


class WriteBehind:
    """
    Chooses what is written, and turns it into bytes.

    Args:
        trie: Holds the KV.
        catalog: What is on the disk.
        codec: Turns arrays into bytes.
        touched: Told which blocks of the disk were used again, as the chain up to the last of them.
        submit: Takes a piece and its parts, and tells whether it will be written.

    Attributes:
        underway: Pieces that the disk's thread has.
        dropped: Paths that were dropped for others, or for want of room.
    """

    def __init__(
        self,
        trie: PrefixTrie,
        catalog: Catalog,
        codec: Codec,
        touched: Callable[[Sequence[bytes]], None],
        submit: Callable[[Piece, list[Part]], bool],
    ) -> None:
        self.underway = 0
        self.dropped = 0
        self._trie = trie
        self._catalog = catalog
        self._codec = codec
        self._touched = touched
        self._submit = submit
        self._jobs: deque[Job] = deque()
        self._draft: Draft | None = None
        self._known: OrderedDict[str, tuple[PrefixSpec, str]] = OrderedDict()

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._jobs or self._draft) and self.underway < MOST_UNDERWAY

    def knows(self, namespace: str, spec: PrefixSpec, model: str) -> None:
        """Note what a namespace consists of, and the name of its model."""
        self._known[namespace] = (spec, model)
        self._known.move_to_end(namespace)
        if len(self._known) > MOST_NAMESPACES:
            self._known.popitem(last=False)

    def spec(self, namespace: str) -> PrefixSpec | None:
        """Return what a namespace consists of, if that is known."""
        known = self._known.get(namespace)
        return None if known is None else known[0]

    def used(self, namespace: str, path: Sequence[Node]) -> None:
        """Take a path that was used again, or that is kept."""
        if not path or namespace not in self._known:
            return
        if len(self._jobs) == MOST_JOBS:
            self._jobs.popleft()
            self.dropped += 1
        blocks = path[:-1] if path[-1].is_tail else path
        tail = path[-1].key if path[-1].is_tail and not self._known[namespace][0].resumes_anywhere else b""
        self._jobs.append(Job(namespace, [node.key for node in blocks], tail))

    def step(self) -> None:
        """Do one slice."""
        if self._draft is not None:
            self._encode(self._draft)
        elif self._jobs:
            self._begin(self._jobs[0])

    def forget(self, accept: Callable[[str], bool]) -> None:
        """Drop what is not written yet of the namespaces that `accept` names."""
        self._jobs = deque(job for job in self._jobs if not accept(job.namespace))
        if self._draft is not None and accept(self._draft.piece.namespace):
            self._draft = None

    def clear(self) -> None:
        """Drop all that is not written yet: the disk cannot be used."""
        self.forget(lambda _: True)

    def _begin(self, job: Job) -> None:
        """Find the next piece of a path that the disk lacks, or end the job."""
        if not job.hashes:
            job.hashes = chain(job.namespace, job.keys)
            job.done = self._catalog.covered(job.hashes)
            self._touched(job.hashes[: job.done])
        known = self._known.get(job.namespace)
        if known is None:
            self._jobs.popleft()
            return
        (spec, model), path = known, self._trie.walk(job.namespace, job.keys)
        if job.done < len(path):
            size = max(1, min(EXTENT_BLOCKS, PART_BYTES // max(1, spec.block_bytes)))
            stop = min(job.done + size, len(path))
            parent = job.hashes[job.done - 1] if job.done else root_hash(job.namespace)
            piece = Piece(
                job.namespace, model, job.done, parent, tuple(job.hashes[job.done : stop]), spec.resumes_anywhere
            )
            self._draft = Draft(piece, self._codec.blocks(path[job.done : stop], spec))
            job.done = stop
            return
        self._jobs.popleft()
        end = len(job.keys)
        tail = hash_after(job.hashes[-1], job.tail) if job.tail else b""
        missing = not spec.resumes_anywhere and len(path) == end and not self._catalog.resumable(tail or job.hashes[-1])
        place = furthest(path, b"".join((*job.keys, job.tail)), spec)
        whole = place.tokens * TOKEN_BYTES == end * KEY_BYTES + len(job.tail)
        if missing and self._catalog.covered(job.hashes) == end and whole:
            piece = Piece(job.namespace, model, end, job.hashes[-1], (), anywhere=False, tail=tail)
            self._draft = Draft(piece, self._codec.resume(place.nodes, spec))

    def _encode(self, draft: Draft) -> None:
        part = next(draft.encoding, None)
        if part is not None:
            draft.parts.append(part)
            return
        self._draft = None
        if not self._submit(draft.piece, draft.parts):
            self.dropped += 1
            self._jobs = deque(job for job in self._jobs if job.namespace != draft.piece.namespace)
