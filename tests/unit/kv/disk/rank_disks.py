"""The disk tiers of the ranks of a group, each over files of its own: all act on what their disks have in common."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

from daemon.kv.disk.agreement import DifferError, adopted, merged, told
from daemon.kv.disk.found import Found
from daemon.kv.disk.piece import Part
from daemon.kv.nodes import Node
from daemon.kv.spec import PrefixSpec
from tests.unit.kv.disk.fake_disk import FakeCodec, FakeDisk, MemoryFiles
from tests.unit.kv.fake_kv import GROUP_BLOCK_BYTES, FakePrefixes

T = TypeVar("T")
Work = Callable[[], Any]
Then = Callable[[Any], None]


class RankFiles(MemoryFiles):
    """
    Files of a rank.

    Attributes:
        unopened: Names of files that a scan cannot open.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unopened: set[str] = set()

    def scan(self, now: float) -> Found:
        """Return all pieces that can be opened."""
        found = super().scan(now)
        found.pieces = [each for each in found.pieces if each[0].name not in self.unopened]
        found.left = sorted(self.unopened & self.content.keys())
        return found

    def remove(self, names: Any, *, lasting: bool = False) -> None:
        """Remove files, opened or not."""
        super().remove(names, lasting=lasting)
        self.unopened -= {*names}


class PaddedCodec(FakeCodec):
    """
    Fake KV with more layers than another rank has: blocks take more bytes, and hold the same tokens.

    Args:
        nbytes: Bytes that are added to each part.
    """

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self._padding = b" " * nbytes

    def blocks(self, nodes: Sequence[Node], spec: PrefixSpec) -> Iterator[Part]:
        """Yield blocks of the groups with full attention."""
        for part in super().blocks(nodes, spec):
            yield Part(part.about, bytes(part.data) + self._padding)


class RankDisk(FakeDisk):
    """The disk tier of one rank, whose work waits until all ranks do it."""

    def _run(
        self, add: Callable[[Any], None], what: str, work: Callable[[], T], then: Callable[[T | Exception], None]
    ) -> None:
        add((what, work, then))

    @property
    def writes(self) -> deque[tuple[str, Work, Then]]:
        """Work that is done in order and waits."""
        return cast("deque[tuple[str, Work, Then]]", self._work)

    @property
    def waiting(self) -> deque[tuple[str, Work, Then]]:
        """Work that waits and is next; reads go first."""
        return cast("deque[tuple[str, Work, Then]]", self._reads) or self.writes


class RankDisks:
    """
    The tiers of two ranks, of which each is told the same. The first may have more layers.

    Attributes:
        files: The files of each rank.
        disks: The tier of each rank.
    """

    def __init__(self, parts: PrefixSpec, nbytes: int, wanted: int, *, uneven: bool = False) -> None:
        self.files = [RankFiles(), RankFiles()]
        fewer = GROUP_BLOCK_BYTES // 2 if uneven and parts.resumes_anywhere else GROUP_BLOCK_BYTES
        self._codecs = [PaddedCodec(100 if uneven else 0), FakeCodec(fewer)]
        self._parts, self._nbytes, self._wanted = parts, nbytes, wanted
        self._begin(1e9)
        self.settle()

    def restart(self, done: Sequence[int]) -> None:
        """Kill all engines, after each rank's disk has done so much of its work. No result has arrived."""
        for disk, count in zip(self.disks, done, strict=True):
            for _, work, _ in list(disk.writes)[:count]:
                self._result(work)
        for files in self.files:
            files.fault = files.remove_fault = None
        self._begin(self.disks[0].now)
        self.settle()

    def all(self, ask: Callable[[RankDisk], T]) -> T:
        """Do the same on each rank, and return the result, which must be the same everywhere."""
        first, *others = [ask(disk) for disk in self.disks]
        assert all(each == first for each in others), "ranks decide otherwise"
        return first

    def work(self, most: int = 10**6) -> bool:
        """Let the disks of all ranks do some of their work, and tell whether there was any."""
        had = self.all(lambda disk: bool(disk.waiting))
        while most and self.all(lambda disk: bool(disk.waiting)):
            every = [disk.waiting.popleft() for disk in self.disks]
            assert len({what for what, _, _ in every}) == 1, "ranks do other work"
            for (_, _, then), result in zip(every, self._agreed([work for _, work, _ in every]), strict=True):
                then(result)
            most -= 1
        return had

    def step(self) -> None:
        """Do one slice on each rank, if there is one."""
        if self.all(lambda disk: disk.tier.busy):
            self.all(lambda disk: disk.tier.step())

    def settle(self) -> None:
        """Do all that there is."""
        while self.work() or self.all(lambda disk: disk.tier.busy):
            self.step()

    def check(self) -> None:
        """Recount, and compare what the ranks know."""
        for disk in self.disks:
            disk.check()
        self.all(
            lambda disk: [(each.piece.name, each.piece.nbytes, each.used, each.ready) for each in disk.tier.catalog]
        )
        self.all(lambda disk: (disk.tier.open, disk.tier.budget, disk.tier.staged, disk.tier.settled))
        self.all(lambda disk: disk.prefixes.cache.memory_usage())

    def _begin(self, now: float) -> None:
        self.disks = [
            RankDisk(FakePrefixes(1000, self._nbytes, parts=self._parts), files, self._wanted, now, codec)
            for files, codec in zip(self.files, self._codecs, strict=True)
        ]

    def _agreed(self, works: Sequence[Work]) -> list[Any]:
        """Return what each rank is to act on."""
        results = [self._result(work) for work in works]
        failed = next((each for each in results if isinstance(each, Exception)), None)
        if failed is not None:
            return [failed] * len(results)
        try:
            common = merged([told(each) for each in results])
        except DifferError as error:
            return [error] * len(results)
        return [adopted(each, common) for each in results]

    def _result(self, work: Work) -> Any:
        try:
            return work()
        except Exception as error:
            return error
