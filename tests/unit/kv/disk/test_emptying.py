"""A tier that is turned off: its directory is emptied, or that is noted for a later process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from daemon.kv.disk.files import Files
from daemon.kv.disk.note import Note
from daemon.kv.disk.work import DiskWork
from tests.unit.kv.disk.pieces import PARTS, PIECE

T = TypeVar("T")


def _run(work: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
    try:
        result: T | Exception = work()
    except Exception as error:
        result = error
    then(result)


def test_directory_that_cannot_be_emptied_is_noted(tmp_path: Path) -> None:
    """Another daemon has it; a process that uses it later takes all of it as invalidated."""
    other, note = Files(tmp_path / "kv"), Note(tmp_path, tmp_path / "kv")
    other.open()
    other.write(PIECE, PARTS)
    work = DiskWork(Files(tmp_path / "kv"), note, _run, _run, lambda: 0.0, lambda: 1e9)
    work.empty()
    assert work.counters.faults == 1
    assert Note(tmp_path, tmp_path / "kv").left
    other.close()
    work.empty()
    assert not note.path.exists()
    assert not list((tmp_path / "kv").glob("*.kv"))
