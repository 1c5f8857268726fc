"""An engine that the system holds: it does not end, and no caller waits for it."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from structlog.testing import capture_logs

from daemon.server.supervision import supervisor as module
from daemon.server.supervision.engine_process import EngineProcess
from daemon.server.supervision.supervisor import State
from daemon.shared.errors import Reason, SidecarError
from tests.support.daemons import alive
from tests.unit.server.supervised import PATIENCE, Watched, error_of, events, opened, supervising, text


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make back-offs short enough for tests, and the time that an engine has to end."""
    monkeypatch.setattr(module, "FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(module, "KILLED_SECONDS", 0.05)


async def test_engine_that_cannot_be_killed_leaves_no_caller_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver or a disk may hold a process: its calls fail, others are refused with the reason, and its end heals."""
    kill = EngineProcess.kill
    monkeypatch.setattr(EngineProcess, "kill", lambda _: None)
    async with supervising() as supervisor:
        await supervisor.until(State.READY)
        with capture_logs() as logs:
            error = await error_of(opened(supervisor, "stuck"))
        assert error.reason is Reason.ENGINE_RESTARTED
        assert "does not end" in error.message
        assert error.retry_after
        with pytest.raises(SidecarError, match="was killed and does not end") as refused:
            opened(supervisor, "ok")
        assert refused.value.reason is Reason.ENGINE_RESTARTED
        assert [line["pid"] for line in logs if line["event"] == "engine_does_not_end"] == [supervisor.pid]
        assert supervisor.router.quarantine.knows
        monkeypatch.setattr(EngineProcess, "kill", kill)
        os.kill(supervisor.pid, signal.SIGKILL)
        await supervisor.until(State.RESTARTING)
        await supervisor.until(State.READY, 2)
        assert text(await events(opened(supervisor, "ok"))) == "one two three"


async def test_dying_engine_that_hangs_fails_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket is closed already, so that nothing of it is watched any more; the system still holds the process."""
    ended, reap = asyncio.Event(), EngineProcess.reap

    async def late(engine: EngineProcess) -> int:
        await ended.wait()
        return await reap(engine)

    monkeypatch.setattr(EngineProcess, "reap", late)
    async with supervising() as supervisor:
        error = await error_of(opened(supervisor, "die"))
        assert error.reason is Reason.ENGINE_RESTARTED
        assert "does not end" in error.message
        with pytest.raises(SidecarError, match="does not end"):
            opened(supervisor, "ok")
        ended.set()
        await supervisor.until(State.READY, 2)
        assert text(await events(opened(supervisor, "ok"))) == "one two three"


async def test_stop_leaves_an_unkillable_engine_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that is told to stop ends, also where the system holds its engine. A second stop waits for nothing."""
    kill = EngineProcess.kill
    monkeypatch.setattr(EngineProcess, "kill", lambda _: None)
    supervisor = Watched("--stubborn")
    supervisor.start()
    await supervisor.until(State.READY)
    engine = supervisor._engine
    assert engine is not None
    with capture_logs() as logs:
        async with asyncio.timeout(PATIENCE):
            await supervisor.stop(0.05)
            await supervisor.stop(PATIENCE)
    assert [line["pid"] for line in logs if line["event"] == "engine_does_not_end"] == [engine.pid]
    assert alive(engine.pid)
    kill(engine)
    await engine.reap()
