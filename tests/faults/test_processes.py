"""Rows 54 to 63 of the fault table that other tests do not cover: processes, signals, files, clocks."""

from __future__ import annotations

import ast
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

import mlx_sidecar
from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.faults.conftest import FAKE
from tests.faults.watch import answers_in_time, ask
from tests.support.daemons import RunningDaemon, alive, wait_until

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., RunningDaemon]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGKILL])
def test_engine_killed_by_any_signal_is_replaced(start_daemon: Start, number: signal.Signals) -> None:
    """Row 54: its call is told, the socket stays, the next one is served, no core file is left."""
    daemon = start_daemon(FAKE)
    with daemon.client() as client, client.generate("hold", "one") as stream:
        events = iter(stream)
        next(events)
        engine = daemon.engine_pid()
        os.kill(engine, number)
        with pytest.raises(mlx_sidecar.EngineRestarted) as caught:
            list(events)
        assert caught.value.retry_after
        answers_in_time(daemon)
        assert client.complete("ok", "two").text == "two"
    assert not alive(engine)
    assert not list(daemon.folder.rglob("core*"))
    assert daemon.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGPIPE, signal.SIGHUP])
def test_unrelated_signals_are_ignored(start_daemon: Start, number: signal.Signals) -> None:
    """Row 57: a pipe that breaks; a hangup opens the log file anew."""
    daemon = start_daemon(FAKE)
    with daemon.client() as client:
        client.load("ok")
        daemon.signal(number)
        assert client.complete("ok", "one").text == "one"
    assert daemon.stop() == 0


HUNG_DISK = """
import runpy, threading
from daemon.kv.disk.note import Note

def write(note):
    (note._place / "reached").touch()
    threading.Event().wait()

Note.write = write
runpy.run_module("tests.support.serve_fake", run_name="__main__")
"""
"""A daemon whose parent waits for ever when it notes an invalidation on the disk."""


def test_daemon_ends_while_its_own_disk_hangs(start_daemon: Start, folder: Path) -> None:
    """Row 57: the parent does not wait for its thread, as the engine waits for none of its own."""
    (folder / "kv" / "group").mkdir(parents=True)
    daemon = start_daemon([sys.executable, "-c", HUNG_DISK]).serving()
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        request = pb.InvalidateRequest(all=pb.AllTarget(prefixes=True))
        asked = SidecarServiceStub(channel).Invalidate.future(request)
        wait_until((folder / "reached").exists, "the parent waits for the disk")
        assert daemon.stop() == 0
        assert isinstance(asked.exception(), grpc.RpcError)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_is_heard_while_a_model_loads(start_daemon: Start, number: signal.Signals) -> None:
    """Row 57: once to drain, twice to end at once; nothing is left."""
    daemon = start_daemon(FAKE)
    with daemon.client() as client, client.get_or_load("hold") as load:
        next(iter(load))
        engine = daemon.engine_pid()
        daemon.signal(number)
        wait_until(lambda: ask(daemon).daemon.draining, "it drains")
        daemon.signal(number)
        with pytest.raises(mlx_sidecar.SidecarError):
            list(load)
    assert daemon.wait() == 0
    assert not daemon.socket.exists()
    assert not alive(engine)


def test_sigquit_ends_at_once_without_a_core_file(start_daemon: Start) -> None:
    """Row 57: as on any program, but for the core file; the engine goes too, and the next daemon starts."""
    daemon = start_daemon(FAKE)
    engine = daemon.engine_pid()
    daemon.signal(signal.SIGQUIT)
    assert daemon.wait() == -signal.SIGQUIT
    assert not list(daemon.folder.rglob("core*"))
    wait_until(lambda: not alive(engine), "engine_stopped")
    again = start_daemon(FAKE)
    assert ask(again).daemon.pid == again.process.pid
    assert again.stop() == 0


def test_daemon_serves_without_a_writable_log(start_daemon: Start, folder: Path) -> None:
    """Row 58: the directory of the log is a file."""
    (folder / "blocked").write_text("")
    daemon = start_daemon(FAKE, log_file=str(folder / "blocked" / "daemon.log"))
    with daemon.client() as client:
        assert client.complete("ok", "one").text == "one"
    assert daemon.stop() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_daemon_serves_with_a_full_log_disk(start_daemon: Start) -> None:
    """Row 58: every line is refused with ENOSPC."""
    daemon = start_daemon(FAKE, log_file="/dev/full")
    with daemon.client() as client:
        assert client.complete("ok", "one").text == "one"
    assert daemon.stop() == 0


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="reads a process's limits from /proc")
def test_no_process_may_write_a_core_file(start_daemon: Start) -> None:
    """Neither the parent nor the engine: both hold prompts."""
    daemon = start_daemon()
    with daemon.client() as client:
        client.complete("embedded", "The", max_tokens=1)
    for pid in (daemon.process.pid, daemon.engine_pid()):
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits)
    assert daemon.stop() == 0


def test_no_part_of_the_daemon_forks() -> None:
    """Row 63: processes are spawned, with descriptors that are inherited by their own flag, and never forked."""
    for path in (ROOT / "daemon").rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not names & {"fork", "forkpty", "ProcessPoolExecutor"}, path
        assert not any(module.startswith("multiprocessing") for module in modules), path
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "preexec_fn":
                raise AssertionError(f"{path} would fork")


def test_daemon_itself_lowers_the_core_file_limit() -> None:
    """Or the test above would prove nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        pytest.skip("this machine allows no core files at all")
    assert (soft, hard) != (0, 0)
