"""Fixtures of all tests: short folders, and daemons that end with their test."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from daemon.shared.process_setup import limits_kept
from mlx_sidecar import Client
from tests.support.daemons import SERVE, RunningDaemon

with limits_kept():  # processes that tests start inherit the limit of open files, and mlx-lm lowers it for good
    import mlx_lm.utils  # noqa: F401

# What a shell starts in the background ignores Ctrl-C and quits, and so would every program that a test ends that way.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# No deadlines: machines are shared. A failure prints what reproduces it.
settings.register_profile("project", deadline=None, print_blob=True)
settings.load_profile("project")


LONG = (
    "tests/unit/engine/test_neighbours.py",
    "tests/integration/test_benchmarks.py",
    "tests/unit/engine/test_reuse_matrix.py",
    "tests/integration/test_budget.py",
    "tests/unit/engine/test_billing_table.py",
    "tests/attacks/test_common_beginnings.py",
    "tests/integration/test_lifecycle.py",
    "tests/faults/test_fail_nth.py",
    "tests/attacks/test_silence.py",
    "tests/integration/test_disk_restart.py",
)
"""Files that take a minute or more. They begin first, or the last of them would run alone at the end."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """
    Leave modules and tests out of garbage collections, which go through hundreds of thousands of objects else.

    Many tests collect garbage before they count bytes or objects.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Put the files in the order in which the processes of `make test` take them: long ones, then those with many tests.

    pytest-xdist's own order, by the number of tests alone, leaves long files with few tests for the end.
    """
    files = [item.nodeid.partition("::")[0] for item in items]
    counts = Counter(files)
    places = {file: place for place, file in enumerate(LONG)}
    order = {file: (places.get(file, len(LONG)), -count, file) for file, count in counts.items()}
    items.sort(key=lambda item: order[item.nodeid.partition("::")[0]])


@contextmanager
def short_folder() -> Iterator[Path]:
    """Make a directory whose path is short enough for a socket below it."""
    path = Path(tempfile.mkdtemp(prefix="mlxs-", dir=os.path.realpath("/tmp")))
    yield path
    shutil.rmtree(path)


@pytest.fixture(name="folder")
def _folder() -> Iterator[Path]:
    """Return a short folder."""
    with short_folder() as path:
        yield path


@pytest.fixture(name="daemon", scope="session")
def _daemon() -> Iterator[RunningDaemon]:
    """Return a daemon with the real engine, shared by all tests. Use a salt of your own where reuse matters."""
    path = Path(tempfile.mkdtemp(prefix="mlxs-", dir=os.path.realpath("/tmp")))
    daemon = RunningDaemon.start(path, SERVE)
    yield daemon
    assert daemon.stop() == 0
    shutil.rmtree(path)


@pytest.fixture(name="client")
def _client(daemon: RunningDaemon) -> Iterator[Client]:
    """Return a client of the shared daemon."""
    with daemon.client() as client:
        yield client


@pytest.fixture(name="start_daemon")
def _start_daemon(folder: Path) -> Iterator[Callable[..., RunningDaemon]]:
    """Return a function that starts a daemon of the test's own, with the configuration keys given."""
    started: list[RunningDaemon] = []

    def start(command: list[str] | None = None, **settings: str) -> RunningDaemon:
        daemon = RunningDaemon.start(folder, command, **settings)
        started.append(daemon)
        return daemon

    yield start
    for daemon in started:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.wait()
