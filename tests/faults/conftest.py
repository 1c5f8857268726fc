"""Fixtures of the fault table: daemons that are checked after each fault."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.watch import Held, answers_in_time, back_to
from tests.support.daemons import RunningDaemon, environment

FAKE = [sys.executable, "-m", "tests.support.serve_fake"]


@pytest.fixture(name="fake", scope="session")
def _fake() -> Iterator[RunningDaemon]:
    """Return a daemon with a fake engine, which acts by the model's name; shared by the faults that leave it alive."""
    folder = Path(tempfile.mkdtemp(prefix="mlxs-", dir="/tmp"))
    daemon = RunningDaemon.start(folder, FAKE, test_journal=str(folder / "journal"))
    yield daemon
    assert daemon.stop() == 0
    shutil.rmtree(folder)


@pytest.fixture(name="target")
def _target(fake: RunningDaemon) -> Iterator[RunningDaemon]:
    """Return that daemon, and check afterwards that it is as it was and answers in time."""
    with fake.client() as client:
        client.complete("ok", "one two")
    before = Held.by(fake)
    yield fake
    assert fake.process.poll() is None
    answers_in_time(fake)
    with fake.client() as client:
        assert client.complete("ok", "one two").text == "one two"
    back_to(before, fake)


@pytest.fixture(name="real")
def _real(daemon: RunningDaemon) -> Iterator[RunningDaemon]:
    """Return the shared daemon with the real engine, and check afterwards that the same one is as it was."""
    with daemon.client() as client:
        client.complete("embedded", "The", max_tokens=2)
        engine = client.stats().engine
    before = Held.by(daemon)
    yield daemon
    answers_in_time(daemon)
    with daemon.client() as client:
        assert client.complete("embedded", "The", max_tokens=2).usage.completion_tokens == 2
        after = client.stats().engine
    assert (after.pid, after.restarts) == (engine.pid, engine.restarts)
    back_to(before, daemon)


@pytest.fixture(name="surroundings")
def _surroundings(folder: Path) -> dict[str, str]:
    """Return the environment of a daemon in the test's own folder."""
    return environment(folder)
