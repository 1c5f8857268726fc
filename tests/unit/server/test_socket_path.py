"""The socket's path: its directory is private and ours, or it is refused; nothing that exists is changed."""

from __future__ import annotations

import os
import shutil
import socket as sockets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon.server.socket_path import SocketPathError, prepare_socket_path
from mlx_sidecar._address import MAX_SOCKET_BYTES


@pytest.fixture(name="base")
def _base() -> Iterator[Path]:
    # Not tmp_path: on a Mac it is longer than a socket's path may be.
    path = Path(tempfile.mkdtemp(prefix="mlxs", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _refusal(socket: Path) -> str:
    with pytest.raises(SocketPathError) as caught:
        prepare_socket_path(socket)
    return str(caught.value)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o177])
def test_missing_directories_are_created_private(base: Path, mask: int) -> None:
    with _umask(mask):
        prepare_socket_path(base / "a" / "b" / "s.sock")

    assert _mode(base / "a") == 0o700
    assert _mode(base / "a" / "b") == 0o700
    assert list((base / "a" / "b").iterdir()) == []


def test_private_directory_is_accepted_unchanged(base: Path) -> None:
    prepare_socket_path(base / "s.sock")
    prepare_socket_path(base / "s.sock")


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o711, 0o701, 0o777, 0o500])
def test_directory_open_to_others_is_refused_unchanged(base: Path, mode: int) -> None:
    directory = base / "d"
    directory.mkdir()
    directory.chmod(mode)

    assert _refusal(directory / "s.sock").startswith(
        f"The socket's directory {directory} has mode {mode:04o}, but must be 0700 to keep others out; "
        "leave it as it is, and take a directory that the daemon creates: --socket "
    )
    assert _mode(directory) == mode


def test_a_directory_of_another_user_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)

    assert _refusal(base / "s.sock").startswith(
        f"The socket's directory {base} belongs to user id {os.getuid()}, not to 12345; take a directory that "
        "the daemon creates: --socket "
    )


@pytest.mark.parametrize(
    ("uid", "cure"), [(12345, "; move it away, and the daemon creates its own"), (0, "; as ada, run this without sudo")]
)
def test_foreign_own_directory_names_the_cure(base: Path, monkeypatch: pytest.MonkeyPatch, uid: int, cure: str) -> None:
    """`sudo` on macOS keeps HOME. The advice to take the default place would name the place that was refused."""
    own = base / ".mlx-sidecar"
    own.mkdir(mode=0o700)
    if os.getuid() == 0:
        os.chown(own, 4711, -1)
    monkeypatch.setenv("HOME", str(base))
    monkeypatch.setenv("SUDO_USER", "ada")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: uid)

    assert _refusal(own / "sidecar.sock").endswith(cure)


@pytest.mark.parametrize("target", ["real", "nowhere"])
def test_a_directory_that_is_a_symlink_is_refused(base: Path, target: str) -> None:
    (base / "real").mkdir(mode=0o700)
    (base / "link").symlink_to(base / target)

    assert _refusal(base / "link" / "s.sock") == (
        f"The socket's directory {base}/link is a symlink; name the directory it points to."
    )


def test_symlinks_further_up_the_path_are_allowed(base: Path) -> None:
    (base / "real").mkdir()
    (base / "link").symlink_to(base / "real")

    prepare_socket_path(base / "link" / "d" / "s.sock")

    assert _mode(base / "real" / "d") == 0o700


def test_file_in_place_of_the_directory_is_refused(base: Path) -> None:
    (base / "f").write_text("x")

    assert "f is a file;" in _refusal(base / "f" / "s.sock")
    assert "cannot be used (Not a directory)" in _refusal(base / "f" / "d" / "s.sock")


@pytest.mark.parametrize("kind", ["a file", "a directory", "a symlink"])
def test_non_socket_at_the_path_is_refused_and_kept(base: Path, kind: str) -> None:
    path = base / "s.sock"
    if kind == "a file":
        path.write_text("precious")
    elif kind == "a directory":
        path.mkdir()
    else:
        path.symlink_to(base / "nowhere")

    assert _refusal(path) == (f"There is {kind} at the socket path {path}; choose another socket path.")
    assert os.path.lexists(path)


def test_existing_socket_is_left_to_the_lock(base: Path) -> None:
    path = base / "s.sock"
    with sockets.socket(sockets.AF_UNIX) as stale:
        stale.bind(str(path))

    prepare_socket_path(path)

    assert stat.S_ISSOCK(path.lstat().st_mode)


def test_socket_path_has_at_most_103_bytes(base: Path) -> None:
    longest = base / ("s" * (MAX_SOCKET_BYTES - len(os.fsencode(base)) - 1))

    prepare_socket_path(longest)

    assert _refusal(longest.with_name(longest.name + "s")) == (
        f"The socket path '{longest}s' has 104 bytes, but at most 103 work; choose a shorter one."
    )


def test_socket_path_length_is_counted_in_bytes(base: Path) -> None:
    assert "at most 103 work" in _refusal(base / ("ü" * 50))


def test_relative_or_empty_socket_path_is_refused() -> None:
    assert "must be an absolute path of a file" in _refusal(Path("s.sock"))
    assert "must be an absolute path of a file" in _refusal(Path("/"))


@pytest.mark.parametrize("name", ["a%20b", "a#b", "a?b"])
def test_uri_characters_in_a_socket_path_are_refused(base: Path, name: str) -> None:
    assert "must not contain any of % # ?" in _refusal(base / name / "s.sock")
    assert not (base / name).exists()


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "a\udc80b"])
def test_unprintable_socket_path_is_refused(base: Path, name: str) -> None:
    assert "must contain printable characters only" in _refusal(base / name)


def test_socket_path_may_have_spaces_and_unicode(base: Path) -> None:
    prepare_socket_path(base / "Grüße 世界" / "s.sock")
