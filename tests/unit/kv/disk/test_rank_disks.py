"""Ranks of a group restore from their disks together or not at all, whatever happens to the files of one of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from structlog.testing import capture_logs

from daemon.kv.disk.limits import Space
from daemon.kv.keys import UNSALTED
from daemon.kv.spec import LayerGroup, PrefixSpec, Resume
from tests.unit.kv.disk.fake_disk import NAME, TOKENS, FakeDisk
from tests.unit.kv.disk.random_prompts import NAMESPACES, PROMPTS
from tests.unit.kv.disk.rank_disks import RankDisk, RankDisks
from tests.unit.kv.fake_kv import ALL, BLOCK_BYTES, HYBRID, PLAIN, WINDOWED, FakePrefixes, prompt

RANK = st.integers(0, 1)
BILLED = PrefixSpec((LayerGroup(1000), LayerGroup(1000)))
"""Layers of a pipeline with unequal parts: each rank bills what the one with the most has."""


def wrote(ranks: RankDisks, namespace: str, tokens: list[int]) -> None:
    """Store a prompt on all ranks and use it again."""

    def used(disk: RankDisk) -> None:
        disk.knows(namespace)
        disk.prefixes.store(namespace, tokens, Resume.YES)
        disk.prefixes.reuse(namespace, [*tokens, 9])

    ranks.all(used)
    ranks.settle()


def restored(ranks: RankDisks, namespace: str, tokens: list[int]) -> list[int]:
    """Restore a prompt on all ranks, and return the tokens whose KV came back."""
    waiting = [disk.restoring(namespace, tokens) for disk in ranks.disks]
    ranks.settle()
    assert all(restore.over() for restore in waiting)
    return ranks.all(lambda disk: disk.prefixes.reuse(namespace, tokens))


@pytest.fixture(name="ranks")
def _ranks() -> RankDisks:
    """Return two ranks that have written a prompt."""
    ranks = RankDisks(PLAIN, 10**6, 10**6)
    wrote(ranks, NAME, TOKENS)
    return ranks


def names(ranks: RankDisks) -> list[set[str]]:
    """Return the files of each rank."""
    return [set(files.content) for files in ranks.files]


def used_twice(ranks: RankDisks) -> None:
    """Store a prompt and use it again on each rank, so that it is to be written."""
    for disk in ranks.disks:
        disk.knows(NAME)
        disk.prefixes.store(NAME, TOKENS, Resume.YES)
        disk.prefixes.reuse(NAME, [*TOKENS, 9])


def test_all_ranks_write_and_restore_a_prefix(ranks: RankDisks) -> None:
    """The pieces have the same names on each."""
    assert names(ranks)[0] == names(ranks)[1] != set()
    ranks.restart([0, 0])
    assert restored(ranks, NAME, [*TOKENS, 9]) == TOKENS


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["lost", "torn", "unopened"])
def test_piece_that_a_rank_lacks_at_a_start_goes_on_all(ranks: RankDisks, rank: int, how: str) -> None:
    """The scan of one rank alone knows."""
    files = ranks.files[rank]
    for name in list(files.content):
        if how == "lost":
            del files.content[name]
        elif how == "torn":
            files.content[name] = files.content[name][:-1]
        else:
            files.unopened.add(name)
    ranks.restart([0, 0])
    assert restored(ranks, NAME, [*TOKENS, 9]) == []
    assert names(ranks) == [set(), set()]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["lost", "damaged", "fault"])
def test_piece_that_a_rank_cannot_read_goes_on_all(ranks: RankDisks, rank: int, how: str) -> None:
    """Though the others have read it."""
    ranks.restart([0, 0])
    files = ranks.files[rank]
    for name in list(files.content):
        if how == "lost":
            del files.content[name]
        elif how == "damaged":
            files.content[name] = files.content[name][:-1] + b"?"
    files.fault = OSError(5, "it fails") if how == "fault" else None
    assert restored(ranks, NAME, [*TOKENS, 9]) == []
    files.fault = None
    for disk in ranks.disks:
        disk.now += 60
        disk.tier.tick()
    ranks.settle()
    assert names(ranks) == [set(), set()]


def test_piece_that_a_rank_cannot_write_goes_on_all(ranks: RankDisks) -> None:
    """A full disk of one is that of all."""
    before = names(ranks)
    ranks.files[1].fault = OSError(28, "full")
    wrote(ranks, NAME, [8] * 64)
    ranks.files[1].fault = None
    for disk in ranks.disks:
        disk.now += 60
        disk.tier.tick()
    ranks.settle()
    assert names(ranks) == before
    assert [disk.tier.work.counters.faults for disk in ranks.disks] == [2, 2]  # the write, and the removal after it


def test_engines_killed_in_a_write_leave_a_piece_of_all_or_of_none() -> None:
    """One rank's disk has written, and the other's has not."""
    ranks = RankDisks(PLAIN, 10**6, 10**6)
    used_twice(ranks)
    while not ranks.disks[0].waiting:
        ranks.step()
    ranks.restart([1, 0])
    assert names(ranks) == [set(), set()]


def test_smallest_disk_decides(ranks: RankDisks) -> None:
    """Of the ranks' disks, one has no more room."""
    ranks.files[1].disk = type(ranks.files[1].disk)(10**9, 10**8)
    ranks.restart([0, 0])
    assert ranks.all(lambda disk: disk.tier.budget) == 0
    assert names(ranks) == [set(), set()]


def test_rank_whose_disk_is_too_small_is_named(ranks: RankDisks) -> None:
    """In the log of each rank, with the directory of that one, and what its disk leaves."""
    for files in ranks.files:
        files.content.clear()
    ranks.files[1].folder = Path("/other")
    ranks.files[1].disk = Space(10**9, 10**8 + 1000)
    with capture_logs() as lines:
        ranks.restart([0, 0])
    small = [line for line in lines if line["event"] == "kv_disk_too_small"]
    assert [(line["rank"], line["directory"], line["budget_bytes"]) for line in small] == [(1, "/other", 1000)] * 2


def test_note_of_one_rank_removes_the_pieces_of_all(ranks: RankDisks) -> None:
    """Something was invalidated while its directory could not be used."""
    ranks.files[1].noted = True
    ranks.restart([0, 0])
    assert names(ranks) == [set(), set()]
    assert not ranks.files[1].noted


def test_rank_with_fewer_layers_counts_the_bytes_of_the_other() -> None:
    """Before a piece is written as afterwards, or the ranks would not evict and read ahead alike."""
    ranks = RankDisks(BILLED, 10**6, 10**6, uneven=True)
    used_twice(ranks)
    while not ranks.disks[0].waiting:
        ranks.step()
        ranks.check()
    ranks.settle()
    ranks.check()
    first, other = (sum(map(len, files.content.values())) for files in ranks.files)
    assert ranks.all(lambda disk: disk.tier.catalog.nbytes) == first > other
    ranks.restart([0, 0])
    assert restored(ranks, NAME, [*TOKENS, 9]) == TOKENS


def test_pieces_of_another_cut_do_not_hide_those_of_now() -> None:
    """There are more of them, but no request has them."""
    model = "a" * 128
    before, now = (f"{model}{layout * 64}/{UNSALTED}" for layout in "bc")
    disk = FakeDisk(FakePrefixes())
    disk.settle()
    for namespace, tokens in ((before, prompt(1)), (before, prompt(2)), (now, prompt(1))):
        disk.knows(namespace)
        disk.prefixes.store(namespace, tokens)
        disk.prefixes.reuse(namespace, [*tokens, 9])
        disk.settle()
    again = FakeDisk(FakePrefixes(), disk.files)
    again.settle()
    assert again.tier.namespace_of(model, "") == before
    again.knows(now)
    assert again.tier.namespace_of(model, "") == now


class RankDisksMachine(RuleBasedStateMachine):
    """Random calls, and faults of one rank at a time: all ranks decide alike, and restore what was stored."""

    @initialize(parts=st.sampled_from([PLAIN, WINDOWED, HYBRID, ALL, BILLED]), wanted=st.sampled_from([60_000, 10**6]))
    def start(self, parts: PrefixSpec, wanted: int) -> None:
        """Choose the layout and the limit."""
        self.ranks = RankDisks(parts, 1000 * BLOCK_BYTES, wanted, uneven=parts is BILLED)

    @rule(namespace=NAMESPACES, tokens=PROMPTS)
    def write(self, namespace: str, tokens: list[int]) -> None:
        """Store a prompt and use it again."""
        wrote(self.ranks, namespace, tokens)

    @rule(namespace=NAMESPACES, tokens=PROMPTS, slices=st.integers(0, 6), work=st.integers(0, 3))
    def begin(self, namespace: str, tokens: list[int], slices: int, work: int) -> None:
        """Begin to restore and to write prompts, and go on a little."""

        def used(disk: RankDisk) -> None:
            disk.restoring(namespace, tokens)
            disk.prefixes.store(namespace, tokens, Resume.YES)
            disk.prefixes.reuse(namespace, [*tokens, 9])

        self.ranks.all(used)
        for _ in range(slices):
            self.ranks.step()
        self.ranks.work(work)

    @rule(namespace=NAMESPACES, tokens=PROMPTS)
    def restore(self, namespace: str, tokens: list[int]) -> None:
        """Restore a prompt that memory has no more."""
        self.ranks.all(lambda disk: disk.prefixes.cache.shed(10**9))
        back = restored(self.ranks, namespace, [*tokens, 9])
        assert back == tokens[: len(back)]

    @rule(done=st.tuples(st.integers(0, 3), st.integers(0, 3)))
    def restart(self, done: tuple[int, int]) -> None:
        """Kill the engines; what the disks have done by then differs."""
        self.ranks.restart(done)
        assert {*self.ranks.files[0].content} == {*self.ranks.files[1].content}

    @rule(rank=RANK, write=st.booleans(), remove=st.booleans(), namespace=NAMESPACES, tokens=PROMPTS)
    def fault(self, rank: int, write: bool, remove: bool, namespace: str, tokens: list[int]) -> None:
        """Let the disk of a rank fail for a while."""
        files = self.ranks.files[rank]
        files.fault = OSError(28, "full") if not remove else None
        files.remove_fault = OSError(5, "it fails") if remove else None
        self.write(namespace, tokens) if write else self.restore(namespace, tokens)
        files.fault = files.remove_fault = None

    @rule(rank=RANK, how=st.sampled_from(["lost", "torn", "flipped", "unopened"]), which=st.integers(0, 10))
    def damage(self, rank: int, how: str, which: int) -> None:
        """Let something happen to a file of a rank."""
        files = self.ranks.files[rank]
        for name in sorted(files.content)[which : which + 1]:
            match how:
                case "lost":
                    del files.content[name]
                case "torn":
                    files.content[name] = files.content[name][:-1]
                case "flipped":
                    files.content[name] = files.content[name][:-1] + bytes([files.content[name][-1] ^ 1])
                case _:
                    files.unopened.add(name)

    @rule(namespace=NAMESPACES, tokens=PROMPTS)
    def forget(self, namespace: str, tokens: list[int]) -> None:
        """Forget all prompts that begin with some tokens: nothing of them comes back after a restart."""
        self.time_passes(60)
        self.ranks.settle()
        if self.ranks.all(lambda disk: disk.tier.open):
            self.ranks.all(lambda disk: disk.prefixes.cache.forget_prefix(namespace, tokens))
            self.ranks.settle()
            assert self.ranks.all(lambda disk: disk.tier.settled)
            self.ranks.restart([0, 0])
            assert len(restored(self.ranks, namespace, [*tokens, 9])) < max(16, len(tokens) // 16 * 16)

    @rule(seconds=st.sampled_from([1, 60, 400]))
    def time_passes(self, seconds: int) -> None:
        """Let time pass."""

        def passed(disk: RankDisk) -> None:
            disk.now += seconds
            disk.tier.tick()

        self.ranks.all(passed)

    @invariant()
    def ranks_agree(self) -> None:
        """Recount, and compare."""
        if hasattr(self, "ranks"):
            self.ranks.check()


RankDisksMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None, print_blob=True)
TestRankDisksMachine = RankDisksMachine.TestCase


@pytest.mark.slow
def test_ranks_agree_at_random() -> None:
    """Many more examples."""
    run_state_machine_as_test(
        RankDisksMachine,
        settings=settings(max_examples=1500, stateful_step_count=60, deadline=None, print_blob=True, database=None),
    )
