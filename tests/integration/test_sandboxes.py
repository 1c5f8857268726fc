"""What docs/sandboxes.md says of containers, in namespaces of the kernel, which is what containers are made of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_sidecar import Client, UntrustedSocket
from tests.support.daemons import RunningDaemon

FAKE = [sys.executable, "-m", "tests.support.serve_fake"]

ASK = """
import sys
from mlx_sidecar import Client, SidecarError
for line in sys.stdin:
    try:
        with Client(timeout=60) as client:
            print(client.complete("embedded", "Hello.", max_tokens=2).usage.completion_tokens, flush=True)
    except SidecarError as error:
        print(type(error).__name__, flush=True)
"""
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


class Container:
    """A process with a user and a mount namespace of its own, in which a client asks once for each line."""

    def __init__(self, mounts: str, place: str, socket: str) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MLX_SIDECAR_")}
        script = f'{mounts} && exec "$0" -c "$1"'
        self._process = subprocess.Popen(
            [*UNSHARE, "sh", "-ec", script, sys.executable, ASK],
            env={**environ, "PLACE": place, "MLX_SIDECAR_SOCKET": socket},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self) -> str:
        """Return the tokens that an answer had, or the name of the error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        """End it, by the end of its input."""
        self._process.communicate(timeout=60)


@pytest.fixture(name="start_container")
def _start_container() -> object:
    """Return a function that starts one; skip where the kernel lets users have no namespaces."""
    if shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces for users here")
    started: list[Container] = []

    def start(mounts: str, place: str, socket: str) -> Container:
        started.append(Container(mounts, place, socket))
        return started[-1]

    yield start
    for one in started:
        one.end()


def test_read_only_mount_is_enough_for_a_container(
    start_daemon: Callable[..., RunningDaemon], start_container: Callable[[str, str, str], Container], folder: Path
) -> None:
    """It also finds the socket of the next daemon there; a mount of the socket alone leads to the one that is gone."""
    first = start_daemon()
    first.client().close()
    for name in ("inside", "alone"):
        (folder / name).mkdir(0o700)
    (folder / "alone" / "s.sock").touch()
    run = first.socket.parent
    whole = start_container(
        f'mount --bind "{run}" "$PLACE" && mount -o remount,bind,ro "$PLACE"',
        str(folder / "inside"),
        str(folder / "inside" / first.socket.name),
    )
    alone = start_container(
        f'mount --bind "{first.socket}" "$PLACE"', str(folder / "alone" / "s.sock"), str(folder / "alone" / "s.sock")
    )
    assert (whole.ask(), alone.ask()) == ("2", "2")
    assert first.stop() == 0
    start_daemon().client().close()
    assert whole.ask() == "2"
    assert alone.ask() == "DaemonNotRunning"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_socket_refuses_another_user_on_both_sides(daemon: RunningDaemon) -> None:
    """A container whose users are mapped to others; the mode is not to be widened for it."""
    daemon.client().close()
    other = f"""
import os, socket, sys
os.setgroups([]); os.setgid(12345); os.setuid(12345)
try:
    socket.socket(socket.AF_UNIX).connect({str(daemon.socket)!r})
except PermissionError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, timeout=60)
    assert done.stdout == "refused\n", done.stderr


def test_client_refuses_a_socket_of_a_container_user(daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the kernel would let it in: what root finds at a path of another user may be put there for it."""
    daemon.client().close()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UntrustedSocket, match="belongs to another user"), Client(daemon.socket) as client:
        client.stats()


def test_socket_of_a_mac_app_group_is_served(start_daemon: Callable[..., RunningDaemon], folder: Path) -> None:
    """`~/Library/Group Containers` has a space, and a home directory may have more. gRPC reads addresses as URIs."""
    daemon = start_daemon(FAKE, socket=str(folder / "Group Containers" / "é" / "s.sock"))
    with daemon.client() as client:
        assert client.stats().daemon.pid == daemon.process.pid
