"""The supervisor: keeps exactly one engine running, carries calls to it, and fails them when it dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from itertools import count

import structlog

from daemon.server.admission import shutting_down
from daemon.server.supervision.engine_call import EngineCall
from daemon.server.supervision.engine_process import EngineProcess
from daemon.server.supervision.quarantine import Quarantine, Suspect
from daemon.shared.durations import seconds
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.log_fields import cause
from daemon.shared.model_overrides import ModelOverrides
from daemon.shared.observed_time import SeenTime
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb

CHECK_SECONDS = 0.5
MOST_BETWEEN_CHECKS = 1.0
"""A check that comes later than so was not made because the parent did not run; the engine is not to blame for that."""
START_SECONDS = 120.0
"""
An engine that takes no calls for so long after its start is killed. A heartbeat could not tell sooner which one hangs:
while Python loads a library no thread of the engine runs, 2.7 s at a stretch with all files in memory, and as long as a
cold disk takes without.
"""
STALLED_SECONDS = 5.0
"""A step, or a silence, of this length makes the engine count as stalled: health says so."""
SILENT_SECONDS = 10.0
"""After a silence of this length the process is killed: heartbeats come from a thread of their own."""
STUCK_SECONDS = 120.0
"""After a step of this length it is killed: the longest step, a slice of weights from a slow disk, takes less."""
MOST_STUCK = 16
"""An engine with so many threads that hang, on disks that are gone, is killed: only that ends them."""
FIRST_BACKOFF = 1.0
LAST_BACKOFF = 60.0
STABLE_SECONDS = 60.0
"""An engine that lived this long has earned a new first back-off."""
PATIENCE_SECONDS = 5.0
"""Calls wait through a back-off of at most this length; when it takes longer, callers are told to come back."""

log = structlog.get_logger()


class State(Enum):
    """State of the engine process. While it is WARMING it loads libraries, for which calls wait a moment."""

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
        on_change: Called when `state` has changed.
        on_spawn: Called with the process id of each new engine.

    Attributes:
        on_snapshot: Called with each snapshot that the engine sends; set by whoever keeps them.
    """

    def __init__(
        self,
        command: Sequence[str],
        clock: Callable[[], float],
        on_change: Callable[[State], None] = lambda _: None,
        on_spawn: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.state = State.STARTING
        self.restarts = 0
        self.hello = ipc.Hello()
        self.snapshot = pb.StatsResponse()
        self.on_snapshot: Callable[[pb.StatsResponse], None] = lambda _: None
        self.quarantine = Quarantine(clock)
        self.keeps = ModelOverrides()
        self._command = command
        self._clock = clock
        self._seen = SeenTime(clock, MOST_BETWEEN_CHECKS)
        """Judges the engine."""
        self._on_change = on_change
        self._on_spawn = on_spawn
        self._engine: EngineProcess | None = None
        self._calls: dict[int, EngineCall] = {}
        self._unsent: dict[int, EngineCall] = {}
        self._ids = count(1)
        self._backoff = FIRST_BACKOFF
        self._retry_at = 0.0
        self._last_sign = 0.0
        self._step_age = 0.0
        self._stuck = 0
        self._began = self._spawned_at = 0.0
        """When the engine was started, as seen and by the clock."""
        self._spawned = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def serves(self) -> bool:
        """Whether the engine takes work, now or shortly, and makes progress."""
        return self.state in (State.WARMING, State.READY)

    @property
    def pid(self) -> int:
        """Process id of the engine; 0 while none runs."""
        return self._engine.pid if self._engine else 0

    @property
    def step_age(self) -> float:
        """Seconds since the engine's current step began, as far as is known; 0 when idle."""
        if not self._step_age:
            return 0.0
        return self._step_age + self._seen() - self._last_sign

    def start(self) -> None:
        """Begin to keep an engine running."""
        self._task = asyncio.create_task(self._run(), name="supervisor")

    async def spawned(self) -> None:
        """Wait until the first engine's process has been started, or could not be."""
        await self._spawned.wait()

    async def stop(self, grace: float) -> None:
        """End the engine for good; it has `grace` seconds before it is killed. Calls that are open fail."""
        self._set(State.STOPPED)
        self._fail_open(shutting_down())
        if self._task is None:
            return
        if self._engine is not None:
            await self._engine.stop(grace)
        else:
            self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    def open(self, command: ipc.Command, model: str = "") -> EngineCall:
        """
        Open a call; it is sent as soon as the engine is up. Close it when done.

        Args:
            command: What to do; `call_id` is filled in.
            model: The model that the call is about, for the quarantine; empty if none is.

        Raises:
            SidecarError: ENGINE_RESTARTED if the engine keeps dying; MODEL_QUARANTINED or REQUEST_QUARANTINED;
                SHUTTING_DOWN after `stop`.
        """
        if self.state is State.STOPPED:
            raise shutting_down()
        if model and self.quarantine.knows:  # a digest of megabytes takes a while
            self.quarantine.check(Suspect.of(command, model))
        if (waiting := self._retry_at - self._clock()) > PATIENCE_SECONDS:
            raise _restarted("the engine keeps dying", waiting)
        command.call_id = next(self._ids)
        call = self._calls[command.call_id] = EngineCall(command, self._close, self._hold)
        if self._engine is not None and self.state in (State.READY, State.STALLED):
            try:
                self._engine.send(command)
            except BaseException:
                del self._calls[command.call_id]  # nobody has the call, so that nobody could close it
                raise
        else:
            self._unsent[command.call_id] = call
        return call

    def _close(self, call: EngineCall) -> None:
        call_id = call.command.call_id
        unsent = self._unsent.pop(call_id, None)
        known = self._calls.pop(call_id, None)
        if known and not unsent and not call.over and self._engine is not None:
            self._engine.send(ipc.Command(call_id=call_id, cancel=ipc.Cancel()))

    def _hold(self, call: EngineCall, held: bool) -> None:
        if call.command.call_id in self._calls and self._engine is not None:
            self._engine.send(ipc.Command(call_id=call.command.call_id, hold=ipc.Hold(held=held)))

    def _recall(self) -> None:
        assert self._engine is not None
        for request in self.keeps.requests():
            self._engine.send(ipc.Command(recall=request))

    def _send_unsent(self) -> None:
        assert self._engine is not None
        for call in self._unsent.values():
            self._engine.send(call.command)
        self._unsent.clear()

    async def _run(self) -> None:
        while True:
            status = await self._live()
            self._engine = None
            if self.state is State.STOPPED:
                log.info("the engine has ended", status=status)
                return
            await self._back_off(status, lived=self._clock() - self._spawned_at)

    async def _back_off(self, status: int | None, *, lived: float) -> None:
        if lived >= STABLE_SECONDS:
            self._backoff = FIRST_BACKOFF
        pause, self._backoff = self._backoff, min(LAST_BACKOFF, 2 * self._backoff)
        self._set(State.RESTARTING)
        self._retry_at = self._clock() + pause
        self._fail_calls(status, lived, pause)
        await asyncio.sleep(pause)
        self.restarts += 1

    async def _live(self) -> int | None:
        """Run one engine from its start to its end, and return its exit status; None if it could not start."""
        self._spawned_at, self._began = self._clock(), self._seen()
        self._last_sign = self._began
        self._step_age = 0.0
        self._stuck = 0
        self._set(State.STARTING)
        try:
            engine = self._engine = await EngineProcess.spawn(self._command)
        except OSError as error:
            log.error("the engine cannot be started", error=cause(error))
            return None
        finally:
            self._spawned.set()
        self._on_spawn(engine.pid)
        watch = asyncio.create_task(self._watch(engine), name="engine-watch")
        try:
            await engine.listen(self._on_event)
        except Exception:
            log.exception("an event of the engine could not be handled; the engine is killed")
            engine.kill()
        finally:
            watch.cancel()
        self._set(State.RESTARTING)  # calls that come from here on wait for the next engine
        return await engine.reap()

    async def _watch(self, engine: EngineProcess) -> None:
        late = False
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if self._seen.late() and not late:
                late = True  # what has arrived meanwhile is read first
                continue
            late = False
            now = self._seen()
            silence, lived = now - self._last_sign, now - self._began
            if self.state in (State.STARTING, State.WARMING):
                if lived > STALLED_SECONDS:
                    self._set(State.STARTING)  # not shortly, as it turns out
                stuck = lived > START_SECONDS
            else:
                stalled = silence > STALLED_SECONDS or self.step_age > STALLED_SECONDS
                self._set(State.STALLED if stalled else State.READY)
                stuck = silence > SILENT_SECONDS or self.step_age > STUCK_SECONDS or self._stuck >= MOST_STUCK
            if stuck and self.state is not State.STOPPED:
                log.error(
                    "the engine is stuck and is killed",
                    silent_s=round(silence, 3),
                    step_age_s=round(self.step_age, 3),
                    threads=self._stuck,
                )
                engine.kill()
                return

    def _on_event(self, event: ipc.Event) -> None:
        self._last_sign = self._seen()
        kind = event.WhichOneof("body")
        if kind == "heartbeat":
            self._step_age = seconds(event.heartbeat.step_age) if event.heartbeat.HasField("step_age") else 0.0
            self._stuck = event.heartbeat.stuck
        elif kind == "snapshot":
            self.snapshot = event.snapshot
            self.on_snapshot(event.snapshot)
        elif kind == "hello":
            self.hello = event.hello
            if not event.hello.warming:
                self._set(State.READY)
                self._recall()
                self._send_unsent()
            elif not self.restarts and self._seen() - self._began <= STALLED_SECONDS:
                self._set(State.WARMING)  # one that died, or is slow, has to show first that it takes work
        elif (call := self._calls.get(event.call_id)) is not None:
            call.push(event)

    def _fail_calls(self, status: int | None, lived: float, pause: float) -> None:
        """Fail what was running. What was not sent yet waits for the next engine, unless that will take long."""
        running = [call for call_id, call in self._calls.items() if call_id not in self._unsent and not call.over]
        log.error("the engine died", status=status, lived_s=round(lived, 3), calls=len(running), retry_in_s=pause)
        self.snapshot = _without_engine_state(self.snapshot)
        if self._stuck < MOST_STUCK:  # else it was killed for calls that have ended, and those that run are bystanders
            self.quarantine.died(Suspect.of(call.command, model) for call in running if (model := _model(call.command)))
        error = _restarted("the engine died and is restarted", pause)
        if pause > PATIENCE_SECONDS:
            self._fail_open(error)
        for call in running:
            call.fail(error)
        self._calls = dict(self._unsent)

    def _fail_open(self, error: SidecarError) -> None:
        for call in self._calls.values():
            call.fail(error)
        self._calls.clear()
        self._unsent.clear()

    def _set(self, state: State) -> None:
        if state is self.state or self.state is State.STOPPED:
            return
        self.state = state
        self._on_change(state)


def _model(command: ipc.Command) -> str:
    kind = command.WhichOneof("body")
    return str(getattr(command, kind).model) if kind in ("load", "generate") else ""


def _restarted(what: str, retry_after: float) -> SidecarError:
    return SidecarError(Reason.ENGINE_RESTARTED, f"{what}; try again shortly", retry_after=retry_after)


def _without_engine_state(snapshot: pb.StatsResponse) -> pb.StatsResponse:
    """Return the figures that outlive an engine: budgets. What was in its memory is gone."""
    kept = pb.StatsResponse()
    kept.model_cache.max_models = snapshot.model_cache.max_models
    kept.model_cache.budget_bytes = snapshot.model_cache.budget_bytes
    kept.prefix_cache.max_blocks = snapshot.prefix_cache.max_blocks
    kept.prefix_cache.block_tokens = snapshot.prefix_cache.block_tokens
    kept.prefix_cache.budget_bytes = snapshot.prefix_cache.budget_bytes
    kept.memory.limit_bytes = snapshot.memory.limit_bytes
    kept.memory.headroom_bytes = snapshot.memory.limit_bytes
    return kept
