"""Time limits count only the time in which the process ran: a jump of the clock breaks none of them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from daemon.engine.loop import Loop
from daemon.server.supervision import engine_call
from daemon.server.supervision.engine_call import FULL_BYTES, EngineCall
from daemon.shared import observed_time
from daemon.shared.observed_time import Alarm, Countdown, SeenTime, ended, looks, output_of, polls
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.builders import Clock


def test_frequently_read_time_is_fully_observed() -> None:
    clock = Clock()
    seen = SeenTime(clock, 1.0)
    for _ in range(100):
        clock.pass_(0.7)
        assert not seen.late()
    assert seen() == pytest.approx(70)


def test_clock_jump_counts_as_the_longest_pause() -> None:
    """Only once: readings in time after the jump count in full."""
    clock = Clock()
    seen = SeenTime(clock, 1.0)
    clock.pass_(3600)
    assert seen.late()
    assert not seen.late()
    clock.pass_(0.5)
    assert seen() == pytest.approx(1.5)


def test_clock_going_back_subtracts_nothing() -> None:
    clock = Clock()
    seen = SeenTime(clock, 1.0)
    clock.pass_(0.5)
    assert seen() == pytest.approx(0.5)
    clock.pass_(-5)
    assert seen() == pytest.approx(0.5)


def test_observed_step_age_excludes_a_stopped_process() -> None:
    """The engine was stopped in the middle of a step: it is not one of an hour, which would be its end."""
    clock = Clock()
    ages: list[float | None] = []

    class Steps:
        busy, pause = True, 0.0

        def handle(self, command: object) -> None:
            raise AssertionError(command)

        def step(self) -> None:
            clock.pass_(2.0)
            ages.append(loop.step_age)
            clock.pass_(3600.0)  # stopped
            ages.append(loop.step_age)
            loop.stop()

    loop = Loop(SeenTime(clock, 4.0))
    loop.run(Steps())
    assert ages[:2] == [2.0, 6.0]


def test_heartbeat_observes_time_of_an_idle_loop() -> None:
    """Otherwise a first step after an hour would count the hour."""
    clock = Clock()
    seen = SeenTime(clock, 4.0)
    loop = Loop(seen)
    for _ in range(10):
        clock.pass_(1.0)
        assert loop.step_age is None
    assert seen() == pytest.approx(10)


@pytest.mark.parametrize(("seconds", "each"), [(1.0, 0.25), (0.6, 0.25), (0.1, 0.25)])
def test_observation_pauses_sum_to_the_limit(seconds: float, each: float) -> None:
    pauses = list(looks(seconds, each))
    assert sum(pauses) == pytest.approx(seconds)
    assert max(pauses) <= each
    assert list(looks(0)) == []


def test_late_poll_checks_as_often_as_planned() -> None:
    """It looks once before the first pause and once after the last."""
    clock = Clock()
    assert len(list(polls(1.0, 0.25, sleep=lambda _: clock.pass_(3600)))) == 5


async def test_countdown_excludes_unobserved_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that became possible during the stop is done before the countdown ends."""
    monkeypatch.setattr(observed_time, "LOOK_SECONDS", 0.05)
    over = asyncio.Event()
    countdown = Countdown(0.5, over.set)
    await asyncio.sleep(0)
    time.sleep(1.0)  # noqa: ASYNC251 - the process does not run
    for _ in range(3):
        await asyncio.sleep(0)
    assert not over.is_set()
    await asyncio.wait_for(over.wait(), 20)
    countdown.cancel()


async def test_cancelled_countdown_calls_nothing() -> None:
    called: list[int] = []
    Countdown(0.01, lambda: called.append(1)).cancel()
    done = asyncio.Event()
    Countdown(0.05, done.set)
    await asyncio.wait_for(done.wait(), 20)
    assert not called


async def test_stopped_parent_does_not_make_a_reader_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads as soon as it can, and its stream goes on."""
    monkeypatch.setattr(observed_time, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(engine_call, "STALL_SECONDS", 0.5)
    one = EngineCall(ipc.Command(call_id=1), lambda _: None)
    one.push(ipc.Event(generate=pb.GenerateResponse(delta=pb.Delta(text="x" * FULL_BYTES))))
    await asyncio.sleep(0)
    time.sleep(1.0)  # noqa: ASYNC251 - the process does not run
    for _ in range(3):
        await asyncio.sleep(0)  # the reader has its turn a little later
    events = one.events()
    assert len((await anext(events)).generate.delta.text) == FULL_BYTES
    one.push(ipc.Event(generate=pb.GenerateResponse(finished=pb.Finished())))
    assert (await anext(events)).generate.HasField("finished")
    one.close()


async def test_tasks_done_during_a_stop_meet_their_timeout() -> None:
    """A wait that is over its limit because the process did not run looks again."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    waiting = asyncio.ensure_future(observed_time.wait({done}, 0.5))
    await asyncio.sleep(0)
    time.sleep(1.0)  # noqa: ASYNC251 - the process does not run
    loop.call_soon(lambda: loop.call_soon(done.set_result, None))
    assert await waiting
    assert not await observed_time.wait({loop.create_future()}, 0.01)


def test_alarm_rings_or_is_cancelled() -> None:
    rang = threading.Event()
    Alarm(0.01, rang.set).start()
    assert rang.wait(20)
    silent = threading.Event()
    alarm = Alarm(3600, silent.set)
    alarm.start()
    alarm.cancel()
    alarm.join(20)
    assert not alarm.is_alive()
    assert not silent.is_set()


def test_slow_command_is_killed_and_output_is_kept() -> None:
    """Over several looks nothing of its output is lost."""
    slow = "import sys,time; print('one', flush=True); time.sleep(0.6); print('two'); sys.exit(3)"
    done = output_of([sys.executable, "-c", slow], 60, subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (3, b"one\ntwo\n")
    with pytest.raises(subprocess.TimeoutExpired):
        output_of([sys.executable, "-c", "import time; time.sleep(600)"], 0.01, subprocess.DEVNULL)


def test_process_end_is_waited_for() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as short:
        assert ended(short, 60)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as long:
        assert not ended(long, 0.01)
        long.kill()
