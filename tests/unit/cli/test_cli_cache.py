"""`cache` tells what lies in its directory and is no piece, and of a disk that is too small. No daemon runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from daemon.cache.mlx.computing_place import code_of_kv
from daemon.cli import main
from daemon.cli.session import Session
from daemon.kv.disk.files import Files
from mlx_sidecar import Client, DaemonNotRunning
from tests.support.disks import MIB, disk_has
from tests.unit.cli.cli_fakes import FakeClient, client_fixture, run_cli  # noqa: F401
from tests.unit.kv.disk.pieces import PARTS, PIECE


def run(*arguments: str) -> Result:
    """Run the command while no daemon runs."""

    def connect(socket: Path) -> Client:
        raise DaemonNotRunning(str(socket))

    return CliRunner().invoke(main, ["cache", *arguments], obj=Session(connect, lambda session, socket, ask: None))


@pytest.fixture(name="folder")
def _folder(client: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with one piece, and what has the name of one."""
    files = Files(tmp_path / ".mlx-sidecar" / "kv")
    files.open()
    files.write(PIECE, PARTS)
    files.close()
    (files.folder / "directory.kv").mkdir()
    (files.folder / "link.kv").symlink_to(tmp_path)
    (files.folder / "secret.kv").write_bytes(b"")
    os.mkfifo(files.folder / "pipe.kv", 0o600)
    may = os.access
    monkeypatch.setattr("os.access", lambda path, mode: "secret" not in str(path) and may(path, mode))
    return files.folder


TOLD = ("directory.kv is a directory", "link.kv is a link", "secret.kv cannot be read", "pipe.kv is no plain file")


@pytest.mark.parametrize(("arguments", "status"), [(("ls",), 0), (("verify",), 1)])
def test_what_is_no_piece_is_told(folder: Path, arguments: tuple[str, ...], status: int) -> None:
    """With what to do; none of it counts as damaged."""
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert all(text in result.output for text in TOLD)
    assert "(damaged)" not in result.output
    assert "1 file checked" in result.output or arguments == ("ls",)
    shown = json.loads(run(*arguments, "--json").output)
    assert len(shown["notes"]) >= len(TOLD)
    assert not shown.get("damaged")


def test_all_but_a_directory_is_removed(folder: Path) -> None:
    """The rest is told and does not keep the pieces from going; what a link names stays."""
    result = run("rm", "--all", "--yes")
    assert result.exit_code == 0, result.output
    assert "directory.kv is a directory" in result.output
    assert "still in" not in result.output
    assert [path.name for path in folder.glob("*.kv")] == ["directory.kv"]


def test_one_model_is_removed_and_the_rest_told(folder: Path) -> None:
    """Only the pieces of this model go."""
    result = run("rm", "org/model", "--yes")
    assert all(text in result.output for text in TOLD)
    assert not (folder / PIECE.name).exists()
    assert (folder / "link.kv").is_symlink()


@pytest.mark.parametrize("arguments", [("ls",), ("verify",), ("rm", "--all", "--yes")])
def test_directory_that_cannot_be_read_is_told(client: FakeClient, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """In a sentence, with its path and what to do next; --json has it too."""
    (tmp_path / ".mlx-sidecar").mkdir()
    (tmp_path / ".mlx-sidecar" / "kv").touch()
    result = run(*arguments, "--json")
    assert result.exit_code == 1
    assert (
        f"{tmp_path}/.mlx-sidecar/kv cannot be read (Not a directory)" in json.loads(result.stdout)["error"]["message"]
    )


def test_removal_is_told_as_json(folder: Path) -> None:
    """One document, with what is no piece."""
    told = json.loads(run("rm", "org/model", "--yes", "--json").stdout)
    assert (told["model"], told["dropped"], told["bytes_left"], told["bytes"] > 0) == ("org/model", True, 0, True)
    assert len(told["notes"]) == len(TOLD)


def test_removal_asks_the_daemon_that_is_named(folder: Path, client: FakeClient, tmp_path: Path) -> None:
    """By --socket after the command."""
    arguments = ["cache", "rm", "org/model", "--yes", "--socket", str(tmp_path / "other.sock")]
    assert run_cli(client, *arguments).exit_code == 0
    assert (client.socket, client.called("invalidate_model")) == (
        tmp_path / "other.sock",
        [(("org/model",), {"weights": False})],
    )


def test_disk_that_is_too_small_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do; not for a number for which there is room."""
    disk_has(monkeypatch, total=300 * MIB, free=280 * MIB)
    assert "kv_disk_mb = auto comes to 14.0 MiB" in run("ls").output
    monkeypatch.setenv("MLX_SIDECAR_KV_DISK_MB", "8")
    assert "kv_disk_mb" not in run("ls").output
    disk_has(monkeypatch, total=300 * MIB, free=32 * MIB)
    assert "kv_disk_mb allows 8.0 MiB; the disk has room for 2.0 MiB of it" in run("ls").output


def test_parts_of_models_of_a_group_are_shown_beside_whole_models(client: FakeClient, tmp_path: Path) -> None:
    """By the part that this machine has; they are checked and removed as well."""
    kv = tmp_path / ".mlx-sidecar" / "kv"
    for files in (Files(kv, code_of_kv()), Files(kv / "group", f"rank 1 of 2, {code_of_kv()}")):
        files.open()
        files.write(PIECE, PARTS)
        files.close()
    shown = json.loads(run("ls", "--json").output)["models"]
    assert sorted((each["model"], each["part"], each["files"]) for each in shown) == [
        ("org/model", "", 1),
        ("org/model", "rank 1 of 2", 1),
    ]
    assert "org/model (rank 1 of 2)" in run("ls").output
    assert "2 files checked, none damaged" in run("verify").output
    assert run("rm", "org/model", "--yes").exit_code == 0
    assert not [*kv.rglob("*.kv")]
    (kv / "group" / PIECE.name).write_bytes(b"no piece")
    assert json.loads(run("verify", "--json").output)["damaged"] == [f"group/{PIECE.name}"]


def test_what_other_versions_computed_is_listed_apart(client: FakeClient, tmp_path: Path) -> None:
    """Until the next start removes it."""
    files = Files(tmp_path / ".mlx-sidecar" / "kv", "mlx 0.1, mlx-lm 0.2")
    files.open()
    files.write(PIECE, PARTS)
    files.close()
    assert "org/model (mlx 0.1, mlx-lm 0.2)" in run("ls").output


def test_directory_with_what_is_left_is_named(client: FakeClient, tmp_path: Path) -> None:
    """An engine of the group has its directory and dropped nothing; of the other one all is gone."""
    files = Files(tmp_path / ".mlx-sidecar" / "kv" / "group", "rank 0 of 2")
    files.open()
    files.write(PIECE, PARTS)
    try:
        told = run_cli(client, "cache", "rm", "org/model", "--yes").output
    finally:
        files.close()
    assert "still in" in told
    assert str(files.folder) in told
    assert told.count("still in") == 1
