"""A machine of the group that is away: the log says hourly which one and why, however often it is called again."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon.server.group.group import Group
from daemon.server.supervision import supervisor
from daemon.server.supervision.supervisor import State
from daemon.shared.config import Config
from daemon.shared.log_fields import permitted


async def test_rank_that_is_away_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A night without it leaves a line an hour, and not some at each try."""
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF", 0.01)
    key = tmp_path / "key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    with socket.socket() as silent, capture_logs() as logs:
        silent.bind(("127.0.0.1", 0))  # it does not listen
        away = f"127.0.0.1:{silent.getsockname()[1]}"
        group = Group(Config(state_dir=tmp_path, group_ranks=("127.0.0.1", away), group_key_file=key))
        again, tries = asyncio.Event(), 0
        changed = group.supervisor._on_change

        def counted(state: State) -> None:
            nonlocal tries
            changed(state)
            tries += state is State.RESTARTING
            if tries == 4:
                again.set()

        group.supervisor._on_change = counted
        group.supervisor.start()
        async with asyncio.timeout(60):
            await again.wait()
        await group.supervisor.stop(1)
    failed = [permitted(line)["error"] for line in logs if line["event"] == "engine_start_failed"]
    states = [line["state"] for line in logs if line["event"] == "group_state_changed"]
    assert [why.startswith(f"{away} cannot be reached: ") for why in failed] == [True]
    assert states == ["restarting", "stopped"]
    assert not [line for line in logs if line["event"] == "engine_died"]
