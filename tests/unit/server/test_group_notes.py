"""Prefixes that are invalidated while no group can be asked: that is noted, and an engine that starts is told."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from daemon.kv.disk.files import Files
from daemon.kv.disk.note import Note
from daemon.server.app import note_for_later_group
from daemon.server.group.group import Group
from daemon.shared.config import Config
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.kv.disk.pieces import PARTS, PIECE
from tests.unit.server.supervised import generate


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Config:
    """Return the configuration of the first rank, which has no tier of its own today."""
    ranks = ("127.0.0.1", "127.0.0.1:7411")
    return Config(state_dir=tmp_path / "state", kv_disk_dir=tmp_path / "kv", kv_disk_mb=0, group_ranks=ranks)


def noted(config: Config) -> bool:
    """Return whether a process that starts finds a note."""
    return Note(config.state_dir, config.kv_disk_group_folder).look()


async def test_engine_that_starts_meanwhile_is_told(config: Config) -> None:
    """Once, and before the calls that wait: it may have looked for notes before."""
    group, sent = Group(config), list[ipc.Command]()
    group.router.open(generate("large"))
    group.router.unavailable("rank 1 does not answer")
    await group.note_invalidated()
    group.router.connect(sent.append)
    assert [command.WhichOneof("body") for command in sent] == ["invalidate", "generate"]
    assert sent[0].invalidate == pb.InvalidateRequest(all=pb.AllTarget(prefixes=True))
    assert len({command.call_id for command in sent}) == 2
    group.router.deliver(ipc.Event(call_id=sent[0].call_id, invalidate=pb.InvalidateResponse()))
    sent.clear()
    group.router.engine_died(1.0, blame_calls=False)
    group.router.connect(sent.append)
    assert sent == []


async def test_note_outlives_the_daemon_whatever_the_budget(config: Config) -> None:
    """With 0 the directory is emptied at a start of the group, and may be used by a later one if that failed."""
    await Group(config).note_invalidated()
    assert noted(config)


async def test_prefixes_on_the_disk_are_found_by_model(config: Config) -> None:
    """Beside the event loop, and without the lock, which an engine has. What cannot be read may be anything."""
    group = Group(config)
    assert not await group.stored(PIECE.model, True)
    files = Files(config.kv_disk_group_folder)
    files.open()
    files.write(PIECE, PARTS)
    assert await group.stored(PIECE.model, True)
    assert not await group.stored(PIECE.model, False)
    assert not await group.stored("org/other", True)
    files.close()
    shutil.rmtree(config.kv_disk_group_folder)
    config.kv_disk_group_folder.touch()
    assert await group.stored("org/other", True)


async def test_note_is_written_beside_the_event_loop(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the disk."""
    threads: list[threading.Thread] = []
    monkeypatch.setattr(Note, "write", lambda self: threads.append(threading.current_thread()))
    config.kv_disk_group_folder.mkdir(parents=True)
    await Group(config).note_invalidated()
    await note_for_later_group(config)()
    assert len(threads) == 2
    assert threading.current_thread() not in threads


async def test_without_a_group_its_directory_decides(config: Config) -> None:
    """A daemon that never had one leaves no note."""
    note = note_for_later_group(config)
    await note()
    assert not noted(config)
    config.kv_disk_group_folder.mkdir(parents=True)
    await note()
    assert noted(config)
