"""
Keeps exactly one engine process running: starts it, watches it, kills it when it hangs, and starts the next one.

States of the engine process:

                     hello, warming           hello             5 s without a sign or a step
         STARTING --------------------> WARMING ----> READY ------------------------------> STALLED
         ^  ^   |                          |            ^ ^                                    |
         |  |   +---------- hello ---------|------------+ +---------- progress again ----------+
         |  +------------ after 5 s -------+
         |
         +-- back-off -- RESTARTING <-- the process ends or is killed -- each of these states

         STOPPED <-- stop() -- each state; no state follows it

* STARTING: the process loads libraries. A hang cannot be told from a slow disk yet; it is killed after 120 s.
* WARMING: STARTING of the first engine, within its first 5 s. Health says SERVING: the wait is short. A later engine
  skips it, because the one before has died: it has to show first that it takes calls.
* READY: it takes calls. Each heartbeat and each other event is a sign of life and tells how long its step takes.
* STALLED: still takes calls, but health says NOT_SERVING. Killed after 10 s without a sign, a step of 120 s, or with 16
  threads that hang on disks. If it has not ended 10 s after that, its calls fail and others are refused until it has.
* RESTARTING: the process has closed its socket, and has the same 10 s to end; then there is none. The back-off doubles
  with each death, and begins anew after a life of 60 s.

These limits count only the time in which this process ran (`SeenTime`): a parent that was stopped finds old heartbeats.
Calls are the router's business: the supervisor tells it when an engine takes calls and when it is dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from enum import Enum

import structlog

from daemon.server.supervision import vitals
from daemon.server.supervision.call_router import CallRouter
from daemon.server.supervision.engine_process import EngineProcess
from daemon.server.supervision.start_log import StartLog
from daemon.server.supervision.vitals import Vitals
from daemon.shared.log_fields import Words, cause
from daemon.shared.observed_time import SeenTime, sleep, wait
from daemon.v1 import ipc_pb2 as ipc

CHECK_SECONDS = 0.5
"""Between two looks at a running engine."""
MOST_BETWEEN_CHECKS = 1.0
"""Time beyond this between two looks does not count against the engine: the parent did not run."""
START_SECONDS = 120.0
"""
An engine that takes no calls for so long after its start is killed. A heartbeat could not tell sooner: while Python
loads a library no thread of the engine runs, 2.7 s at a stretch with all files in memory, and much longer on a cold
disk.
"""
KILLED_SECONDS = 10.0
"""Time of an engine that was killed to end. The system may hold it for longer: in a driver, or for a disk."""
FIRST_BACKOFF = 1.0
LAST_BACKOFF = 60.0
"""Seconds between a death and the next start: the first, doubled with each death up to the last."""
STABLE_SECONDS = 60.0
"""After a life of this length the back-off begins at the first again."""

log = structlog.get_logger()


class State(Enum):
    """State of the engine process; see above."""

    STARTING = "starting"
    WARMING = "warming"
    READY = "ready"
    STALLED = "stalled"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class Supervisor:
    """
    Owns the engine process. All methods run on the event loop.

    Args:
        command: Command line of the engine, without `--fd`.
        clock: Seconds that never go back.
        router: Carries calls; it is told about each engine's readiness and death, and gets its events.
        on_change: Called when `state` has changed.
        on_spawn: Called with the process id of each new engine.
        spawn: Starts an engine with the log of its starts; None to run `command`. Its error is told to callers if it
            is a `ConnectionError`.
        last_backoff: Most seconds between a death and the next start; None for LAST_BACKOFF.

    Attributes:
        restarts: Engines that were started after the first.
        hello: Versions and device of the latest engine.
    """

    def __init__(
        self,
        command: Sequence[str],
        clock: Callable[[], float],
        router: CallRouter,
        on_change: Callable[[State], None] = lambda _: None,
        on_spawn: Callable[[int], None] = lambda _: None,
        spawn: Callable[[StartLog], Awaitable[EngineProcess]] | None = None,
        last_backoff: float | None = None,
    ) -> None:
        self.state = State.STARTING
        self.restarts = 0
        self.hello = ipc.Hello()
        self._clock = clock
        self._router = router
        self._on_change = on_change
        self._on_spawn = on_spawn
        self._command = command
        self._starts = StartLog(clock)
        self._spawn = spawn or self._spawn_command
        self._last_backoff = last_backoff
        self._seen = SeenTime(clock, MOST_BETWEEN_CHECKS)
        self._vitals = Vitals(self._seen, clock)
        self._engine: EngineProcess | None = None
        self._backoff = FIRST_BACKOFF
        self._spawned = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def serves(self) -> bool:
        """Whether the engine takes calls, now or shortly, and makes progress."""
        return self.state in (State.WARMING, State.READY)

    @property
    def pid(self) -> int:
        """Process id of the engine; 0 while none runs."""
        return self._engine.pid if self._engine else 0

    @property
    def log_fields(self) -> dict[str, str | int]:
        """Its state as fields of a log line, with the process id if a process runs."""
        return {"state": self.state.value} | ({"pid": self.pid} if self.pid else {})

    @property
    def step_age(self) -> float:
        """Seconds since the engine's current step began, as far as is known; 0 when idle."""
        return self._vitals.step_age

    @property
    def _blames_calls(self) -> bool:
        """Whether running calls count as the cause of a death. Threads hang because of calls that have ended."""
        return self._vitals.threads_stuck < vitals.MOST_STUCK

    def start(self) -> None:
        """Begin to keep an engine running."""
        self._task = asyncio.create_task(self._run(), name="supervisor")

    async def spawned(self) -> None:
        """Wait until the first engine's process has been started, or could not be."""
        await self._spawned.wait()

    async def stop(self, grace: float) -> None:
        """
        End the engine for good; it has `grace` seconds before it is killed. Open calls fail. Harmless twice.

        An engine that the system holds is left behind after KILLED_SECONDS more. Its copy of the lock outlives this
        process, so that no other engine gets memory that it still has.
        """
        self._set(State.STOPPED)
        self._router.close()
        if self._task is None:
            return
        if self._engine is None:
            self._task.cancel()  # it sleeps through a back-off, or starts a process
        elif not await self._ended(self._engine, grace):
            log.error("engine_does_not_end", pid=self.pid)
            self._engine = None
            self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _ended(self, engine: EngineProcess, grace: float) -> bool:
        """Stop an engine, and return whether it has ended in time."""
        stopping = asyncio.ensure_future(engine.stop(grace))
        try:
            return await wait({stopping}, grace + KILLED_SECONDS)
        finally:
            stopping.cancel()

    async def _run(self) -> None:
        while True:
            status = await self._live()
            pid, self._engine = self.pid, None
            if self.state is State.STOPPED:
                log.info("engine_stopped", status=status)
                return
            await self._back_off(status, pid, lived=self._vitals.lived)

    async def _back_off(self, status: int | None, pid: int, *, lived: float) -> None:
        if lived >= STABLE_SECONDS:
            self._backoff = FIRST_BACKOFF
        pause, self._backoff = self._backoff, min(self._last_backoff or LAST_BACKOFF, 2 * self._backoff)
        self._set(State.RESTARTING)
        calls = self._router.engine_died(pause, blame_calls=self._blames_calls)
        if status is not None and (starts := self._starts.ended(status)):
            lived = round(lived, 3)
            log.error(
                "engine_died", status=status, pid=pid, lived_s=lived, calls=calls, retry_in_s=pause, starts=starts
            )
        await asyncio.sleep(pause)
        self.restarts += 1

    async def _live(self) -> int | None:
        """Run one engine from its start to its end, and return its exit status; None if it could not start."""
        self._vitals = Vitals(self._seen, self._clock)
        self._starts.begin()
        self._set(State.STARTING)
        try:
            engine = self._engine = await self._spawn(self._starts)
        except Exception as error:  # also of a library, or of a thread that cannot be started: the next try may do
            told_to_callers = str(error) if isinstance(error, ConnectionError) else ""
            self._router.unavailable(told_to_callers)
            why = Words(told_to_callers) or cause(error)
            if starts := self._starts.ended(why):
                log.error("engine_start_failed", error=why, starts=starts)
            return None
        finally:
            self._spawned.set()
        self._on_spawn(engine.pid)
        watch = asyncio.create_task(self._watch(engine), name="engine-watch")
        try:
            await engine.listen(self._on_event)
        except Exception:
            log.exception("engine_event_unhandled")
            engine.kill()
        finally:
            watch.cancel()
        # Calls that come from here on wait for the next engine.
        self._router.disconnect()
        self._set(State.RESTARTING)
        limit = asyncio.create_task(self._give_up(engine), name="engine-end")
        try:
            return await engine.reap()
        finally:
            limit.cancel()

    async def _watch(self, engine: EngineProcess) -> None:
        """Look at an engine until it has to be killed."""
        late = False
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            # After a late look the events that have arrived meanwhile are read first, but only once in a row.
            late = self._seen.late() and not late
            if late:
                continue
            if self._judge() and self.state is not State.STOPPED:
                if self._starts.due("engine_stuck_killed"):
                    log.error(
                        "engine_stuck_killed",
                        pid=engine.pid,
                        lived_s=round(self._vitals.lived, 3),
                        silent_s=round(self._vitals.silence, 3),
                        step_age_s=round(self._vitals.step_age, 3),
                        threads=self._vitals.threads_stuck,
                    )
                engine.kill()
                await self._give_up(engine)
                return

    async def _give_up(self, engine: EngineProcess) -> None:
        """Fail the calls of an engine that is about to end, unless it does in time; its end cancels this wait."""
        await sleep(KILLED_SECONDS)
        log.error("engine_does_not_end", pid=engine.pid)
        self._router.abandon(
            "the engine was killed and does not end, because the system holds it, for a disk or a driver",
            blame_calls=self._blames_calls,
        )

    def _judge(self) -> bool:
        """Set the state that the engine's progress deserves, and return whether it has to be killed."""
        if self.state in (State.STARTING, State.WARMING):
            if self._vitals.lived_seen > vitals.STALLED_SECONDS:
                self._set(State.STARTING)  # the wait is not short, as it turns out
            return self._vitals.lived_seen > START_SECONDS
        self._set(State.STALLED if self._vitals.stalled else State.READY)
        return self._vitals.hopeless

    async def _spawn_command(self, starts: StartLog) -> EngineProcess:
        return await EngineProcess.spawn(self._command, starts)

    def _on_event(self, event: ipc.Event) -> None:
        self._vitals.last_sign = self._seen()
        kind = event.WhichOneof("body")
        if kind == "heartbeat":
            self._vitals.heartbeat(event.heartbeat)
        elif kind == "hello":
            self._on_hello(event.hello)
        elif kind == "snapshot":
            self._router.note_snapshot(event.snapshot)
        elif kind == "group_end":
            self._router.unavailable(event.group_end)
        else:
            self._router.deliver(event)

    def _on_hello(self, hello: ipc.Hello) -> None:
        self.hello = hello
        if not hello.warming:
            assert self._engine is not None
            if failed := self._starts.serves():
                log.info("engine_starts_again", starts=failed)
            self._set(State.READY)
            self._router.connect(self._engine.send)
        elif not self.restarts and self._vitals.lived_seen <= vitals.STALLED_SECONDS:
            self._set(State.WARMING)

    def _set(self, state: State) -> None:
        if state is self.state or self.state is State.STOPPED:
            return
        self.state = state
        self._on_change(state)
