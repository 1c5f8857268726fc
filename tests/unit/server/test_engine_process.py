"""The engine process: it exits when asked, is killed when it hangs, and invalid output gets it replaced."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys

import pytest
from structlog.testing import capture_logs

from daemon.server.supervision import supervisor as module
from daemon.server.supervision import vitals
from daemon.server.supervision.engine_call import Backlog, EngineCall
from daemon.server.supervision.engine_process import SOCKET_BYTES, EngineProcess, roomy_pair
from daemon.server.supervision.spawning import spawned
from daemon.server.supervision.supervisor import State
from daemon.shared.errors import Reason, SidecarError
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.daemons import alive
from tests.unit.server.supervised import Watched, error_of, events, opened, supervising, text, until_delta


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make back-offs short enough for tests."""
    monkeypatch.setattr(module, "FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.02)


async def test_stopped_engine_exits_zero() -> None:
    """Also with a call open, which fails rather than waits for ever; later calls are refused."""
    with capture_logs() as logs:
        async with supervising() as supervisor:
            call = opened(supervisor, "hold")
            await until_delta(call)
            pid = supervisor.pid
        assert (await error_of(call)).reason is Reason.SHUTTING_DOWN
        with pytest.raises(SidecarError, match="shutting down"):
            opened(supervisor, "ok")
    assert {"event": "engine_stopped", "status": 0, "log_level": "info"} in logs
    assert not alive(pid)
    assert supervisor.pid == 0


async def test_engine_that_ignores_shutdown_is_killed() -> None:
    """After the grace that stop was given."""
    supervisor = Watched("--stubborn")
    supervisor.start()
    await supervisor.until(State.READY)
    pid = supervisor.pid
    await supervisor.stop(0.05)
    assert not alive(pid)


@pytest.mark.parametrize("model", ["garbage", "huge"])
async def test_engine_that_sends_garbage_is_killed(model: str) -> None:
    """Its later frames cannot be trusted, and no memory is allocated for the length that it announces."""
    async with supervising() as supervisor:
        assert (await error_of(opened(supervisor, model))).reason is Reason.ENGINE_RESTARTED
        assert text(await events(opened(supervisor, "ok"))) == "one two three"


@pytest.mark.parametrize(
    ("model", "limits"),
    [
        ("silent", {"SILENT_SECONDS": 0.8, "STALLED_SECONDS": 0.5}),
        ("stuck", {"STUCK_SECONDS": 900.0, "STALLED_SECONDS": 5.0}),
    ],
)
async def test_engine_without_progress_is_killed(
    model: str, limits: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence and a step without end are both noticed."""
    for name, value in limits.items():
        monkeypatch.setattr(vitals, name, value)
    async with supervising() as supervisor:
        error = await error_of(opened(supervisor, model))
        assert error.reason is Reason.ENGINE_RESTARTED
        assert supervisor.states[:3] == [State.READY, State.STALLED, State.RESTARTING]


async def test_an_engine_that_never_says_hello_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start has a limit of its own. The log tells how long it lived, and its pid for the system's log."""
    monkeypatch.setattr(module, "START_SECONDS", 0.2)
    with capture_logs() as logs:
        async with supervising("--no-hello") as supervisor:
            await supervisor.until(State.RESTARTING, times=2)
            assert State.READY not in supervisor.states
    killed, died = [line for line in logs if line["log_level"] == "error"][:2]
    assert (killed["event"], died["event"]) == ("engine_stuck_killed", "engine_died")
    assert killed["lived_s"] >= 0.2
    assert killed["pid"] == died["pid"] > 0


async def test_unhandled_engine_event_spares_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent goes on with a new engine."""
    push = EngineCall.push

    def fragile(call: EngineCall, event: ipc.Event) -> None:
        if call.command.generate.model == "fail":
            raise ZeroDivisionError
        push(call, event)

    monkeypatch.setattr(EngineCall, "push", fragile)
    async with supervising() as supervisor:
        assert (await error_of(opened(supervisor, "fail"))).reason is Reason.ENGINE_RESTARTED
        assert text(await events(opened(supervisor, "ok"))) == "one two three"


async def test_call_whose_last_event_is_lost_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its answer would end well, without its end."""
    push = Backlog.push

    def fragile(backlog: Backlog, event: ipc.Event) -> None:
        if event.generate.HasField("finished"):
            raise ZeroDivisionError
        push(backlog, event)

    monkeypatch.setattr(Backlog, "push", fragile)
    async with supervising() as supervisor:
        assert (await error_of(opened(supervisor, "ok"))).reason is Reason.ENGINE_RESTARTED


async def test_engine_log_lines_are_forwarded() -> None:
    """
    As they were, marked as the engine's. What is no log line is counted, because it could hold a part of the request;
    a huge line harms nothing.
    """
    with capture_logs() as logs:
        async with supervising() as supervisor:
            assert text(await events(opened(supervisor, "log"))) == "one two three"
    lines = [line for line in logs if line["event"] in ("one line", "after a long line", "engine_output")]
    assert lines[0] == {"event": "one line", "log_level": "warning", "figure": 7, "process": "engine"}
    assert lines[1] == {"event": "engine_output", "log_level": "warning", "characters": 9}
    assert lines[-1] == {"event": "after a long line", "log_level": "info", "process": "engine"}
    assert not any("line" in line for line in lines)


async def test_engine_output_before_requests_is_logged() -> None:
    """It knows no request yet, and why it cannot start is told nowhere else."""
    code = "print('ModuleNotFoundError: No module named x'); print('y' * 3000)"
    with capture_logs() as logs:
        process = await EngineProcess.spawn([sys.executable, "-c", code])
        assert await process.reap() == 0
    assert [line["line"] for line in logs] == ["ModuleNotFoundError: No module named x", "y" * 2000]


async def test_ctrl_c_waits_for_the_first_line() -> None:
    """A new interpreter would write a traceback; the parent itself gets signals as before."""
    code = (
        "import os, signal; os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM);"
        "print(*sorted(one.name for one in signal.sigpending()))"
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with capture_logs() as logs:
        process = await EngineProcess.spawn([sys.executable, "-c", code])
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
        assert await process.reap() == 0
    assert [line["line"] for line in logs] == ["SIGINT SIGTERM"]


async def test_start_that_is_cancelled_or_fails_is_told() -> None:
    """As without the hold of signals, which ends with the first wait."""
    seen: list[bool] = []
    waiting = asyncio.Event()

    async def starting(waits: bool) -> str:
        seen.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        if waits:
            await asyncio.sleep(0)
            seen.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            waiting.set()
            await asyncio.Event().wait()
        return "started"

    assert (await spawned(starting(False)), seen) == ("started", [True])
    task = asyncio.ensure_future(spawned(starting(True)))
    await waiting.wait()
    assert seen[1:] == [True, False]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(FileNotFoundError):
        await EngineProcess.spawn(["/nowhere/program"])


@pytest.mark.parametrize(
    "command",
    [
        ipc.Command(generate=pb.GenerateRequest()),
        ipc.Command(embed=pb.EmbedRequest()),
        ipc.Command(tokenize=pb.TokenizeRequest()),
        ipc.Command(invalidate=pb.InvalidateRequest()),
    ],
    ids=lambda command: command.WhichOneof("body"),
)
async def test_engine_output_with_requests_is_redacted(command: ipc.Command) -> None:
    """The words of an exception may be a request's."""
    printed = [
        "Traceback (most recent call last):",
        '  File "/x/y.py", line 3, in Engine.f',
        "    the text of a line",
        "json.decoder.JSONDecodeError: a secret",
        "Fatal Python error: Segmentation fault",
        "a secret",
    ]
    code = f"import sys, socket; socket.socket(fileno=int(sys.argv[-1])).recv(1); [print(one) for one in {printed!r}]"
    with capture_logs() as logs:
        process = await EngineProcess.spawn([sys.executable, "-c", code])
        process.send(command)
        await process.listen(lambda _: None)
        assert await process.reap() == 0
    assert [line.get("line") for line in logs] == [
        printed[0], printed[1], None, "json.decoder.JSONDecodeError", printed[4], None
    ]  # fmt: skip
    assert "secret" not in str(logs)


def test_engines_socket_has_room_where_the_system_gives_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS gives 8 KiB: what a step of several requests writes would wait for another thread, step by step."""
    rooms, pair = (socket.SO_SNDBUF, socket.SO_RCVBUF), socket.socketpair

    def little() -> tuple[socket.socket, socket.socket]:
        ends = pair()
        for end in ends:
            for room in rooms:
                end.setsockopt(socket.SOL_SOCKET, room, 8192)
        return ends

    monkeypatch.setattr(socket, "socketpair", little)
    for end in roomy_pair():
        with end:
            assert all(end.getsockopt(socket.SOL_SOCKET, room) >= SOCKET_BYTES for room in rooms)
