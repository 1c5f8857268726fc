"""The programs that call: in the log, in Stats and in `top`; they cannot crowd each other out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from daemon.server.callers import METADATA_KEY
from mlx_sidecar import CallerStats, Client
from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.faults.conftest import FAKE
from tests.support.daemons import RunningDaemon, wait_until

AGENT = """#!{python}
import sys
from mlx_sidecar import Client
with Client() as client, client.generate({model!r}, "one") as stream:
    for event in stream:
        print("begun", flush=True)
        sys.stdin.read()
"""


@pytest.fixture(name="fake")
def _fake(start_daemon: Callable[..., RunningDaemon]) -> RunningDaemon:
    """Return a daemon with a fake engine, and with room for two waiting calls of one program."""
    return start_daemon(FAKE, max_queue="4", max_queue_share="50")


def script(folder: Path, model: str) -> Path:
    """Return a script that calls a model, under a name of its own."""
    path = folder / "my-agent"
    path.write_text(AGENT.format(python=sys.executable, model=model))
    path.chmod(0o700)
    return path


@pytest.fixture(name="agent")
def _agent(fake: RunningDaemon, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Return a script that holds a call open, under a name of its own."""
    with subprocess.Popen(
        [script(folder, "hold")], env=fake.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"begun\n"
        yield agent
        agent.kill()


def callers(client: Client) -> dict[int, CallerStats]:
    """Return what Stats shows of each process."""
    return {caller.pid: caller for caller in client.stats().engine.callers}


def test_stats_and_log_name_the_calling_program(fake: RunningDaemon, agent: subprocess.Popen[bytes]) -> None:
    """Both processes at once, over the same socket: the kernel and the clients' metadata tell them apart."""
    with fake.client() as client:
        client.complete("ok", "one two")
        client.complete("ok", "one two")
        seen = callers(client)
    assert set(seen) == {agent.pid, os.getpid()}
    assert (seen[agent.pid].program, seen[agent.pid].running, seen[agent.pid].calls) == ("my-agent", 1, 1)
    assert (seen[os.getpid()].running, seen[os.getpid()].calls, seen[os.getpid()].declared) == (0, 2, True)
    agent.kill()
    agent.wait()
    lines = [line for line in fake.log() if line["event"] == "rpc"]
    assert {(line["caller_pid"], line["caller"]) for line in lines} >= {(os.getpid(), seen[os.getpid()].program)}
    wait_until(lambda: agent.pid in [line.get("caller_pid") for line in fake.log()], "the killed call has its line")


def test_any_grpc_client_is_known_while_it_is_alone(fake: RunningDaemon) -> None:
    """Without a word of metadata; beside another one, it has to name itself, and cannot name a stranger."""
    with grpc.insecure_channel(f"unix:{fake.socket}") as channel:
        stub = SidecarServiceStub(channel)
        list(stub.Generate(pb.GenerateRequest(model="ok", text="x"), wait_for_ready=True))
        list(stub.Generate(pb.GenerateRequest(model="ok", text="x"), metadata=[(METADATA_KEY, "1")]))
        shown = {caller.pid: caller for caller in stub.Stats(pb.StatsRequest()).engine.callers}
    assert set(shown) == {os.getpid(), 0}
    assert (shown[os.getpid()].declared, shown[os.getpid()].calls, shown[0].calls) == (False, 1, 1)


def test_program_fills_no_more_than_its_share(fake: RunningDaemon, folder: Path) -> None:
    """Two of four places; another program gets one of the others. A raw stub does not try again by itself."""
    request = pb.GenerateRequest(model="hold-waiting", text="one")
    with fake.client() as client, grpc.insecure_channel(f"unix:{fake.socket}") as channel:
        stub = SidecarServiceStub(channel)
        calls = [stub.Generate(request, wait_for_ready=True) for _ in range(2)]
        wait_until(lambda: client.stats().engine.queued == 2, "both wait")
        with pytest.raises(grpc.RpcError, match="max_queue_share"):
            list(stub.Generate(request))
        done = subprocess.run(
            [script(folder, "ok")], env=fake.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        for call in calls:
            call.cancel()
