"""Notes for a later process: of a tier that is turned off, or of an Invalidate that no tier was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from daemon.kv.disk.files import Files
from daemon.kv.disk.found import Found
from daemon.kv.disk.note import Note
from daemon.kv.disk.work import DiskWork
from tests.unit.kv.disk.pieces import PARTS, PIECE

T = TypeVar("T")


def _run(what: str, work: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
    try:
        result: T | Exception = work()
    except Exception as error:
        result = error
    then(result)


def _work(place: Path, files: Files) -> DiskWork:
    return DiskWork(files, Note(place, files.folder), _run, _run, lambda: 0.0, lambda: 1e9)


def test_directory_that_cannot_be_emptied_is_noted(tmp_path: Path) -> None:
    """Another daemon has it; a process that uses it later takes all of it as invalidated."""
    other = Files(tmp_path / "kv")
    other.open()
    other.write(PIECE, PARTS)
    work = _work(tmp_path, Files(tmp_path / "kv"))
    work.empty()
    assert work.counters.faults == 1
    assert Note(tmp_path, tmp_path / "kv").look()
    other.close()
    work.empty()
    assert not Note(tmp_path, tmp_path / "kv").look()
    assert not list((tmp_path / "kv").glob("*.kv"))


def test_note_of_another_process_goes_with_the_files(tmp_path: Path) -> None:
    """It was written while this machine was in no group; the group has no tier now."""
    files = Files(tmp_path / "kv")
    files.open()
    files.write(PIECE, PARTS)
    files.close()
    Note(tmp_path, tmp_path / "kv").write()
    _work(tmp_path, files).empty()
    assert not Note(tmp_path, tmp_path / "kv").look()
    assert not list((tmp_path / "kv").glob("*.kv"))


def test_note_that_comes_after_the_look_stays(tmp_path: Path) -> None:
    """What it is about may have been found before, and restored: only the next process knows of it."""
    files, front = Files(tmp_path / "kv"), Note(tmp_path, tmp_path / "kv")
    files.open()
    files.write(PIECE, PARTS)
    front.write()
    work, found = _work(tmp_path, files), list[Found | Exception]()
    work.open(found.append)
    front.write()
    work.remove_noted([PIECE.name])
    assert isinstance(found[0], Found)
    assert found[0].noted
    assert Note(tmp_path, tmp_path / "kv").look()


def test_note_makes_its_directory_private(tmp_path: Path) -> None:
    """It is the daemon's own directory, that of the configuration."""
    Note(tmp_path / "state", tmp_path / "kv").write()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
