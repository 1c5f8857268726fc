"""Stats: the engine's last snapshot, and what the parent knows better."""

from __future__ import annotations

import os
from collections.abc import Callable

from daemon import __version__
from daemon.admission import Admission
from daemon.durations import duration
from daemon.history import History
from daemon.latency import Latency
from daemon.supervisor import State, Supervisor
from mlx_sidecar.v1 import sidecar_pb2 as pb

_STATES = {
    State.STARTING: pb.ENGINE_STATE_STARTING,
    State.WARMING: pb.ENGINE_STATE_STARTING,
    State.READY: pb.ENGINE_STATE_READY,
    State.STALLED: pb.ENGINE_STATE_STALLED,
    State.RESTARTING: pb.ENGINE_STATE_RESTARTING,
    State.STOPPED: pb.ENGINE_STATE_STOPPED,
}


class Stats:
    """
    Answers Stats without asking the engine.

    Args:
        supervisor: Knows the engine and its last snapshot.
        admission: Knows what waits and what was refused.
        clock: Seconds that never go back.

    Attributes:
        cancelled: Calls that their client cancelled.
        draining: Whether the daemon finishes its last streams.
        latency: How long requests took; the servicer adds to it.
        history: What the figures were; the supervisor's snapshots go into it.
    """

    def __init__(self, supervisor: Supervisor, admission: Admission, clock: Callable[[], float]) -> None:
        self.cancelled = 0
        self.draining = False
        self.latency = Latency()
        self.history = History(clock)
        supervisor.on_snapshot = self.history.note
        self._supervisor = supervisor
        self._admission = admission
        self._clock = clock
        self._began = clock()

    def response(self, request: pb.StatsRequest) -> pb.StatsResponse:
        """Return the state of the daemon now, as far as it was asked for."""
        supervisor = self._supervisor
        answer = pb.StatsResponse()
        answer.CopyFrom(supervisor.snapshot)
        answer.daemon.CopyFrom(
            pb.DaemonStats(
                version=__version__,
                pid=os.getpid(),
                uptime=duration(self._clock() - self._began),
                draining=self.draining,
                mlx_version=supervisor.hello.mlx_version,
                mlx_lm_version=supervisor.hello.mlx_lm_version,
                device=supervisor.hello.device,
            )
        )
        engine = answer.engine
        engine.state = _STATES[supervisor.state]
        engine.pid = supervisor.pid
        engine.restarts = supervisor.restarts
        engine.step_age.CopyFrom(duration(supervisor.step_age))
        engine.queued = self._admission.waiting
        engine.rejected = self._admission.rejected
        engine.cancelled = self.cancelled
        answer.latency.CopyFrom(self.latency.message())
        if request.include_history:
            answer.history.extend(self.history.samples())
        return answer
