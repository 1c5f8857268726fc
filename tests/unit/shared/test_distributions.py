"""What is installed of the project, now and when this process began."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from daemon.shared.distributions import Program


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
