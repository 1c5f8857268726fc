"""A disk that fails, is slow, full or away: requests go on, and what was invalidated does not come back."""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest

from daemon.kv.disk.note import MOST_FORGOTTEN
from daemon.kv.disk.restores import STALL_SECONDS
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.machine_faults import DeviceFailedError
from tests.unit.kv.disk.fake_disk import NAME, TOKENS, FakeCodec, FakeDisk, MemoryFiles, written
from tests.unit.kv.fake_kv import FakePrefixes, prompt


@pytest.mark.parametrize("place", [0, 40, -1])
def test_damaged_piece_is_removed_and_computed_again(place: int) -> None:
    """Wherever the damage is; what comes before it is used."""
    disk = written(TOKENS, prompt(1, 2, 3, 4, 5))
    last = max(disk.tier.catalog, key=lambda entry: entry.depth).piece.name
    content = bytearray(disk.files.content[last])
    content[place] ^= 4
    disk.files.content[last] = bytes(content)
    assert disk.restore(NAME, [*prompt(1, 2, 3, 4, 5), 9]) == TOKENS
    assert last not in disk.files.content
    assert disk.tier.work.counters.faults == 1


@pytest.mark.parametrize(
    "fault",
    [
        SidecarError(Reason.MODEL_NOT_RESPONDING, "its thread hangs"),
        SidecarError(Reason.MACHINE_EXHAUSTED, "there is no thread"),
        OSError(errno.EMFILE, "too many open files"),
        MemoryError(),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_read_without_a_look_at_the_file_keeps_its_piece(fault: Exception) -> None:
    """A disk that slept, or was busy, has as good a file as before: the next request that needs it has it."""
    disk = written(TOKENS)
    before = dict(disk.files.content)
    disk.files.read_fault = fault
    assert disk.restore(NAME, [*TOKENS, 9]) == []
    assert disk.tier.work.counters.faults == 1
    disk.files.read_fault = None
    assert disk.files.content == before
    assert disk.restore(NAME, [*TOKENS, 9]) == TOKENS


def test_piece_that_the_disk_cannot_read_is_removed() -> None:
    """With a fault of the disk itself, each request would wait for it again."""
    disk = written(TOKENS)
    disk.files.read_fault = OSError(errno.EIO, "it fails")
    assert disk.restore(NAME, [*TOKENS, 9]) == []
    assert not disk.files.content


def test_slow_disk_costs_a_request_no_more_than_a_moment() -> None:
    """Then it computes what is missing; what comes late is dropped."""
    disk = written(TOKENS)
    restore = disk.restoring(NAME, [*TOKENS, 9])
    assert not restore.over()
    disk.now += STALL_SECONDS + 0.1
    assert restore.over()
    disk.settle()
    assert disk.prefixes.reuse(NAME, [*TOKENS, 9]) == []
    assert disk.tier.staged == 0


def test_full_disk_is_written_to_no_more_for_a_while() -> None:
    """Requests do not notice, and later it is tried again."""
    disk = written()
    disk.files.fault = OSError(28, "full")
    disk.knows(NAME)
    disk.prefixes.store(NAME, TOKENS)
    for _ in range(3):
        assert disk.prefixes.reuse(NAME, [*TOKENS, 9]) == TOKENS
        disk.settle()
    assert disk.tier.work.counters.faults <= 2
    disk.files.fault = None
    disk.now += 60
    disk.prefixes.reuse(NAME, [*TOKENS, 9])
    disk.settle()
    assert disk.tier.catalog.blocks == 4


def test_second_daemon_works_without_the_disk() -> None:
    """It tries again, and its requests do not wait."""
    files = MemoryFiles()
    files.fault = OSError(11, "locked")
    disk = FakeDisk(FakePrefixes(), files)
    restore = disk.restoring(NAME, [*TOKENS, 9])
    disk.settle()
    assert restore.over()
    assert not disk.tier.open
    files.fault = None
    disk.now += 60
    disk.tier.tick()
    disk.settle()
    assert disk.tier.open


def test_directory_is_tried_ever_more_rarely() -> None:
    """At least once a minute; each try of a rank makes all others of its group scan theirs."""
    files = MemoryFiles()
    files.fault = OSError(13, "not yours")
    disk = FakeDisk(FakePrefixes(), files)
    disk.settle()
    tries = []
    for second in range(1, 301):
        disk.now += 1
        disk.tier.tick()
        tries += [second] * disk.tier.opening
        disk.settle()
    gaps = [later - sooner for sooner, later in pairwise([0, *tries])]
    assert gaps[:5] == [2, 4, 8, 16, 32]
    assert {*gaps[5:]} == {60}


def test_invalidation_removes_what_could_not_be_removed_before() -> None:
    """The catalog has it no more, and cannot tell whether it is meant."""
    disk = written(TOKENS)
    disk.files.remove_fault = OSError(5, "it fails")
    disk.tier._remove(disk.tier.catalog.drop(list(disk.tier.catalog)))
    disk.settle()
    assert disk.files.content
    disk.prefixes.cache.forget_prefix(NAME, TOKENS)
    disk.settle()
    assert isinstance(disk.tier.work.removal_error(), OSError)
    disk.tier.tick()  # tries again, and has not heard of it yet
    disk.files.remove_fault = None
    disk.prefixes.cache.forget_prefix(NAME, TOKENS)
    disk.settle()
    assert disk.tier.work.removal_error() is None
    assert not disk.files.content


@pytest.mark.parametrize("while_written", ["nothing", "a tick", "an invalidation"])
def test_removal_that_failed_is_not_tried_on_a_piece_written_since(while_written: str) -> None:
    """The prompt is used again, and its piece on the way to the disk, when its file cannot be removed."""
    disk = written(TOKENS)
    disk.files.remove_fault = OSError(5, "it fails")
    disk.tier._remove(disk.tier.catalog.drop(list(disk.tier.catalog)))
    disk.prefixes.store(NAME, TOKENS)
    disk.prefixes.reuse(NAME, [*TOKENS, 9])
    while disk.tier.busy:
        disk.tier.step()
    if while_written != "nothing":
        disk.work(1)
        disk.files.remove_fault = None
        disk.tier.tick() if while_written == "a tick" else disk.tier.forget("n/two".__eq__)
    disk.settle()
    disk.files.remove_fault = None
    disk.tier.tick()
    disk.settle()
    disk.prefixes.cache.shed(10**9)
    assert disk.restore(NAME, [*TOKENS, 9]) == TOKENS


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("forgotten", ["a prefix", "a namespace", "very many"])
def test_invalidation_waits_for_a_directory_that_is_away(forgotten: str, killed: bool) -> None:
    """A disk that is mounted later has nothing of what was invalidated before; if that is forgotten, nothing at all."""
    disk = written(TOKENS, prompt(5, 6))
    disk.files.fault = OSError(2, "not mounted")
    again = FakeDisk(FakePrefixes(), disk.files)
    again.settle()
    for _ in range(MOST_FORGOTTEN + 1 if forgotten == "very many" else 1):
        if forgotten == "a namespace":
            again.prefixes.cache.clear()
        else:
            again.prefixes.cache.forget_prefix(NAME, TOKENS)
    assert not again.tier.settled
    again.settle()
    assert again.tier.settled
    if killed:
        again = FakeDisk(FakePrefixes(), disk.files)
        again.settle()
    disk.files.fault = None
    again.now += 60
    again.tier.tick()
    again.settle()
    assert len(again.restore(NAME, [*TOKENS, 9])) < len(TOKENS)
    assert bool(again.restore(NAME, [*prompt(5, 6), 9])) == (forgotten == "a prefix" and not killed)
    assert not disk.files.noted


def test_invalidation_waits_for_a_directory_that_is_opened() -> None:
    """It returns when the files are gone, also right after a start."""
    disk = written(TOKENS)
    again = FakeDisk(FakePrefixes(), disk.files)
    again.prefixes.cache.forget_prefix(NAME, TOKENS)
    assert disk.files.content
    assert not again.tier.settled
    again.settle()
    assert again.tier.settled
    assert not disk.files.content


def test_note_goes_when_its_files_can_be_removed_at_last() -> None:
    """Until then it stays; a later process would else find all of the directory invalidated."""
    disk = written(TOKENS, prompt(5, 6))
    disk.files.fault = OSError(2, "not mounted")
    again = FakeDisk(FakePrefixes(), disk.files)
    again.settle()
    again.prefixes.cache.forget_prefix(NAME, TOKENS)
    again.settle()
    disk.files.fault, disk.files.remove_fault = None, OSError(13, "kept")
    again.now += 60
    again.tier.tick()
    again.settle()
    assert again.tier.open
    assert disk.files.noted
    disk.files.remove_fault = None
    again.tier.tick()
    again.settle()
    assert not disk.files.noted
    later = FakeDisk(FakePrefixes(), disk.files)
    later.settle()
    assert later.restore(NAME, [*prompt(5, 6), 9]) == prompt(5, 6)


def test_work_that_the_gpu_dropped_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored may be wrong: on the disk it would outlive the engine, which has to end."""
    disk = written()
    disk.knows(NAME)
    disk.prefixes.store(NAME, TOKENS)
    disk.prefixes.reuse(NAME, [*TOKENS, 9])

    def dropped(*_: object) -> None:
        raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommand")

    monkeypatch.setattr(FakeCodec, "blocks", dropped)
    with pytest.raises(DeviceFailedError):
        disk.settle()
    assert disk.files.content == {}
