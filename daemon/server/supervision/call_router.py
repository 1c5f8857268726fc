"""
Carries calls from the servicer to whichever engine process takes calls, and its answers back.

A call outlives the wait for an engine, but not the engine that it was sent to:

      open ----> UNSENT ----> SENT ----> over: the engine has sent its last event
                   |            |
                   |            +------> the engine died: ENGINE_RESTARTED, and a note for the quarantine
                   +-------------------> the next start is more than 5 s away: ENGINE_RESTARTED

Calls are unsent while no engine is connected. `connect` first tells the new engine about the pins, times to live,
revisions and context lengths that callers chose, then sends the calls that wait. So a call that waits for a new engine
finds its model as the callers before it wanted it.

The router knows nothing about processes. The supervisor tells it when an engine takes calls (`connect`), has closed its
socket (`disconnect`) or is dead (`engine_died`), and when no engine will come any more (`close`).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from daemon.server.admission import shutting_down
from daemon.server.supervision.engine_call import EngineCall
from daemon.server.supervision.quarantine import Quarantine, Suspect
from daemon.shared.errors import RETRY_SECONDS, Reason, SidecarError
from daemon.shared.model_overrides import ModelOverrides
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb

LONGEST_WAIT_SECONDS = 5.0
"""Calls wait for the next engine if it starts within so long. If not, their callers are told when to come back."""

Send = Callable[[ipc.Command], None]


class CallRouter:
    """
    Opens calls and delivers events to them. All methods run on the event loop.

    Args:
        clock: Seconds that never go back.
        on_snapshot: Called with each snapshot of figures that an engine sends.

    Attributes:
        snapshot: The latest figures; after an engine died, those that outlive it.
        quarantine: Requests and models that were running when engines died.
        problem: Why there is no engine and none will come at once; empty if that is not known.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        on_snapshot: Callable[[pb.StatsResponse], None] = lambda _: None,
    ) -> None:
        self.snapshot = pb.StatsResponse()
        self.problem = ""
        self.quarantine = Quarantine(clock)
        self._overrides = ModelOverrides()
        self._clock = clock
        self._on_snapshot = on_snapshot
        self._send: Send | None = None
        """Sends a command to the engine that takes calls; None while there is none."""
        self._calls: dict[int, EngineCall] = {}
        """Calls that were not closed, by id. Those in `_unsent` are among them."""
        self._unsent: dict[int, EngineCall] = {}
        self._ids = count(1)
        self._next_start = 0.0
        """When the next engine is started after a death, by the clock."""
        self._closed = False
        self._abandoned = False
        """Whether `problem` is that of an engine that was killed and has not ended."""

    def open(self, command: ipc.Command) -> EngineCall:
        """
        Open a call. It is sent as soon as an engine takes calls. Close it when done.

        Args:
            command: The command that opens the call; `call_id` is filled in.

        Raises:
            SidecarError: ENGINE_RESTARTED if the next engine is started too late to wait for it; MODEL_QUARANTINED or
                REQUEST_QUARANTINED; SHUTTING_DOWN after `close`.
        """
        if self._closed:
            raise shutting_down()
        self._check_quarantine(command)
        wait = self._next_start - self._clock()
        if self.problem:
            raise _restarted(self.problem, max(wait, RETRY_SECONDS))
        if wait > LONGEST_WAIT_SECONDS:
            raise _restarted("the engine keeps dying", wait)
        command.call_id = next(self._ids)
        call = EngineCall(command, self._close, self._hold, self._clock())
        if self._send is not None:
            self._send(command)
        else:
            self._unsent[command.call_id] = call
        # Entered only now: a call that could not be sent reaches no caller that could close it.
        self._calls[command.call_id] = call
        return call

    def connect(self, send: Send) -> None:
        """Send what waits to a new engine, and from now on each call at once."""
        self._send = send
        self.problem = ""
        for command in self._overrides.recalls():
            send(command)
        now = self._clock()
        for call in self._unsent.values():
            call.waited = now - call.opened
            send(call.command)
        self._unsent.clear()

    def unavailable(self, problem: str) -> None:
        """Tell callers, until the next engine takes calls, that there is none and why; nothing if that is empty."""
        self.problem = problem

    def disconnect(self) -> None:
        """Let calls wait for the next engine. Calls that were sent may still be failed by `engine_died`."""
        self._send = None

    def abandon(self, problem: str, *, blame_calls: bool) -> None:
        """
        Fail all calls: the engine that has them was killed, and does not end. Others are refused until it does.

        Args:
            problem: What callers are told.
            blame_calls: Whether that counts against the requests and models that were running.
        """
        if blame_calls:
            self._blame(self._running())
        self.disconnect()
        self.problem, self._abandoned = problem, True
        self._fail_all(_restarted(problem, RETRY_SECONDS))

    def deliver(self, event: ipc.Event) -> None:
        """Hand an event of the engine to its call. An event of a call that was closed is dropped."""
        if (call := self._calls.get(event.call_id)) is not None:
            call.push(event)
            if call.over:
                self._note_answer(call.command, event)

    def note_snapshot(self, snapshot: pb.StatsResponse) -> None:
        """Keep the engine's latest figures."""
        self.snapshot = snapshot
        self._on_snapshot(snapshot)

    def engine_died(self, next_start_in: float, *, blame_calls: bool) -> int:
        """
        Fail the calls that were running. Unsent calls wait for the next engine, unless that takes too long.

        Args:
            next_start_in: Seconds until the next engine is started.
            blame_calls: Whether the death counts against the requests and models that were running.

        Returns:
            How many calls were running.
        """
        self.disconnect()
        if self._abandoned:
            self.problem, self._abandoned = "", False
        self._next_start = self._clock() + next_start_in
        self.snapshot = _without_engine_state(self.snapshot)
        running = self._running()
        if blame_calls and not self.problem:
            self._blame(running)
        error = _restarted(self.problem or "the engine died and is restarted", next_start_in)
        if self.problem or next_start_in > LONGEST_WAIT_SECONDS:
            self._fail_all(error)
        for call in running:
            call.fail(error)
        self._calls = dict(self._unsent)
        return len(running)

    def close(self) -> None:
        """Refuse calls from now on, and fail those that are open."""
        self._closed = True
        self._fail_all(shutting_down())

    def _running(self) -> list[EngineCall]:
        """Return the calls that the engine has and has not answered."""
        return [call for call_id, call in self._calls.items() if call_id not in self._unsent and not call.over]

    def _blame(self, running: list[EngineCall]) -> None:
        self.quarantine.died(Suspect.of(call.command, model) for call in running if (model := _model(call.command)))

    def _check_quarantine(self, command: ipc.Command) -> None:
        """Raise an error for a call that is in quarantine. An Invalidate call lifts the quarantine of its models."""
        if command.HasField("invalidate"):
            request = command.invalidate
            target = request.WhichOneof("target")
            if target != "prefix" and not request.dry_run:
                self.quarantine.lift(request.model.model if target == "model" else None)
        # Without recent deaths no digest is computed: for a request of megabytes it takes a while.
        elif self.quarantine.knows and (model := _model(command)):
            self.quarantine.check(Suspect.of(command, model))

    def _note_answer(self, command: ipc.Command, event: ipc.Event) -> None:
        """Remember, for the engines to come, what a call has changed about its model."""
        if event.HasField("load"):
            ready = event.load.ready
            if ready.outcome != pb.LOAD_OUTCOME_ESTIMATED:
                self._overrides.apply(command, [ready.model])
        elif event.HasField("invalidate"):
            self._overrides.apply(command, event.invalidate.models)

    def _close(self, call: EngineCall) -> None:
        call_id = call.command.call_id
        unsent = self._unsent.pop(call_id, None)
        known = self._calls.pop(call_id, None)
        if known and not unsent and not call.over and self._send is not None:
            self._send(ipc.Command(call_id=call_id, cancel=ipc.Cancel()))

    def _hold(self, call: EngineCall, held: bool) -> None:
        if call.command.call_id in self._calls and self._send is not None:
            self._send(ipc.Command(call_id=call.command.call_id, hold=ipc.Hold(held=held)))

    def _fail_all(self, error: SidecarError) -> None:
        for call in self._calls.values():
            call.fail(error)
        self._calls.clear()
        self._unsent.clear()


def _model(command: ipc.Command) -> str:
    """Return the name of the model that a call runs; empty if it runs none."""
    kind = command.WhichOneof("body")
    return str(getattr(command, kind).model) if kind in ("load", "generate", "embed", "tokenize") else ""


def _restarted(what: str, retry_after: float) -> SidecarError:
    return SidecarError(Reason.ENGINE_RESTARTED, f"{what}; try again shortly", retry_after=retry_after)


def _without_engine_state(snapshot: pb.StatsResponse) -> pb.StatsResponse:
    """Return the figures that outlive an engine: its limits. The content of its memory is gone."""
    kept = pb.StatsResponse()
    kept.model_cache.max_models = snapshot.model_cache.max_models
    kept.model_cache.budget_bytes = snapshot.model_cache.budget_bytes
    kept.prefix_cache.max_blocks = snapshot.prefix_cache.max_blocks
    kept.prefix_cache.block_tokens = snapshot.prefix_cache.block_tokens
    kept.prefix_cache.budget_bytes = snapshot.prefix_cache.budget_bytes
    kept.prefix_cache.kept_budget_bytes = snapshot.prefix_cache.kept_budget_bytes
    kept.prefix_cache.most_bytes = snapshot.prefix_cache.most_bytes
    kept.memory.limit_bytes = snapshot.memory.limit_bytes
    kept.memory.headroom_bytes = snapshot.memory.limit_bytes
    return kept
