"""`mlx-sidecar doctor` about the daemon that runs: its engine, its HTTP door, its group, and work that hangs."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from daemon import __version__
from daemon.doctor import trial
from daemon.doctor.finding import Verdict
from mlx_sidecar import HttpStats, StuckWork
from tests.unit.cli.cli_fakes import STATS


@pytest.mark.parametrize(
    ("state", "restarts", "step_age", "verdict", "found"),
    [
        ("ready", 0, 0.0, Verdict.OK, "pid 78, ready, never restarted"),
        ("ready", 1, 0.0, Verdict.WARNING, "pid 78, ready, restarted once"),
        ("stalled", 0, 0.0, Verdict.FAILED, "pid 78 is stalled: no sign of life; restarted 0 times"),
        ("stalled", 2, 7.4, Verdict.FAILED, "pid 78 is stalled: a step of 7 s; restarted 2 times"),
        ("starting", 0, 0.0, Verdict.WARNING, "it is starting; restarted 0 times"),
        ("restarting", 3, 0.0, Verdict.FAILED, "it is restarting; restarted 3 times"),
    ],
)
def test_doctor_reports_a_hanging_or_dead_engine(
    state: str, restarts: int, step_age: float, verdict: Verdict, found: str
) -> None:
    """A hanging or dead engine is reported before the trial starts."""
    finding = trial.engine(replace(STATS.engine, state=state, restarts=restarts, step_age=step_age))
    assert (finding.verdict, finding.found) == (verdict, found)


def test_doctor_tells_of_the_door_the_group_and_work_that_hangs() -> None:
    """Only what the daemon has: none of them is a fault of one that has none."""
    assert [found.found for found in trial.beside_the_engine(STATS)] == ["it serves at 127.0.0.1:8080"]
    daemon = replace(STATS.daemon, http=HttpStats("restarting", "", 0, 3))
    hanging = replace(STATS.engine, stuck=(StuckWork("read", "org/name", 90.0),))
    group = replace(STATS.group, problem="10.0.0.2 does not answer")
    found = [*trial.beside_the_engine(replace(STATS, daemon=daemon, engine=hanging, group=group))]
    assert [(each.check, each.verdict) for each in found] == [
        ("background work", Verdict.FAILED),
        ("http", Verdict.FAILED),
        ("group", Verdict.FAILED),
    ]
    assert [each.found for each in found] == [
        "read for org/name has given no sign of life for 90 s",
        "it is restarting; started again 3 times",
        "10.0.0.2 does not answer",
    ]
    off = replace(STATS, daemon=replace(STATS.daemon, http=HttpStats("off")))
    assert not [*trial.beside_the_engine(off)]


@pytest.mark.parametrize(
    ("version", "before", "found"),
    [
        (__version__, 0.0, f"version {__version__}"),
        (__version__, 60.0, f"version {__version__}, started before this installation of it"),
        ("9.9", 0.0, f"version 9.9; this is {__version__}"),
    ],
)
def test_doctor_reports_daemon_of_older_files(version: str, before: float, found: str) -> None:
    """Of another version, or with other code of the same one: what was installed since waits for a restart."""
    running = replace(STATS.daemon, version=version, uptime=30.0 + before)
    finding = trial.same_program(running, lambda: time.time() - 60.0)
    assert finding.found == found
    assert (finding.verdict is Verdict.OK) == (finding.fix == "") == (found == f"version {__version__}")
