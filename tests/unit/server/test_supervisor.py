"""The supervisor: exactly one engine runs, callers get a typed error when it dies, and no process is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon.server.supervision import call_router, start_log, vitals
from daemon.server.supervision import supervisor as module
from daemon.server.supervision.engine_process import EngineProcess
from daemon.server.supervision.start_log import StartLog
from daemon.server.supervision.supervisor import State
from daemon.shared.errors import Reason, SidecarError
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support import fake_engine
from tests.support.builders import Clock
from tests.support.daemons import alive
from tests.unit.server.supervised import (
    Watched,
    error_of,
    events,
    generate,
    opened,
    passing,
    supervising,
    text,
    until_delta,
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make back-offs short enough for tests."""
    monkeypatch.setattr(module, "FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.02)


@pytest.fixture(name="journal")
def _journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """Return a function that returns the commands that engines got so far."""
    path = tmp_path / "journal"
    monkeypatch.setenv(fake_engine.JOURNAL, str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]


async def test_call_before_the_engine_is_up_is_answered() -> None:
    """It is sent after the engine's hello, and the snapshot before its end is there at its end."""
    async with supervising() as supervisor:
        answer = await events(opened(supervisor, "ok"))
        assert text(answer) == "one two three"
        assert answer[-1].generate.finished.reason == pb.FINISH_REASON_STOP
        assert supervisor.router.snapshot.engine.generated_tokens == 3
        assert (supervisor.hello.mlx_version, supervisor.state) == ("0.0.1", State.READY)


async def test_importing_engine_serves_and_its_calls_wait(tmp_path: Path) -> None:
    warm = tmp_path / "warm"
    async with supervising("--warm", str(warm)) as supervisor:
        await supervisor.until(State.WARMING)
        assert supervisor.serves
        call = opened(supervisor, "ok")
        warm.touch()
        assert text(await events(call)) == "one two three"
        assert supervisor.states == [State.WARMING, State.READY]


async def test_long_importing_engine_serves_afterwards(tmp_path: Path) -> None:
    warm, clock = tmp_path / "warm", Clock()
    async with supervising("--warm", str(warm), clock=clock) as supervisor:
        await supervisor.until(State.WARMING)
        passing(supervisor, clock, 2 * vitals.STALLED_SECONDS)
        await supervisor.until(State.STARTING)
        assert not supervisor.serves
        warm.touch()
        await supervisor.until(State.READY)
        assert supervisor.states == [State.WARMING, State.STARTING, State.READY]


async def test_engine_death_while_importing_blames_no_call(tmp_path: Path) -> None:
    """
    Calls that were not sent wait for the next engine, which serves only when it takes them. Heartbeats do not keep the
    first engine alive.
    """
    warm, clock = tmp_path / "warm", Clock()
    async with supervising("--warm", str(warm), clock=clock) as supervisor:
        await supervisor.until(State.WARMING)
        call = opened(supervisor, "ok")
        passing(supervisor, clock, 2 * module.START_SECONDS)
        await supervisor.until(State.RESTARTING)
        warm.touch()
        assert text(await events(call)) == "one two three"
        assert not supervisor.router.quarantine.knows
        assert supervisor.states.count(State.WARMING) == 1


async def test_log_has_no_process_id_without_a_process() -> None:
    """Of an engine that ended, the line says which it was; of one that is about to start, none is known."""
    fields: list[tuple[object, object]] = []
    async with supervising() as supervisor:
        note = supervisor._on_change

        def noted(state: State) -> None:
            note(state)
            fields.append((supervisor.log_fields["state"], supervisor.log_fields.get("pid")))

        supervisor._on_change = noted
        await supervisor.until(State.READY)
        first = supervisor.pid
        await error_of(opened(supervisor, "die"))
        await supervisor.until(State.READY, 2)
        second = supervisor.pid
    *lines, stopped = fields
    assert lines == [("ready", first), ("restarting", first), ("starting", None), ("ready", second)]
    assert stopped == ("stopped", second)


async def test_stop_ends_a_restart_back_off() -> None:
    """Nothing waits for an engine that is not wanted any more."""
    async with supervising("--exit", "1") as supervisor:
        await supervisor.until(State.RESTARTING)


async def test_engine_death_fails_only_the_running_calls() -> None:
    """Running calls fail with a time to retry; a new engine answers the calls after that."""
    async with supervising() as supervisor:
        bystander = opened(supervisor, "hold")
        await until_delta(bystander)
        first = supervisor.pid
        for call in (opened(supervisor, "die"), bystander):
            error = await error_of(call)
            assert error.reason is Reason.ENGINE_RESTARTED
            assert error.retry_after is not None
        later = opened(supervisor, "ok")
        assert text(await events(later)) == "one two three"
        assert supervisor.pid != first
        assert supervisor.restarts == 1
        assert not alive(first)


async def test_events_precede_the_error_of_an_engine_death() -> None:
    """The caller gets the events that came before."""
    async with supervising() as supervisor:
        call = opened(supervisor, "die")
        events = call.events()
        assert (await anext(events)).HasField("accepted")
        await until_delta(call)
        with pytest.raises(SidecarError):
            await anext(events)


async def test_stats_of_a_dead_engine_keep_only_its_limits() -> None:
    """Its memory is gone; its budgets are those of the next one."""
    async with supervising() as supervisor:
        await events(supervisor.router.open(ipc.Command(load=pb.GetOrLoadRequest(model="ok"))))
        assert supervisor.router.snapshot.model_cache.cached_models == 1
        await error_of(opened(supervisor, "die"))
        assert supervisor.router.snapshot.model_cache.cached_models == 0
        assert supervisor.router.snapshot.model_cache.max_models == 4
        assert supervisor.router.snapshot.memory.headroom_bytes == supervisor.router.snapshot.memory.limit_bytes > 0


async def test_calls_wait_for_short_restart_back_offs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that cannot start keeps its callers waiting only as long as that may help."""
    monkeypatch.setattr(call_router, "LONGEST_WAIT_SECONDS", 0.05)
    async with supervising("--exit", "1") as supervisor:
        waiting = opened(supervisor, "ok")
        error = await error_of(waiting)
        assert error.reason is Reason.ENGINE_RESTARTED
        assert supervisor.restarts >= 3  # 0.01, 0.02 and 0.04 s were waited through, 0.08 s were not
        assert error.retry_after == pytest.approx(0.08)
        with pytest.raises(SidecarError) as refused:
            opened(supervisor, "ok")
        assert refused.value.reason is Reason.ENGINE_RESTARTED


async def test_failed_engine_start_is_retried() -> None:
    """The supervisor outlives a broken installation, and its log says once an hour what is wrong."""
    supervisor = Watched()
    supervisor._command = ["/nonexistent"]
    with capture_logs() as logs:
        supervisor.start()
        await supervisor.until(State.RESTARTING, times=3)
        await supervisor.stop(1)
    told = [(line["event"], line["error"]) for line in logs if line["log_level"] == "error"]
    assert told == [("engine_start_failed", "FileNotFoundError: ENOENT")]


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), PackageNotFoundError("mlx")])
async def test_library_fault_at_engine_start_is_retried(error: Exception) -> None:
    """Of asyncio on a machine without threads; of Python while an installer replaces what a group compares."""
    supervisor, errors = Watched(), [error]
    spawn = supervisor._spawn

    async def failing(starts: StartLog) -> EngineProcess:
        if errors:
            raise errors.pop()
        return await spawn(starts)

    supervisor._spawn = failing
    supervisor.start()
    await supervisor.until(State.READY)
    await supervisor.stop(1)


async def test_engine_that_dies_at_each_start_is_told_once(tmp_path: Path) -> None:
    """With what it said; the log tells as well when it is over."""
    fails = tmp_path / "fails"
    fails.touch()
    code = (
        "import os, sys, runpy\n"
        f"if os.path.exists({str(fails)!r}): sys.exit('no library')\n"
        "sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    supervisor = Watched()
    supervisor._command = [supervisor._command[0], "-c", code, *supervisor._command[1:]]
    with capture_logs() as logs:
        supervisor.start()
        await supervisor.until(State.RESTARTING, times=4)
        fails.unlink()
        await supervisor.until(State.READY)
        await supervisor.stop(1)
    told = [(line["event"], line.get("line"), line.get("starts")) for line in logs if line["event"] != "engine_stopped"]
    assert told[:2] == [("engine_output", "no library", None), ("engine_died", None, 1)]
    assert [(event, starts is not None and starts >= 4) for event, _, starts in told[2:]] == [
        ("engine_starts_again", True)
    ]


async def test_restart_back_off_doubles_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that die young are started less and less often."""
    monkeypatch.setattr(module, "LAST_BACKOFF", 0.04)
    monkeypatch.setattr(start_log, "HOUR_SECONDS", 0.0)  # each end is logged
    with capture_logs() as logs:
        async with supervising("--exit", "1") as supervisor:
            await supervisor.until(State.RESTARTING, times=6)
    pauses = [line["retry_in_s"] for line in logs if line["event"] == "engine_died"]
    assert pauses[:5] == [0.01, 0.02, 0.04, 0.04, 0.04]


async def test_restart_back_off_resets_after_a_stable_life() -> None:
    """A minute of the clock earns it."""
    now = 0.0
    with capture_logs() as logs:
        async with supervising(clock=lambda: now) as supervisor:
            for number in range(3):
                now += 10.0  # past the back-off
                await supervisor.until(State.READY, times=number + 1)
                if number == 2:
                    now += module.STABLE_SECONDS
                await error_of(opened(supervisor, "die", f"request {number}"))
    pauses = [line["retry_in_s"] for line in logs if line["event"] == "engine_died"]
    assert pauses == [0.01, 0.02, 0.01]


async def test_only_a_running_call_is_cancelled_and_once(journal: Callable[[], list[dict[str, Any]]]) -> None:
    """The engine is not told about a second close, a call that is over, or a call that was never sent."""
    async with supervising() as supervisor:
        unsent = opened(supervisor, "hold")
        unsent.close()
        over = opened(supervisor, "ok")
        await events(over)
        over.close()
        failed = opened(supervisor, "fail")
        await error_of(failed)
        failed.close()
        held = opened(supervisor, "hold")
        await until_delta(held)
        held.close()
        held.close()
        await events(opened(supervisor, "ok"))
        cancelled = [line["call_id"] for line in journal() if "cancel" in line]
        assert cancelled == [held.command.call_id]
        assert unsent.command.call_id not in [line["call_id"] for line in journal()]


async def test_call_failed_by_parent_is_cancelled_in_engine(
    journal: Callable[[], list[dict[str, Any]]],
) -> None:
    """A call that is dropped while the daemon drains still runs over there."""
    async with supervising() as supervisor:
        call = opened(supervisor, "hold-waiting")
        async for _ in call.events():
            break
        call.fail(SidecarError(Reason.SHUTTING_DOWN, "draining"))
        assert (await error_of(call)).reason is Reason.SHUTTING_DOWN
        call.close()
        await events(opened(supervisor, "ok"))
        assert [line["call_id"] for line in journal() if "cancel" in line] == [call.command.call_id]


async def test_request_of_two_engine_deaths_is_refused() -> None:
    """Under whatever id; other requests for the model go on."""
    async with supervising() as supervisor:
        for number in range(2):
            await error_of(supervisor.router.open(generate("die", request_id=f"r{number}")))
        with pytest.raises(SidecarError) as refused:
            supervisor.router.open(generate("die", request_id="r2"))
        assert refused.value.reason is Reason.REQUEST_QUARANTINED
        await error_of(opened(supervisor, "die", "another"))
        with pytest.raises(SidecarError) as refused:
            opened(supervisor, "die", "yet another")
        assert refused.value.reason is Reason.MODEL_QUARANTINED
        assert text(await events(opened(supervisor, "ok"))) == "one two three"


async def test_engine_calls_keep_their_event_order() -> None:
    """Ten thousand deltas arrive whole, beside other calls."""
    async with supervising() as supervisor:
        burst, other = opened(supervisor, "burst"), opened(supervisor, "ok")
        answer = await events(burst)
        ids = [token for event in answer for token in event.generate.delta.token_ids]
        assert ids == list(range(fake_engine.BURST))
        assert all(a < b for a, b in pairwise(ids))
        assert text(await events(other)) == "one two three"
