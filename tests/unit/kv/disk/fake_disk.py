"""A disk tier over fake KV and files in memory, whose thread works when a test says so."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from daemon.kv.disk.codec import Codec
from daemon.kv.disk.files import Files
from daemon.kv.disk.format import DamagedError, decode_header, decode_parts, encode_header, header_length
from daemon.kv.disk.found import Found
from daemon.kv.disk.limits import Space
from daemon.kv.disk.note import Note
from daemon.kv.disk.piece import Part, Piece
from daemon.kv.disk.restores import Restore
from daemon.kv.disk.tier import DiskTier
from daemon.kv.disk.work import DiskWork
from daemon.kv.extent_ledger import runs
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.nodes import Checkpoint, Extent, Node
from daemon.kv.spec import KVSource, NotHeldError, PrefixSpec
from daemon.shared.slices import LONG, Sliced
from tests.unit.kv.fake_kv import GROUP_BLOCK_BYTES, PLAIN, STATE_BYTES, FakePrefixes, prompt

T = TypeVar("T")
NAME = "n/one"
TOKENS = prompt(1, 2, 3, 4)


class FakeCodec:
    """
    Fake KV as JSON: each part says which tokens it stands for.

    Args:
        block_bytes: Bytes of a block of a layer group out of a piece.
    """

    def __init__(self, block_bytes: int = GROUP_BLOCK_BYTES) -> None:
        self._block_bytes = block_bytes

    def blocks(self, nodes: Sequence[Node], spec: PrefixSpec) -> Iterator[Part]:
        """Yield blocks of the groups with full attention."""
        for index, group in enumerate(spec.groups):
            if group.window is None:
                yield _part(nodes, index)

    def resume(self, path: Sequence[Node], spec: PrefixSpec) -> Iterator[Part]:
        """Yield windows and the state, or a tail."""
        for index, group in enumerate(spec.groups):
            extent = path[-1].extents[index] if path[-1].is_tail else None
            if extent is not None:
                label, held = cast("tuple[int, tuple[int, ...]]", extent.payload)
                assert label == index
                yield Part({"tail": index}, json.dumps(held).encode())
            elif group.window is not None:
                yield _part(path[len(path) - group.visible(len(path)) :], index)
        if spec.state_bytes and (checkpoint := path[-1].checkpoint) is not None:
            yield Part({"state": 1}, json.dumps(checkpoint.payload).encode())

    def decoded(self, parts: Sequence[Part]) -> Sliced[KVSource]:
        """Return the source that some parts make up."""
        source = FakeSource(self._block_bytes)
        for part in parts:
            told = json.loads(bytes(part.data))
            if "state" in part.about:
                source.state = tuple(told)
            elif "tail" in part.about:
                source.tails[part.about["tail"]] = told
            else:
                source.groups[part.about["group"]] = (part.about["start"], told)
            yield LONG
        return source


class FakeSource:
    """KV out of a piece."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self.groups: dict[int, tuple[int, list[int]]] = {}
        self.tails: dict[int, list[int]] = {}
        self.state: tuple[int, ...] | None = None

    def pack(self, group: int, start: int, stop: int) -> Extent:
        """Return blocks, if the piece has them."""
        first, tokens = self.groups.get(group, (0, []))
        cut = tokens[(start - first) * BLOCK_TOKENS : (stop - first) * BLOCK_TOKENS] if start >= first else []
        if len(cut) < (stop - start) * BLOCK_TOKENS:
            raise NotHeldError("not in this piece")
        return Extent((group, tuple(cut)), (stop - start) * self._block_bytes, 1, start, stop - start)

    def tail(self, group: int, first: int, last: int) -> Extent:
        """Return the tail of a layer group, if the piece has it."""
        held = self.tails.get(group, [])
        if len(held) != last - first:
            raise NotHeldError("not in this piece")
        nbytes = len(held) * GROUP_BLOCK_BYTES // BLOCK_TOKENS
        return Extent((group, tuple(held)), nbytes, 1, last // BLOCK_TOKENS, 1)

    def checkpoint(self, tokens: int) -> Checkpoint | None:
        """Return the state, if it is of this position."""
        return Checkpoint(self.state, STATE_BYTES, 1) if self.state is not None and len(self.state) == tokens else None


class MemoryFiles(Files):
    """Files of a tier as bytes in a dictionary, with the real format."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"))
        self.content: dict[str, bytes] = {}
        self.times: dict[str, float] = {}
        self.hours: list[list[int]] = []
        self.disk = Space(10**9, 10**9)
        self.fault: OSError | None = None
        self.remove_fault: OSError | None = None
        self.read_fault: Exception | None = None
        self.noted = False

    def open(self) -> None:
        """Fail if that is wanted."""
        self._fail()

    def space(self) -> Space:
        """Return the size of the disk."""
        return Space(self.disk.total, self.disk.free - sum(map(len, self.content.values())))

    def scan(self, now: float) -> Found:
        """Return all pieces with a sound header."""
        found = Found(hours=self.hours, space=self.space())
        for name, data in list(self.content.items()):
            try:
                header = decode_header(data[: header_length(data)], len(data))
            except DamagedError:
                del self.content[name]
                continue
            found.pieces.append((header.piece, min(now, self.times.get(name, now))))
        return found

    def write(self, piece: Piece, parts: Sequence[Part]) -> int:
        """Store a piece."""
        self._fail()
        self.content[piece.name] = encode_header(piece, parts) + b"".join(bytes(part.data) for part in parts)
        return len(self.content[piece.name])

    def read(self, piece: Piece) -> list[Part]:
        """Return the parts of a piece."""
        self._fail()
        if self.read_fault is not None:
            raise self.read_fault
        data = self.content.get(piece.name)
        if data is None:
            raise FileNotFoundError(2, "gone")
        return decode_parts(decode_header(data[: header_length(data)], len(data)), data)

    def remove(self, names: Any, *, lasting: bool = False) -> None:
        """Remove files."""
        self._fail()
        if self.remove_fault is not None:
            raise self.remove_fault
        for name in names:
            self.content.pop(name, None)

    def write_index(self, pieces: Sequence[Piece], hours: Sequence[Sequence[int]]) -> int:
        """Note what was written."""
        self._fail()
        self.hours = [list(pair) for pair in hours]
        return 0

    def used(self, times: Any) -> None:
        """Note times of use."""
        self.times.update(times)

    def _fail(self) -> None:
        if self.fault is not None:
            raise self.fault


class MemoryNote(Note):
    """A note beside the files of a test; all processes share one name."""

    def __init__(self, files: MemoryFiles) -> None:
        super().__init__(files.folder, files.folder)
        self._files = files
        self._mine = False

    def look(self) -> bool:
        """Tell whether another tier left one."""
        return not self._mine and self._files.noted

    def write(self) -> None:
        """Write it, if there is none yet."""
        self._mine = self._mine or not self._files.noted
        self._files.noted = True

    def clear(self) -> None:
        """Remove it."""
        self._mine = self._files.noted = False


class FakeDisk:
    """
    A tier below a fake prefix cache.

    Attributes:
        prefixes: The cache above.
        tier: The tier.
        files: Its files.
        now: Seconds of the clock that never goes back.
        jumped: Seconds that the other one is ahead.
        has_room: Whether there is memory for bytes on their way.
    """

    def __init__(
        self,
        prefixes: FakePrefixes,
        files: MemoryFiles | None = None,
        wanted: int | None = 10**6,
        now: float = 1e9,
        codec: Codec | None = None,
    ) -> None:
        self.prefixes = prefixes
        self.files = files or MemoryFiles()
        self.now = now
        self.jumped = 0.0
        self.has_room = True
        self._work: deque[Callable[[], None]] = deque()
        self._reads: deque[Callable[[], None]] = deque()
        run, run_read = partial(self._run, self._work.append), partial(self._run, self._reads.appendleft)
        work = DiskWork(self.files, MemoryNote(self.files), run, run_read, lambda: self.now, self._wall)
        self.tier = DiskTier(
            work, wanted, prefixes.cache, codec or FakeCodec(), lambda: self.now, self._wall, lambda _: self.has_room
        )
        prefixes.cache.below = self.tier
        self.tier.begin()

    def _wall(self) -> float:
        return self.now + self.jumped

    def _run(
        self,
        add: Callable[[Callable[[], None]], None],
        what: str,
        work: Callable[[], T],
        then: Callable[[T | Exception], None],
    ) -> None:
        def done() -> None:
            try:
                result: T | Exception = work()
            except Exception as error:
                result = error
            then(result)

        add(done)

    def work(self, most: int = 10**6) -> bool:
        """Let the disk's threads do some of their work, the last read first, and tell whether there was any."""
        had = bool(self._work or self._reads)
        while most and (waiting := self._reads or self._work):
            waiting.popleft()()
            most -= 1
        return had

    def knows(self, namespace: str) -> None:
        """Note what a namespace consists of, as a request does."""
        self.tier.knows(namespace, self.prefixes.parts, "org/model")

    def settle(self) -> None:
        """Let both threads do all that there is."""
        while self.work() or self.tier.busy:
            if self.tier.busy:
                self.tier.step()

    def restoring(self, namespace: str, tokens: Sequence[int]) -> Restore:
        """Begin to restore what a prompt has on the disk."""
        restore = self.tier.restore()
        self.knows(namespace)
        restore.begin(tokens, lambda: namespace)
        restore.go(namespace, self.prefixes.parts)
        return restore

    def restore(self, namespace: str, tokens: Sequence[int]) -> list[int]:
        """Restore what a prompt has on the disk, look it up, and return the tokens whose KV came back."""
        restore = self.restoring(namespace, tokens)
        self.settle()
        assert restore.over()
        return self.prefixes.reuse(namespace, tokens)

    def check(self) -> None:
        """Recount."""
        self.tier.catalog.check()
        self.prefixes.cache.check_integrity()
        assert self.tier.catalog.nbytes <= max(0, self.tier.budget) or not self.tier.open


def written(*prompts: list[int], files: MemoryFiles | None = None, parts: PrefixSpec = PLAIN) -> FakeDisk:
    """Return a tier that has written some prompts, which memory holds no more."""
    disk = FakeDisk(FakePrefixes(parts=parts), files)
    disk.settle()
    for tokens in prompts:
        disk.knows(NAME)
        disk.prefixes.store(NAME, tokens)
        disk.prefixes.reuse(NAME, [*tokens, 9])
        disk.settle()
    disk.prefixes.cache.shed(10**9)
    return disk


def _part(nodes: Sequence[Node], group: int) -> Part:
    tokens: list[int] = []
    for payload, start, stop in runs(nodes, group):
        label, held = cast("tuple[int, tuple[int, ...]]", payload)
        assert label == group
        tokens += held[start:stop]
    return Part({"group": group, "start": nodes[0].depth - 1}, json.dumps(tokens).encode())
