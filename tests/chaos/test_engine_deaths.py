"""Engines that die, hang or cannot be started: each time the caller learns it, and the next call is answered."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import stat
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import mlx_sidecar
from daemon.server.grpc_server import SERVICE
from daemon.server.supervision import supervisor as module
from daemon.server.supervision import vitals
from daemon.server.supervision.supervisor import State
from daemon.shared.errors import Reason
from mlx_sidecar import Delta
from tests.support import fake_engine
from tests.support.daemons import RunningDaemon, alive
from tests.support.repetitions import scaled
from tests.unit.server.supervised import Watched, error_of, events, generate, supervising, text, until_delta

FAKE = [sys.executable, "-m", "tests.support.serve_fake"]
CHAOS = [sys.executable, "-m", "tests.chaos.serve"]
SIGNALS = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT]

Start = Callable[..., RunningDaemon]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make back-offs short enough for a thousand deaths."""
    monkeypatch.setattr(module, "FIRST_BACKOFF", 0.001)
    monkeypatch.setattr(module, "LAST_BACKOFF", 0.001)
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.02)


def seeded() -> random.Random:
    """Return a generator whose seed a failure shows."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")  # noqa: T201 - shown with a failure
    return random.Random(seed)


async def answer(supervisor: Watched) -> str:
    """Return what the engine answers now."""
    with closing(supervisor.router.open(generate("ok"))) as call:
        return text(await events(call))


async def killed(times: int) -> None:
    """Kill engines, and see that calls are answered after each death and that nothing piles up."""
    rng = seeded()
    async with supervising() as supervisor:
        assert await answer(supervisor) == "one two three"
        open_files, pids = len(os.listdir("/dev/fd")), set()
        for number in range(times):
            pids.add(supervisor.pid)
            victim = supervisor.pid
            supervisor.router.quarantine.lift()  # the same request was running at the deaths before
            held = supervisor.router.open(generate("hold"))
            streaming = rng.random() < 0.5
            if streaming:
                await until_delta(held)
            os.kill(victim, rng.choice(SIGNALS))
            error = await error_of(held) if streaming else None
            assert error is None or error.reason is Reason.ENGINE_RESTARTED
            if not streaming:
                await supervisor.until(State.RESTARTING, times=number + 1)
            held.close()
            assert await answer(supervisor) == "one two three"
            assert supervisor.restarts == number + 1
        assert len(os.listdir("/dev/fd")) == open_files
        assert not supervisor.router._calls
        assert not supervisor.router._unsent
        assert not any(map(alive, pids))


async def test_twenty_engine_deaths_cost_only_typed_errors() -> None:
    """The engine dies by SIGKILL, SIGSEGV or SIGABRT, with and without a stream."""
    await killed(20)


@pytest.mark.slow
async def test_thousand_engine_deaths_leave_nothing_behind() -> None:
    """No call, process or open file remains after the engine's deaths."""
    await killed(scaled(1000))


async def stopped(times: int) -> None:
    """Stop engines by SIGSTOP; time passes only when the test says so."""
    now = 0.0
    async with supervising(clock=lambda: now) as supervisor:
        for number in range(times):
            assert await answer(supervisor) == "one two three"
            victim, began = supervisor.pid, now
            os.kill(victim, signal.SIGSTOP)
            while supervisor.state is State.READY:
                now += 0.25
                await asyncio.sleep(2 * module.CHECK_SECONDS)
            assert supervisor.state is State.STALLED
            assert vitals.STALLED_SECONDS < now - began <= 10
            supervisor.router.quarantine.lift()
            held = supervisor.router.open(generate("ok"))
            while supervisor.state is State.STALLED:
                now += 0.25
                await asyncio.sleep(2 * module.CHECK_SECONDS)
            assert (await error_of(held)).reason is Reason.ENGINE_RESTARTED
            await supervisor.until(State.READY, times=number + 2)
            assert not alive(victim)


async def test_stopped_engine_turns_unready_and_is_replaced() -> None:
    """Calls of the stopped engine fail, and SIGKILL ends it although it cannot answer."""
    await stopped(2)


@pytest.mark.slow
async def test_fifty_stopped_engines_are_found_and_replaced() -> None:
    """Fifty engines are stopped one after the other; the test above stops one."""
    await stopped(scaled(50))


async def test_engine_start_is_retried_until_it_succeeds(tmp_path: Path) -> None:
    """The engine's program is missing for a while, as during an upgrade; calls wait for it and are answered."""
    program = tmp_path / "engine"
    supervisor = Watched()
    supervisor._command = [str(program)]
    supervisor.start()
    try:
        call = supervisor.router.open(generate("ok"))
        await supervisor.until(State.RESTARTING, times=5)
        ready = tmp_path / "new"
        ready.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_engine.__file__} "$@"\n')
        ready.chmod(stat.S_IRWXU)
        ready.rename(program)
        assert text(await events(call)) == "one two three"
    finally:
        await supervisor.stop(20)


def test_health_follows_the_progress_of_the_engine(start_daemon: Start) -> None:
    """An endless step makes the service NOT_SERVING, the process stays SERVING, and the service recovers."""
    daemon = start_daemon(FAKE)
    with daemon.client() as client, grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        client.load("ok")
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(mlx_sidecar.SidecarError):
            client.complete("stuck", "hello")
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def killed_really(start_daemon: Start, times: int) -> None:
    """Kill the real engine in the middle of answers; each next answer is the same as ever."""
    rng = seeded()
    daemon = start_daemon(CHAOS)
    with daemon.client() as client:
        expected = client.complete("embedded", "one two three", max_tokens=30, ignore_eos=True)
        inode, pids = daemon.socket.stat().st_ino, []
        for number in range(times):
            pids.append(client.stats().engine.pid)
            with client.generate("embedded", f"question {number}", max_tokens=3000, ignore_eos=True) as stream:
                for _ in range(rng.choice([1, 2, 20])):
                    if isinstance(next(stream), Delta):
                        break
                os.kill(pids[-1], rng.choice(SIGNALS))
                with pytest.raises(mlx_sidecar.EngineRestarted):
                    list(stream)
            client.invalidate_all()  # lifts the quarantine
            again = client.complete("embedded", "one two three", max_tokens=30, ignore_eos=True)
            assert (again.text, again.usage.cached_tokens) == (expected.text, 0)
        assert client.stats().engine.restarts == times
        assert daemon.socket.stat().st_ino == inode
        assert not any(map(alive, pids))


@pytest.mark.slow
def test_forty_real_engine_deaths_change_no_answer(start_daemon: Start) -> None:
    """The daemon's socket stays the same through all deaths of the engine."""
    killed_really(start_daemon, scaled(40))
