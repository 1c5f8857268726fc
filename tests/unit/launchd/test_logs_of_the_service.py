"""The end of a log, and what comes after it, through a rotation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from daemon.launchd.logs import LogTail, follow, last_lines


def test_log_tail_has_whole_lines(tmp_path: Path) -> None:
    """A line that is still being written is left to `follow`."""
    log = tmp_path / "log"
    log.write_bytes(b"one\ntwo\nthr\xc3\xa9e\nfou")
    assert last_lines(log, 2) == (["two", "thrée"], 15)
    assert last_lines(log, 0) == ([], 15)
    assert last_lines(tmp_path / "missing", 5) == ([], 0)


def test_log_follow_continues_through_a_rotation(tmp_path: Path) -> None:
    """No line is lost or repeated, neither an incomplete line nor lines just before a rotation."""
    log = tmp_path / "log"
    log.write_text("old\nhal")

    def append(text: str) -> None:
        with log.open("a") as file:
            file.write(text)

    def happen() -> Iterator[None]:
        append("f\n")
        yield
        append("last of the first\n")
        log.rename(tmp_path / "log.1")
        yield
        yield
        append("first of the second\n")
        yield
        log.write_text("emptied\n")
        yield

    happenings = happen()
    _, end = last_lines(log, 1)
    lines = follow(log, end, pause=lambda _: next(happenings))
    assert list(islice(lines, 4)) == ["half", "last of the first", "first of the second", "emptied"]


def test_log_tail_shows_only_lines_since_a_mark(tmp_path: Path) -> None:
    """The tail has at most three lines, also after the file was replaced."""
    log = tmp_path / "log"
    assert LogTail(log).read() == ""
    log.write_text("before\n")
    tail = LogTail(log)
    assert tail.read() == ""
    with log.open("a") as file:
        file.write("a\n\nb\nc\nd\n")
    assert tail.read() == "b / c / d"
    log.write_text("new\n")
    assert tail.read() == "new"


def test_unreadable_service_log_is_reported(tmp_path: Path) -> None:
    """The caller gets the OSError and names the file."""
    with pytest.raises(OSError, match=r"."):
        last_lines(tmp_path, 1)
