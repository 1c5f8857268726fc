"""What is installed of the project, now and when this process began."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from daemon.shared.distributions import Program, _content, installed_at


@pytest.fixture(name="interpreter")
def _interpreter(tmp_path: Path) -> Path:
    file = tmp_path / "python"
    file.touch()
    return file


def test_program_that_was_upgraded_is_replaced(interpreter: Path) -> None:
    """Installers write the new version over the old one, while it runs."""
    versions = {"mlx-sidecar": "0.1.0"}
    program = Program(interpreter=str(interpreter), installed=versions.__getitem__)
    assert program.replaced_by() is None
    versions["mlx-sidecar"] = "0.2.0"
    assert program.replaced_by() == "0.2.0"


def test_program_that_was_removed_is_replaced_by_none(interpreter: Path) -> None:
    """As Homebrew removes the directory of the old version; an installer is between the two for a moment."""
    installed = ["0.1.0"]

    def version(name: str) -> str:
        if not installed:
            raise PackageNotFoundError(name)
        return installed[0]

    program = Program(interpreter=str(interpreter), installed=version)
    installed.clear()
    assert program.replaced_by() == ""
    installed.append("0.1.0")
    assert program.replaced_by() is None
    interpreter.unlink()
    assert program.replaced_by() == ""


def test_program_without_metadata_is_not_replaced(interpreter: Path) -> None:
    """A source tree that was never installed."""

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    assert Program(interpreter=str(interpreter), installed=version).replaced_by() is None


def test_other_files_of_one_version_replace_it(interpreter: Path) -> None:
    """As after `git pull` between releases: an engine of the new files would not go with this process."""
    checksums = [1]
    program = Program(interpreter=str(interpreter), installed=lambda _: "0.1.0", content=lambda _: checksums[-1])
    assert program.replaced_by() is None
    checksums.append(2)
    assert program.replaced_by() == "0.1.0"


def test_installer_list_tells_installations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its content, and by the time when it was written. Without a list an installation is always the same."""
    info = tmp_path / "some_thing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-thing\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert (_content("some-thing"), installed_at("some-thing"), installed_at("no-such-thing")) == (0, 0.0, 0.0)
    record = info / "RECORD"
    lists = [f"some_thing.py,sha256={digest},1\n{info.name}/RECORD,,\n" for digest in "ab"]
    checksums = {_content("some-thing") for text in lists if record.write_text(text)}
    assert len(checksums - {0}) == 2
    os.utime(record, (1000, 1000))
    assert installed_at("some-thing") == 1000


def test_unreadable_version_replaces_no_program(interpreter: Path) -> None:
    """A supervisor asks when its engine has died. It has to go on, though no descriptor is left at that moment."""
    faults: list[OSError] = []

    def version(name: str) -> str:
        if faults:
            raise faults.pop()
        return "0.1.0"

    program = Program(interpreter=str(interpreter), installed=version)
    faults.append(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    assert program.replaced_by() is None
    assert not faults


def _none() -> Any:
    return None


def _key_error() -> Any:
    raise KeyError("Version")


@pytest.mark.parametrize("read", [_none, _key_error])
def test_half_written_program_is_replaced(interpreter: Path, read: Callable[[], Any]) -> None:
    """The directory is there, without the file that has the version; Pythons differ in what they make of that."""
    reads: list[Callable[[], Any]] = [lambda: "0.1.0"]
    program = Program(interpreter=str(interpreter), installed=lambda _: reads[-1]())
    reads.append(read)
    assert program.replaced_by() == ""
