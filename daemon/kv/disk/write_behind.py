"""
Write-behind: prefixes that were used again become pieces on the disk, a slice for each turn of the engine.

    used() ──> a job: a path ──> blocks that the disk lacks ──> its resume piece, if the last is far ──> done
                  │  └─ some of it was evicted from memory: what is left of it is written
                  └─ dropped: the disk is full, busy or failing, the day's limit is reached, or it was invalidated

A lookup that reuses a path is where its prompt begins to be computed. So a path waits until no prompt is computed, but
not for ever: a daemon that always computes prompts writes as well.

What to write and whether it may be written is decided here; `DiskTier` hands the bytes to the disk's thread.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from daemon.kv.disk.catalog import Catalog
from daemon.kv.disk.codec import PIECE_BYTES, Codec
from daemon.kv.disk.piece import Part, Piece, chain, hash_after, root_hash
from daemon.kv.extent_ledger import EXTENT_BLOCKS
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.nodes import Node
from daemon.kv.resume import INTERVAL
from daemon.kv.spec import PrefixSpec
from daemon.kv.trie import PrefixTrie

MOST_JOBS = 32
"""Paths that wait to be written; the oldest is dropped for another: what is used again comes back."""

MOST_NAMESPACES = 1024
"""Namespaces that are known, the latest: callers choose salts, and each makes one."""

MOST_UNDERWAY = 2
"""Pieces that the disk's thread has and has not written. A slow disk holds up writing and nothing else."""

MOST_REST = 10.0
"""Seconds for which a path waits for prompts: they need the memory's bandwidth, and a client waits for them."""


@dataclass(slots=True)
class Job:
    """
    A path that is written.

    Attributes:
        namespace: Digest of its namespace.
        keys: The keys of its blocks.
        since: When it was taken.
        tail: The key of the tail behind them; empty if there is none.
        hashes: The chain of the blocks.
        done: Blocks that are on the disk or are not to be written.
        idle: Seconds since its last use, if it is written as it was idle; None if it was used again or is kept.
        exact: Whether it is written with a resume piece at its end, however near the one before is.
    """

    namespace: str
    keys: Sequence[bytes]
    since: float
    tail: bytes = b""
    hashes: Sequence[bytes] = ()
    done: int = 0
    idle: float | None = None
    exact: bool = False


@dataclass(slots=True)
class Encoding:
    """
    A piece that is being turned into bytes.

    Attributes:
        piece: The piece.
        nbytes: Bytes that it will have, about.
        to_come: Yields the parts that are not there yet.
        whole: Tells whether memory still has all of it.
        since: See `Job`.
        idle: See `Job`.
        end: The block whose checkpoint it has; None if it has none.
        parts: Those that there are.
    """

    piece: Piece
    nbytes: int
    to_come: Iterator[Part]
    whole: Callable[[], bool]
    since: float
    idle: float | None
    end: Node | None = None
    parts: list[Part] = field(default_factory=list)


class WriteBehind:
    """
    Chooses what is written, and turns it into bytes.

    Args:
        trie: Holds the KV.
        catalog: What is on the disk.
        codec: Turns arrays into bytes.
        touched: Told which blocks of the disk were used again, as the chain up to the last of them.
        submit: Takes a piece, its parts, their bytes and for how long it was idle; tells whether it will be written.
        has_room: Tells whether so many bytes of memory are free, or can be made free.
        clock: Seconds that never go back.

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
        submit: Callable[[Piece, list[Part], int, float | None], bool],
        has_room: Callable[[int], bool],
        clock: Callable[[], float],
    ) -> None:
        self.underway = 0
        self._underway_bytes = 0
        self.dropped = 0
        self._trie = trie
        self._catalog = catalog
        self._codec = codec
        self._touched = touched
        self._submit = submit
        self._has_room = has_room
        self._clock = clock
        self._jobs: deque[Job] = deque()
        self._encoding: Encoding | None = None
        self._known: OrderedDict[str, tuple[PrefixSpec, str]] = OrderedDict()

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._jobs or self._encoding) and self.underway < MOST_UNDERWAY

    @property
    def staged(self) -> int:
        """Bytes of the pieces that the disk's thread has, and of what is being turned into bytes."""
        return self._underway_bytes + (0 if self._encoding is None else self._encoding.nbytes)

    def sent(self, nbytes: int) -> None:
        """Note that the disk's thread got a piece."""
        self.underway += 1
        self._underway_bytes += nbytes

    def over(self, nbytes: int) -> None:
        """Note that the disk's thread is done with a piece."""
        self.underway -= 1
        self._underway_bytes -= nbytes

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

    def used(self, namespace: str, path: Sequence[Node], *, kept: bool = False) -> None:
        """Take a path that was used again, or that is kept."""
        if not path or namespace not in self._known:
            return
        if len(self._jobs) == MOST_JOBS:
            self._jobs.popleft()
            self.dropped += 1
        blocks = path[:-1] if path[-1].is_tail else path
        tail = path[-1].key if path[-1].is_tail and not self._known[namespace][0].resumes_anywhere else b""
        self._jobs.append(Job(namespace, [node.key for node in blocks], self._clock(), tail, exact=kept))

    def idle(self, namespace: str, path: Sequence[Node], seconds: float) -> bool:
        """Take a path that goes soon, as it was idle for so long; False if too many wait. It drops no other path."""
        if len(self._jobs) == MOST_JOBS:
            return False
        known = self._known.get(namespace)
        if known is None or not path:
            return True
        spec, end = known[0], path[-1]
        tail = end.key if end.is_tail and spec.resumes_at(end) and not spec.resumes_anywhere else b""
        blocks = path[:-1] if end.is_tail else path
        blocks = blocks if tail else blocks[: spec.restorable(blocks)]
        if blocks:
            keys = [node.key for node in blocks]
            self._jobs.append(Job(namespace, keys, self._clock(), tail, idle=seconds, exact=True))
        return True

    def step(self, *, prompts: bool) -> None:
        """Do one slice, if it is `busy`, or rest for the prompts that are computed."""
        first = self._encoding or self._jobs[0]
        if prompts and self._clock() - first.since < MOST_REST:
            return
        if isinstance(first, Encoding):
            self._encode(first)
        else:
            self._begin(first)

    def forget(self, accept: Callable[[str], bool]) -> None:
        """Drop what is not written yet of the namespaces that `accept` names."""
        self._jobs = deque(job for job in self._jobs if not accept(job.namespace))
        if self._encoding is not None and accept(self._encoding.piece.namespace):
            self._encoding = None

    def clear(self) -> None:
        """Drop all that is not written yet: the disk cannot be used."""
        self.forget(lambda _: True)

    def _begin(self, job: Job) -> None:
        """Find the next piece of a path that the disk lacks, or end the job."""
        if not job.hashes:
            job.hashes = chain(job.namespace, job.keys)
            job.done = self._catalog.covered(job.hashes)
            if job.idle is None:
                self._touched(job.hashes[: job.done])
        known = self._known.get(job.namespace)
        if known is None:
            self._jobs.popleft()
            return
        (spec, model), path = known, self._trie.walk(job.namespace, job.keys)
        if job.done < len(path):
            size = max(1, min(EXTENT_BLOCKS, PIECE_BYTES // max(1, spec.block_bytes)))
            stop = min(job.done + size, len(path))
            parent = job.hashes[job.done - 1] if job.done else root_hash(job.namespace)
            piece = Piece(
                job.namespace, model, job.done, parent, tuple(job.hashes[job.done : stop]), spec.resumes_anywhere
            )
            stretch = path[job.done : stop]
            nbytes, whole = len(stretch) * spec.block_bytes, partial(_stored, stretch)
            self._begin_encoding(Encoding(piece, nbytes, self._codec.blocks(stretch, spec), whole, job.since, job.idle))
            job.done = stop
            return
        self._jobs.popleft()
        self._begin_resume(job, path, spec, model)

    def _begin_resume(self, job: Job, path: Sequence[Node], spec: PrefixSpec, model: str) -> None:
        """Begin the resume piece at the end of a path, if the model needs one there and the disk lacks it."""
        end = len(job.keys)
        if job.tail:
            path = [*path, *filter(None, [path[-1].child(job.tail)])] if len(path) == end else ()
        restorable = partial(_restorable, spec, path)
        if spec.resumes_anywhere or len(path) < end + bool(job.tail) or not restorable():
            return
        tail = hash_after(job.hashes[-1], job.tail) if job.tail else b""
        last = self._catalog.last_resume(job.hashes)
        if self._catalog.resumable(tail or job.hashes[-1]):
            _note_below(path[-1])
        elif last and not job.exact and (end - last) < _distance(spec, end):
            return
        elif self._catalog.covered(job.hashes) == end:
            piece = Piece(job.namespace, model, end, job.hashes[-1], (), anywhere=False, tail=tail)
            nbytes = spec.tail_bytes(path[-1].tokens, path[-1].end) if tail else spec.resume_bytes(end)
            parts = self._codec.resume(path, spec)
            self._begin_encoding(Encoding(piece, nbytes, parts, restorable, job.since, job.idle, path[-1]))

    def _begin_encoding(self, encoding: Encoding) -> None:
        """Begin a piece, if there is memory for its bytes."""
        if self._has_room(encoding.nbytes):
            self._encoding = encoding
        else:
            self._refused(encoding)

    def _refused(self, encoding: Encoding) -> None:
        """Drop what waits and would be refused as well: all idle paths, or those of the namespace."""
        self.dropped += 1
        if encoding.idle is not None:
            self._jobs = deque(job for job in self._jobs if job.idle is None)
        else:
            self._jobs = deque(job for job in self._jobs if job.namespace != encoding.piece.namespace)

    def _encode(self, encoding: Encoding) -> None:
        if not encoding.whole():  # it was evicted meanwhile
            self._encoding = None
            return
        part = next(encoding.to_come, None)
        if part is not None:
            encoding.parts.append(part)
            return
        self._encoding = None
        nbytes = sum(len(part.data) for part in encoding.parts)
        if encoding.piece.anywhere:
            nbytes = max(nbytes, encoding.nbytes)  # a rank with fewer layers than another bills what that one has
        if not self._submit(encoding.piece, encoding.parts, nbytes, encoding.idle):
            self._refused(encoding)
        elif encoding.end is not None:
            _note_below(encoding.end)


def _distance(spec: PrefixSpec, end: int) -> int:
    """
    Return how many blocks after a resume piece the next one is worth its bytes.

    Each turn of a conversation goes on from the end of the one before. A piece for each would take most of the disk,
    and of the writes of a day. So resume pieces take no more bytes than the KV between them, and INTERVAL is enough.
    """
    return min(INTERVAL // BLOCK_TOKENS, spec.resume_bytes(end) // max(1, spec.block_bytes))


def _note_below(end: Node) -> None:
    """Note that a checkpoint is on the disk, so that memory may lose it first."""
    if end.checkpoint is not None:
        end.checkpoint.below = True


def _restorable(spec: PrefixSpec, path: Sequence[Node]) -> bool:
    """Whether a request can still go on at the end of a path, which may be a tail."""
    end = path[-1]
    return _stored(path) and (spec.resumes_at(end) if end.is_tail else spec.restorable(path) == len(path))


def _stored(nodes: Sequence[Node]) -> bool:
    """Whether none of some blocks was evicted or forgotten."""
    return all(node.parent is not None for node in nodes)
