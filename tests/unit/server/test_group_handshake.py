"""The handshake of a group: both sides prove the shared key, or none learns anything."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from pathlib import Path

import pytest

from daemon.server.group import handshake
from daemon.server.group.handshake import GroupError, Session, answer, call, read_key, unreached
from daemon.v1 import ipc_pb2 as ipc
from tests.support.groups import write_key

KEY = bytes(range(32))


async def meet(key: bytes, other: bytes) -> tuple[Session | Exception, Session | Exception]:
    """Return what the caller and the called side got; each side closes its socket when it fails."""
    one, two = socket.socketpair()

    async def ended(work: object, connection: socket.socket) -> Session | Exception:
        try:
            return await work  # type: ignore[misc, no-any-return]
        except (GroupError, OSError) as error:
            connection.close()
            return error

    results = await asyncio.gather(ended(call(one, key, 1, 2), one), ended(answer(two, other), two))
    for connection in (one, two):
        connection.close()
    return results[0], results[1]


async def test_sides_with_one_key_have_the_same_session_keys() -> None:
    """A key for each direction, new for each session."""
    first = await meet(KEY, KEY)
    second = await meet(KEY, KEY)
    sessions = [session for session in (*first, *second) if isinstance(session, Session)]
    assert len(sessions) == 4
    assert [one.up for one in sessions[:2]] == [sessions[0].up] * 2
    assert len({key for one in sessions for key in (one.up, one.down)}) == 4


async def test_another_key_is_refused_without_a_word() -> None:
    """The called side proves nothing to a caller that has proven nothing."""
    caller, called = await meet(KEY, bytes(32))
    assert isinstance(caller, GroupError)
    assert "key is another one" in str(caller)
    assert isinstance(called, GroupError)


async def test_another_version_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides tell which software differs."""
    known = iter([["mlx 1"], ["mlx 2"], ["mlx 2"]])
    monkeypatch.setattr(handshake, "versions", lambda: next(known))
    caller, called = await meet(KEY, KEY)
    assert "has mlx 2, but the first machine has mlx 1" in str(caller)
    assert isinstance(called, GroupError)


async def test_stranger_on_the_port_is_no_rank() -> None:
    """A server of another kind answers with bytes that announce a frame of gigabytes."""
    one, two = socket.socketpair()
    with one, two:
        two.sendall(b"HTTP/1.1 400 Bad Request\r\n")
        with pytest.raises(GroupError, match="does not speak as a rank"):
            await call(one, KEY, 1, 2)


async def test_recorded_handshake_does_not_pass_again() -> None:
    """An attacker that repeats a caller's bytes has no proof for the new nonce."""
    one, two = socket.socketpair()
    sent: list[bytes] = []
    loop = asyncio.get_running_loop()
    original = loop.sock_sendall

    async def recording(connection: socket.socket, data: bytes) -> None:
        if connection is one:
            sent.append(data)
        await original(connection, data)

    loop.sock_sendall = recording  # type: ignore[method-assign, assignment]
    with one, two:
        await asyncio.gather(call(one, KEY, 1, 2), answer(two, KEY))
    loop.sock_sendall = original  # type: ignore[method-assign]
    three, four = socket.socketpair()
    with three, four:
        three.sendall(b"".join(sent))
        with pytest.raises(GroupError, match="another key"):
            await answer(four, KEY)


async def test_refusal_of_an_attacker_is_not_shown() -> None:
    """What the operator reads is proven: a machine between the two can add no words to the last frame."""
    one, two = socket.socketpair()
    loop = asyncio.get_running_loop()
    original = loop.sock_sendall

    async def changing(connection: socket.socket, data: bytes) -> None:
        greeting = ipc.GroupGreeting.FromString(data[4:])
        if connection is two and greeting.proof:
            greeting.refusal = "wants its key at http://example.com"
            body = greeting.SerializeToString()
            data = len(body).to_bytes(4, "big") + body
        await original(connection, data)

    loop.sock_sendall = changing  # type: ignore[method-assign, assignment]
    with one, two:
        caller, _ = await asyncio.gather(call(one, KEY, 1, 2), answer(two, KEY), return_exceptions=True)
    loop.sock_sendall = original  # type: ignore[method-assign]
    assert "has another key" in str(caller)


def test_key_file_is_read(tmp_path: Path) -> None:
    """64 hexadecimal digits are 32 bytes."""
    assert len(read_key(write_key(tmp_path / "key"))) == 32


def test_key_file_that_others_read_is_refused(tmp_path: Path) -> None:
    """The error has the command that mends it."""
    file = write_key(tmp_path / "key")
    file.chmod(0o644)
    with pytest.raises(GroupError, match=f"chmod 600 {file}"):
        read_key(file)


@pytest.mark.parametrize("content", ["", "abc", "0f" * 31, "x" * 64])
def test_key_file_without_a_key_is_refused(tmp_path: Path, content: str) -> None:
    """A short key would be guessed."""
    file = tmp_path / "key"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(GroupError, match="has no key of 64"):
        read_key(file)


def test_missing_key_file_is_refused(tmp_path: Path) -> None:
    """Also where none is configured."""
    with pytest.raises(GroupError, match="cannot be read"):
        read_key(tmp_path / "key")
    with pytest.raises(GroupError, match="mlx-sidecar group key"):
        read_key(None)


@pytest.mark.parametrize("number", [errno.EHOSTUNREACH, errno.ECONNREFUSED])
@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_macos_local_network_permission_is_named(platform: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a service gets EHOSTUNREACH, while `group test` in Terminal reaches the rank."""
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(GroupError) as failed, unreached():
        raise OSError(number, os.strerror(number))
    assert str(failed.value).startswith(f"cannot be reached: {os.strerror(number)}")
    assert ("Local Network" in str(failed.value)) == ((platform, number) == ("darwin", errno.EHOSTUNREACH))
