"""A weight file is hashed once for each of its states, and a digest of an unsettled file is not kept."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon.cache import background_save
from daemon.cache import digests as module
from daemon.cache.digest_notes import FILE_NAME, DigestFile
from daemon.cache.digests import SETTLED_NS, Digests, Stamp, TakesLong

CONTENT = b"weights" * 100
NAME = hashlib.sha256(CONTENT).hexdigest()


def _ignore(_done: int, _total: int) -> None:
    """Ignore the progress."""


def _later() -> int:
    """Return a time long after the files of the test were written."""
    return time.time_ns() + 2 * SETTLED_NS


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture(name="reads")
def _reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that each file is added to when it is read."""
    reads: list[Path] = []
    real = module._sha256

    def noting(path: Path, *rest: Any) -> str:
        reads.append(path)
        return real(path, *rest)

    monkeypatch.setattr(module, "_sha256", noting)
    return reads


@pytest.fixture(name="large")
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file count as large."""
    monkeypatch.setattr(module, "QUICK_BYTES", 10)
    monkeypatch.setattr(module, "_PIECE", 300)
    monkeypatch.setattr(module, "_REPORTED", 300)


def test_unchanged_file_is_digested_once(file: Path, reads: list[Path]) -> None:
    digests = Digests(now_ns=_later)

    assert [digests.digest(file) for _ in range(3)] == [NAME] * 3
    assert reads == [file]


@pytest.mark.parametrize("change", ["touched", "replaced", "rewritten", "linked elsewhere"])
def test_changed_file_is_digested_again(file: Path, reads: list[Path], change: str) -> None:
    digests = Digests(now_ns=_later)
    link = file.with_name("link")
    link.symlink_to(file)
    digests.digest(link)
    if change == "touched":
        os.utime(file, ns=(0, 1))
    elif change == "rewritten":
        stat = file.stat()
        file.write_bytes(CONTENT[::-1])
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        other = file.with_name("other")
        other.write_bytes(CONTENT[::-1])
        if change == "replaced":
            other.replace(file)
        else:
            link.unlink()
            link.symlink_to(other)

    assert (digests.digest(link) == NAME) == (change == "touched")
    assert len(reads) == 2


def test_recently_written_file_is_not_remembered(file: Path, reads: list[Path]) -> None:
    digests = Digests(now_ns=lambda: file.stat().st_ctime_ns)

    assert digests.digest(file) == digests.digest(file) == NAME
    assert len(reads) == 2


def test_file_from_the_future_is_remembered_once_it_is_settled(file: Path, reads: list[Path]) -> None:
    """A clock was wrong, or a disk keeps the local time of elsewhere: no request may read all of it each time."""
    times = iter(seconds * 10**9 for seconds in (10, 11, 20, 30))  # of each read
    digests = Digests(now_ns=lambda: 0, monotonic_ns=lambda: next(times))
    assert [digests.digest(file) for _ in range(5)] == [NAME] * 5
    assert len(reads) == 3
    file.write_bytes(CONTENT[::-1])
    assert digests.digest(file) != NAME
    assert len(reads) == 4


@pytest.mark.usefixtures("large")
def test_fast_path_digests_no_large_weight_file(file: Path, reads: list[Path]) -> None:
    digests = Digests(now_ns=_later)

    with pytest.raises(TakesLong):
        digests.digest(file)
    assert reads == []
    assert digests.digest(file, report=_ignore) == digests.digest(file) == NAME


@pytest.mark.usefixtures("large")
def test_large_file_digest_reports_progress_and_aborts(file: Path) -> None:
    reports: list[tuple[int, int]] = []

    def abandon(_done: int, _total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Digests(now_ns=_later).digest(file, report=abandon)
    Digests(now_ns=_later).digest(file, report=lambda done, total: reports.append((done, total)))
    assert reports == [(300, 700), (600, 700), (700, 700)]


@pytest.mark.usefixtures("large")
def test_concurrent_digests_read_a_file_once(file: Path, reads: list[Path]) -> None:
    digests = Digests(now_ns=_later)
    begun, go_on = threading.Event(), threading.Event()
    results: list[str] = []

    def wait(_done: int, _total: int) -> None:
        begun.set()
        assert go_on.wait(60)

    threads = [
        threading.Thread(target=lambda: results.append(digests.digest(file, report=wait)), daemon=True)
        for _ in range(2)
    ]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert results == [NAME] * 2
    assert reads == [file]


@pytest.fixture(name="blob")
def _blob(tmp_path: Path) -> Path:
    """Return a link of a Hub snapshot to a blob with another digest than its name says."""
    blob = tmp_path / "models--org--name" / "blobs" / ("ab" * 32)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(CONTENT)
    link = tmp_path / "models--org--name" / "snapshots" / "main" / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    return link


def test_hub_blob_digest_comes_from_its_name(blob: Path, reads: list[Path]) -> None:
    assert Digests().digest(blob, hub=True) == "ab" * 32
    assert reads == []


def test_hub_blob_name_is_trusted_in_the_hub_cache(blob: Path) -> None:
    assert Digests().digest(blob) == NAME


def test_rewritten_hub_blob_is_digested(blob: Path) -> None:
    digests = Digests(now_ns=_later)
    digests.digest(blob, hub=True)
    os.utime(blob, ns=(0, 1))

    assert digests.digest(blob, hub=True) == NAME


@pytest.mark.usefixtures("large")
def test_large_file_digests_outlive_the_process(file: Path, tmp_path: Path, reads: list[Path]) -> None:
    notes = DigestFile(tmp_path / "state" / FILE_NAME)
    Digests(notes, _later).digest(file, report=_ignore)

    assert Digests(notes, _later).digest(file) == NAME
    assert len(reads) == 1
    assert (tmp_path / "state" / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert [one.name for one in (tmp_path / "state").iterdir()] == [FILE_NAME]


def test_small_file_digests_are_not_saved(file: Path, tmp_path: Path) -> None:
    Digests(DigestFile(tmp_path / "state" / FILE_NAME), _later).digest(file)

    assert not (tmp_path / "state").exists()


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "another version": lambda notes: {**notes, "version": 2},
    "a list": lambda notes: [notes],
    "no files": lambda notes: {"version": 1},
    "a short entry": lambda notes: {**notes, "files": {"/x": [1, 2, NAME]}},
    "no digest": lambda notes: {**notes, "files": {"/x": [1, 2, 3, 4, "x"]}},
    "no numbers": lambda notes: {**notes, "files": {"/x": ["1", 2, 3, 4, NAME]}},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_digest_notes_cost_only_time(tmp_path: Path, file: Path, damage: str) -> None:
    notes = DigestFile(tmp_path / FILE_NAME)
    notes.write({str(file): (Stamp.of(file), NAME)})
    assert notes.read() == {str(file): (Stamp.of(file), NAME)}
    content = json.loads((tmp_path / FILE_NAME).read_text())
    (tmp_path / FILE_NAME).write_text(json.dumps(DAMAGE[damage](content)))

    assert notes.read() == {}


def test_unusable_digest_notes_are_logged(tmp_path: Path, file: Path) -> None:
    (tmp_path / FILE_NAME).write_text("{")
    in_the_way = DigestFile(file / FILE_NAME)

    with capture_logs() as logs:
        assert DigestFile(tmp_path / FILE_NAME).read() == {}
        in_the_way.write({"x": (Stamp.of(file), NAME)})

    assert [line["log_level"] for line in logs] == ["warning", "warning"]


class HangingNotes:
    """Notes in a state directory that hangs until the test lets it go."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.written: list[dict[str, tuple[Stamp, str]]] = []

    def read(self) -> dict[str, tuple[Stamp, str]]:
        """Return nothing: it is the first run."""
        return {}

    def write(self, known: dict[str, tuple[Stamp, str]]) -> None:
        """Hang, then note."""
        assert self.go_on.wait(60)
        self.written.append(known)


@pytest.mark.usefixtures("large")
def test_a_state_directory_that_hangs_holds_up_no_digest(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the caller that notes a digest nor callers after it wait; the last state is noted in the end."""
    monkeypatch.setattr(background_save, "WAIT_SECONDS", 0.01)
    other = file.with_name("other")
    other.write_bytes(CONTENT)
    notes = HangingNotes()
    digests = Digests(notes, _later)

    assert digests.digest(file, report=_ignore) == digests.digest(other, report=_ignore) == NAME
    digests.learn(other, Stamp.of(other), "ab" * 32)
    assert digests.digest(other) == "ab" * 32

    notes.go_on.set()
    for thread in threading.enumerate():
        if thread.name == "save":
            thread.join(60)
    assert {name: digest for name, (_, digest) in notes.written[-1].items()} == {str(file): NAME, str(other): "ab" * 32}


def test_digests_of_so_many_files_are_remembered_and_no_more(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that was asked for longest ago is forgotten, and read again."""
    monkeypatch.setattr(module, "MOST_FILES", 2)
    digests = Digests(now_ns=_later)
    a, b, c = (tmp_path / name for name in "abc")
    for path in (a, b, c):
        path.write_bytes(CONTENT)

    for path in (a, b, a, c):
        digests.digest(path)
    assert reads == [a, b, c]

    for path in (a, c, b):
        digests.digest(path)
    assert reads == [a, b, c, b]


def test_small_files_do_not_push_out_digests_of_large_files(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_FILES", 2)
    monkeypatch.setattr(module, "QUICK_BYTES", len(CONTENT))
    digests = Digests(now_ns=_later)
    large = tmp_path / "large"
    large.write_bytes(CONTENT + CONTENT)
    digests.digest(large, report=_ignore)
    for name in "abc":
        (tmp_path / name).write_bytes(CONTENT)
        digests.digest(tmp_path / name)

    digests.digest(large)

    assert reads.count(large) == 1


def test_only_the_newest_digest_notes_are_kept(tmp_path: Path, file: Path) -> None:
    notes = DigestFile(tmp_path / FILE_NAME)
    stamp = Stamp.of(file)
    notes.write({f"/{number}": (replace(stamp, inode=number), NAME) for number in range(5000)})

    assert next(iter(notes.read())) == "/904"
    assert len(notes.read()) == 4096
