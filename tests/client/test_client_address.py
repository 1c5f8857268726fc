"""The client finds the daemon's socket, and talks to no socket that somebody else could have made."""

from __future__ import annotations

import os
import socket as sockets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_sidecar import Client, UntrustedSocket, default_socket_path
from mlx_sidecar._address import resolve, socket_exists, target


@pytest.fixture(name="bound")
def _bound(socket: Path) -> Iterator[Path]:
    """Return the path of a socket that exists."""
    with sockets.socket(sockets.AF_UNIX) as listener:
        listener.bind(str(socket))
        yield socket


def test_the_environment_names_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """`MLX_SIDECAR_SOCKET` wins over everything, and may begin with `~`."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("MLX_SIDECAR_SOCKET", "~/run/s.sock")
    assert default_socket_path() == Path("/home/me/run/s.sock")
    assert Client().socket == Path("/home/me/run/s.sock")


@pytest.mark.parametrize(
    ("platform", "runtime", "path"),
    [
        ("linux", "/run/user/7", "/run/user/7/mlx-sidecar/sidecar.sock"),
        ("linux", "", "/home/me/.mlx-sidecar/sidecar.sock"),
        ("darwin", "/run/user/7", "/home/me/.mlx-sidecar/sidecar.sock"),
    ],
)
def test_the_default_is_the_users_own_folder(
    monkeypatch: pytest.MonkeyPatch, platform: str, runtime: str, path: str
) -> None:
    """On Linux the runtime folder of the session, if there is one."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    monkeypatch.delenv("MLX_SIDECAR_SOCKET", raising=False)
    assert default_socket_path() == Path(path)


def test_a_relative_path_is_made_absolute() -> None:
    """gRPC would take the first part of a relative path for something else."""
    assert resolve("s.sock") == Path.cwd() / "s.sock"


def test_socket_path_characters_survive_grpc() -> None:
    """gRPC reads its target as a URI."""
    assert target(Path("/a b/c#d?e%20.sock")) == "unix:/a%20b/c%23d%3Fe%2520.sock"


def test_socket_of_the_same_user_is_trusted(bound: Path) -> None:
    """In a directory that only we can write to."""
    assert socket_exists(bound)


@pytest.mark.parametrize("path", ["missing.sock", "missing/s.sock", "sidecar.sock/s", "circle/s", "s" * 300])
def test_missing_socket_is_no_address_error(bound: Path, path: str) -> None:
    """The daemon may be about to make it, and its directory. No error of the file system reaches a caller as it is."""
    (bound.parent / "circle").symlink_to("circle")
    assert not socket_exists(bound.parent / path)


def test_socket_of_another_user_is_refused(bound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prompt would go to whoever made it."""
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(UntrustedSocket, match="belongs to another user; take a directory that the daemon creates"):
        Client(bound).stats()
    monkeypatch.setattr("mlx_sidecar._address.own_directory", lambda: bound.parent)
    with pytest.raises(UntrustedSocket, match="belongs to another user; move it away"):
        Client(bound).stats()


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_shared_socket_directory_is_refused(bound: Path, mode: int) -> None:
    """They could put a socket of theirs in the place of ours."""
    bound.parent.chmod(mode)
    with pytest.raises(UntrustedSocket, match="take a directory that the daemon creates"):
        socket_exists(bound)


def test_a_file_that_is_no_socket_is_refused(socket: Path) -> None:
    """A plain file, or a link to a socket elsewhere."""
    socket.touch()
    with pytest.raises(UntrustedSocket, match="not a socket; move it away"):
        socket_exists(socket)


def test_a_linked_socket_is_refused(bound: Path) -> None:
    """The directory that it leads to was not looked at."""
    link = bound.with_name("link.sock")
    link.symlink_to(bound)
    with pytest.raises(UntrustedSocket, match="not a socket"):
        socket_exists(link)


def test_a_linked_directory_is_refused(bound: Path, tmp_path: Path) -> None:
    """As the daemon does."""
    link = tmp_path / "run"
    link.symlink_to(bound.parent)
    with pytest.raises(UntrustedSocket, match="not a directory"):
        socket_exists(link / bound.name)
