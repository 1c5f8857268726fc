"""`mlx-sidecar group test` compares models on the disks of ranks, and says what to do."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from daemon.cache import on_disk as on_disk_module
from daemon.cache.on_disk import OnDisk, on_disk
from daemon.server.group.handshake import GroupError, Session
from daemon.server.group.models import answer, ask, compare
from daemon.shared.config import Config
from daemon.v1 import ipc_pb2 as ipc
from tests.support.models import copy_of_embedded

ADDRESS = "10.0.0.2:7411"


def judged(here: OnDisk, there: OnDisk) -> tuple[str, str]:
    """Return the state of a model on two ranks, and what to do."""
    compared = compare(here, there, ADDRESS)
    return compared.state, compared.advice


def test_equal_content_needs_nothing() -> None:
    assert judged(OnDisk("org/name", "aa", 5), OnDisk("org/name", "aa", 5)) == ("same", "")


@pytest.mark.parametrize("there", [OnDisk("org/name", "bb", 5), OnDisk("org/name", "", 6)])
def test_other_content_names_rank_and_fix(there: OnDisk) -> None:
    """Another size is enough, where the content was not hashed."""
    state, advice = judged(OnDisk("org/name", "aa", 5), there)
    assert state == "different"
    assert f"org/name has another content on {ADDRESS}" in advice
    assert "pull the same revision" in advice


def test_other_directory_is_to_be_copied() -> None:
    """It has no revision."""
    assert "copy the whole directory" in judged(OnDisk("/models/a", "aa", 5), OnDisk("/models/a", "bb", 5))[1]


def test_content_that_was_not_hashed_is_unknown() -> None:
    assert judged(OnDisk("/models/a", "", 5), OnDisk("/models/a", "bb", 5))[0] == "unknown"


def test_missing_model_names_its_machine() -> None:
    """Either may lack it."""
    here, lacking = OnDisk("org/name", "aa", 5), OnDisk("org/name", problem="it is not there")
    assert judged(here, lacking) == ("missing", f"org/name cannot be loaded on {ADDRESS}: it is not there")
    assert judged(lacking, here) == ("missing", "org/name cannot be loaded on this machine: it is not there")


def test_model_without_a_folder_says_what_to_do(tmp_path: Path) -> None:
    (found,) = on_disk(Config(state_dir=tmp_path), [str(tmp_path / "none")])
    assert "there is no directory" in found.problem
    assert "copy it there under the same path" in found.problem


def test_copy_of_a_model_has_its_fingerprint(tmp_path: Path) -> None:
    """And another configuration makes another model. No file is written."""
    one, other = copy_of_embedded(tmp_path, "one"), copy_of_embedded(tmp_path, "other")
    config = Config(state_dir=tmp_path / "state")
    first, second, again = on_disk(config, [str(one), str(other), f"{one}/"])
    assert first.fingerprint
    assert first.fingerprint != second.fingerprint
    assert again == first
    assert not config.state_dir.exists()


async def test_question_passes_sealed(tmp_path: Path) -> None:
    """The answer is that of the other side's disk."""
    up, down = b"u" * 32, b"d" * 32
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        config = Config(state_dir=tmp_path)
        serving = asyncio.create_task(answer(Session(theirs, up, down, ipc.GroupGreeting()), config))
        asking = asyncio.create_task(ask(Session(ours, up, down, ipc.GroupGreeting()), ["embedded", "/none"]))
        await asyncio.gather(serving, asking)
    assert asking.result() == on_disk(config, ["embedded", "/none"])


async def test_answer_with_a_wrong_seal_is_refused() -> None:
    """A machine between the ranks cannot make one up."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(bytes(4) + b"x" * 16)
        with pytest.raises(GroupError, match="seal"):
            await ask(Session(ours, b"u" * 32, b"d" * 32, ipc.GroupGreeting()), [])


async def test_failed_look_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the last words of its process, which are not on this machine."""
    monkeypatch.setattr(on_disk_module, "PROGRAM", "daemon.cache.none")
    up, down = b"u" * 32, b"d" * 32
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        serving = answer(Session(theirs, up, down, ipc.GroupGreeting()), Config(state_dir=tmp_path))
        asking = ask(Session(ours, up, down, ipc.GroupGreeting()), ["embedded"])
        _, told = await asyncio.gather(serving, asking, return_exceptions=True)
    assert isinstance(told, GroupError)
    assert "could not look for models: the look for models ended with status 1: " in str(told)
    assert "No module named daemon.cache.none" in str(told)
