"""`mlx-sidecar http`: where it serves, and the token."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from daemon.cli import main
from daemon.shared import logs


@pytest.fixture(autouse=True)
def _logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the logs of this process alone: later tests read lines of the debug level."""
    monkeypatch.setattr(logs, "configure", lambda level, file: None)


def run(folder: Path, *arguments: str) -> Result:
    """Run the command with a state directory of its own."""
    environ = {
        "MLX_SIDECAR_STATE_DIR": str(folder),
        "MLX_SIDECAR_SOCKET": str(folder / "run" / "s.sock"),
    }
    return CliRunner().invoke(main, ["http", *arguments], env=environ)


def test_print_token_makes_one(folder: Path) -> None:
    """And prints nothing else, for use in scripts; no daemon is needed."""
    result = run(folder, "--print-token")
    assert result.exit_code == 0
    assert result.stdout == (folder / "http_token").read_text()
    assert run(folder, "--print-token").stdout == result.stdout


def test_token_that_others_can_read_is_wrong_configuration(folder: Path) -> None:
    """With the cure."""
    run(folder, "--print-token")
    (folder / "http_token").chmod(0o644)
    for arguments in (["--print-token"], ["--port", "0"]):
        result = run(folder, *arguments)
        assert result.exit_code == 2
        assert "delete it" in result.stderr


def test_port_and_unix_exclude_each_other(folder: Path) -> None:
    """One door, one place."""
    result = run(folder, "--port", "0", "--unix", str(folder / "h.sock"))
    assert result.exit_code == 2
    assert "not both" in result.stderr


def test_port_in_use_is_wrong_usage(folder: Path) -> None:
    """With its name and the system's own words."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = run(folder, "--port", str(port))
    assert result.exit_code == 2
    assert f"cannot listen at 127.0.0.1:{port}: " in result.stderr
    assert "in use; choose another --port" in result.stderr


@pytest.mark.parametrize("path", ["x" * 200, "a#b"])
def test_unfit_unix_path_is_wrong_usage(folder: Path, path: str) -> None:
    """The rules are those of the daemon's socket."""
    result = run(folder, "--unix", str(folder / path))
    assert result.exit_code == 2
    assert "socket path" in result.stderr
