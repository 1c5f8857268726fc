"""Which process made a call: what its metadata says, if the kernel confirms it, or the only one that is left."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from daemon.server.callers import (
    FRESH_SECONDS,
    METADATA_KEY,
    MOST_REMEMBERED,
    MOST_SHOWN,
    PATIENCE,
    UNKNOWN,
    Caller,
    Callers,
)
from daemon.shared.durations import seconds


@dataclass
class Rig:
    """Callers of a socket with the connections that a test says. A look at them takes a second."""

    connected: dict[int, str] = field(default_factory=dict)
    now: float = 100.0
    looks: int = 0

    def __post_init__(self) -> None:
        self.callers = Callers(self._look, lambda: self.now)

    def _look(self) -> dict[int, str]:
        self.looks += 1
        self.now += 1.0
        return dict(self.connected)

    def call(self, named: object = None, *, wait: float = PATIENCE) -> Caller:
        """Return the caller of a call that names a process, or none, some time after the one before."""
        self.now += wait
        metadata = [("user-agent", "grpc"), *([(METADATA_KEY, str(named))] if named is not None else [])]
        return self.callers.arrived(metadata)


def test_named_process_is_the_caller() -> None:
    rig = Rig({7: "code", 8: "node"})
    assert rig.call(7) == Caller(7, "code", declared=True)
    assert rig.call(8) == Caller(8, "node", declared=True)


@pytest.mark.parametrize("named", [9, 0, -7, "7 ", "seven", "7" * 5000])
def test_process_without_a_connection_is_unknown(named: object) -> None:
    """Whatever the call says."""
    assert Rig({7: "code"}).call(named) == UNKNOWN


def test_only_connected_process_needs_no_name() -> None:
    """No other can have made the call."""
    rig = Rig({7: "node"})
    assert rig.call() == Caller(7, "node")
    rig.connected[8] = "go"
    assert rig.call() == UNKNOWN


def test_processes_that_name_themselves_make_no_unnamed_calls() -> None:
    """So that the only other process is the caller, until there are two."""
    rig = Rig({7: "code", 8: "node"})
    assert rig.call() == UNKNOWN
    rig.call(7)
    assert rig.call() == Caller(8, "node")
    rig.connected = {9: "go", 7: "a new process with the old id"}
    rig.call(9)
    del rig.connected[7]
    rig.call()
    rig.connected[7] = "a new process with the old id"
    assert rig.call().pid == 7, "what the old process did is forgotten with its connection"


def test_connections_are_looked_at_seldom() -> None:
    """While a process that was connected calls, and after a look that took long: it is the event loop's time."""
    rig = Rig({7: "code"})
    rig.call(7)
    for _ in range(10):
        assert rig.call(7, wait=FRESH_SECONDS / 20).pid == 7
    assert rig.looks == 1
    del rig.connected[7]
    assert rig.call(7, wait=FRESH_SECONDS) == UNKNOWN
    looks = rig.looks
    for number in range(100):
        rig.call(number + 1000, wait=PATIENCE / 1000)
    assert rig.looks == looks


def test_figures_show_busy_processes_first() -> None:
    """Then those that called last; and how long ago that was."""
    rig = Rig({7: "code", 8: "node", 9: "go"})
    first = rig.call(7)
    rig.call(8)
    rig.call(9)
    rig.call(8)
    rig.now += 10
    shown = rig.callers.figures([(first, True), (first, False), (first, False)])
    assert [(one.pid, one.waiting, one.running, one.calls) for one in shown] == [
        (7, 1, 2, 1),
        (8, 0, 0, 2),
        (9, 0, 0, 1),
    ]
    assert seconds(shown[1].last_call) == 10
    assert shown[0].declared


def test_unknown_processes_share_one_figure() -> None:
    rig = Rig({7: "node", 8: "go"})
    calls = [rig.call(), rig.call(99)]
    (shown,) = rig.callers.figures([(caller, True) for caller in calls])
    assert (shown.pid, shown.program, shown.waiting, shown.calls) == (0, "", 2, 2)


def test_figures_of_callers_are_bounded() -> None:
    """A process for each call, as a shell script has it, is no leak; a call of a forgotten one is no error."""
    rig = Rig(dict.fromkeys(range(1, 1001), "curl"))
    callers = [rig.call(pid) for pid in rig.connected]
    assert len(rig.callers._records) == MOST_REMEMBERED
    assert [one.pid for one in rig.callers.figures([(callers[0], False)])] == [*range(1000, 1000 - MOST_SHOWN, -1)]
