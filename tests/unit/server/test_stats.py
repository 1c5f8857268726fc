"""Stats: the engine's latest figures with the parent's own, also while there is no engine."""

from __future__ import annotations

from collections.abc import Callable

from daemon import __version__
from daemon.server.admission import Admission
from daemon.server.callers import Callers
from daemon.server.stats import History, Stats
from daemon.server.supervision.call_router import CallRouter
from daemon.server.supervision.supervisor import State, Supervisor
from daemon.shared.durations import duration, seconds
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb


class Rig:
    """Statistics of a daemon without an engine, and all that they are read from."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.admission = Admission(1)
        self.callers = Callers(lambda: {7: "code"}, clock)
        self.router = CallRouter(clock)
        self.supervisor = Supervisor(["engine"], clock, self.router)
        history = History(clock, self.admission)
        self.stats = Stats(self.supervisor, self.router, self.admission, self.callers, history, clock)


def test_stats_answer_before_the_engine_is_up() -> None:
    """Of zeros, and of the parent's own figures."""
    now = 100.0
    stats = Rig(lambda: now).stats
    now = 107.5
    answer = stats.response(pb.StatsRequest())
    assert (answer.daemon.version, answer.daemon.draining, answer.daemon.device) == (__version__, False, "")
    assert seconds(answer.daemon.uptime) == 7.5
    assert (answer.engine.state, answer.engine.pid) == (pb.ENGINE_STATE_STARTING, 0)
    assert seconds(answer.engine.step_age) == 0


def test_parent_stats_override_the_engines() -> None:
    """The snapshot itself stays as it came."""
    rig = Rig()
    stats, supervisor, admission = rig.stats, rig.supervisor, rig.admission
    rig.router.snapshot = pb.StatsResponse(engine=pb.EngineStats(decoding=3, generated_tokens=9, queued=99))
    supervisor.hello = ipc.Hello(mlx_version="1", mlx_lm_version="2", device="cpu")
    supervisor.state, supervisor.restarts = State.STALLED, 4
    stats.cancelled, stats.draining, admission.rejected = 5, True, 6
    with admission.admit():
        answer = stats.response(pb.StatsRequest())
    engine = answer.engine
    assert (engine.state, engine.restarts, engine.cancelled, engine.rejected) == (pb.ENGINE_STATE_STALLED, 4, 5, 6)
    assert (engine.queued, engine.decoding, engine.generated_tokens) == (1, 3, 9)
    assert (answer.daemon.mlx_version, answer.daemon.mlx_lm_version, answer.daemon.device) == ("1", "2", "cpu")
    assert answer.daemon.draining
    assert rig.router.snapshot.engine.queued == 99


def test_every_supervisor_state_has_an_api_name() -> None:
    """Each state has its own name."""
    rig = Rig()
    names = set()
    for state in State:
        rig.supervisor.state = state
        names.add(rig.stats.response(pb.StatsRequest()).engine.state)
    assert names == set(pb.EngineState.values()) - {pb.ENGINE_STATE_UNSPECIFIED}


def test_durations_round_trip() -> None:
    """To the nanosecond, below zero as well."""
    assert all(seconds(duration(value)) == value for value in (0.0, 0.25, 1e6, -1.5))


def test_stats_show_the_processes_that_call() -> None:
    """With their waiting and running calls; the parent knows them, and no engine does."""
    rig = Rig()
    caller = rig.callers.arrived([])
    with rig.admission.admit(caller):
        (shown,) = rig.stats.response(pb.StatsRequest()).engine.callers
    assert (shown.pid, shown.program, shown.waiting, shown.running, shown.calls) == (7, "code", 1, 0, 1)
