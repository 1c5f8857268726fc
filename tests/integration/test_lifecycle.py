"""Starting, stopping, dying: one daemon for each socket, streams that end well, nothing left behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import mlx_sidecar
from mlx_sidecar import Delta, Finished, GenerateEvent
from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.support.daemons import RunningDaemon, alive, wait_until
from tools.embedded import corpus

PROMPT = next(corpus.held_out(seed=40, tokens_hint=200)).completion()
FAKE = [sys.executable, "-m", "tests.support.serve_fake"]

Start = Callable[..., RunningDaemon]


def refusal(daemon: RunningDaemon, model: str, on_sent: Callable[[], None] = lambda: None) -> str:
    """Return the reason for which a request fails with a time to try again; no client retries it here."""
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        call = SidecarServiceStub(channel).Generate(pb.GenerateRequest(model=model, text=PROMPT), wait_for_ready=True)
        on_sent()
        with pytest.raises(grpc.RpcError):
            list(call)
    return reason_to_come_back(call)


def reason_to_come_back(call: grpc.Call) -> str:
    """Return the reason with which a call has failed; it must tell when to try again."""
    status = rpc_status.from_call(call)
    assert status is not None, call.code()
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() > 0
    assert ("grpc-retry-pushback-ms", str(retry.retry_delay.ToMilliseconds())) in call.trailing_metadata()
    return str(info.reason)


def test_second_daemon_is_refused_and_changes_nothing(start_daemon: Start) -> None:
    """The second daemon does not even touch the log file of the first."""
    first = start_daemon(FAKE)
    with first.client() as client:
        before = client.stats().daemon.pid
        inode = first.socket.stat().st_ino
        log = (first.folder / "daemon.log").read_bytes()
        second = subprocess.run(
            [sys.executable, "-m", "daemon", "serve"], env=first.environ, capture_output=True, text=True, timeout=60
        )
        assert second.returncode == 1
        assert f"already running (pid {first.process.pid})" in second.stderr
        assert first.socket.stat().st_ino == inode
        assert client.stats().daemon.pid == before
        assert (first.folder / "daemon.log").read_bytes()[: len(log)] == log


def test_the_socket_is_private_under_any_umask(start_daemon: Start) -> None:
    """0600 in a directory of 0700, even if the shell allows everything."""
    before = os.umask(0)
    try:
        daemon = start_daemon(FAKE)
    finally:
        os.umask(before)
    with daemon.client() as client:
        client.stats()
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon.socket.parent.stat().st_mode) == 0o700


def test_a_stale_socket_does_not_stop_a_start(start_daemon: Start) -> None:
    """A daemon that was killed leaves its socket; the next one replaces it."""
    first = start_daemon(FAKE)
    with first.client() as client:
        client.stats()
    first.process.kill()
    first.wait()
    assert first.socket.exists()
    with start_daemon(FAKE).client() as client:
        assert client.stats().engine.state


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_non_socket_file_at_the_path_is_kept(folder: Path, kind: str) -> None:
    """The daemon exits with status 2 and one sentence, and the file at the path is kept."""
    run = folder / "run"
    run.mkdir(mode=0o700)
    path = run / "sidecar.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(folder / "elsewhere")
    daemon = RunningDaemon.start(folder)
    assert daemon.wait() == 2
    assert path.is_symlink() or path.exists()


def test_sigterm_lets_a_running_stream_finish(start_daemon: Start) -> None:
    """All its tokens arrive, new work is refused, the exit status is 0 and the socket is gone."""
    daemon = start_daemon()
    with daemon.client() as client, daemon.client() as late:
        client.load("embedded")
        engine = late.stats().engine.pid
        with client.generate("embedded", PROMPT, max_tokens=600, ignore_eos=True) as stream:
            events: list[GenerateEvent] = []
            for event in stream:
                events.append(event)
                if len(events) == 3:
                    daemon.signal(signal.SIGTERM)
                    wait_until(lambda: late.stats().daemon.draining, "the daemon drains")
                    assert refusal(daemon, "embedded") == "SHUTTING_DOWN"
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.completion_tokens == 600
    assert daemon.wait() == 0
    assert not daemon.socket.exists()
    assert not alive(engine)


def test_second_sigterm_stops_the_daemon_at_once(start_daemon: Start) -> None:
    """A stream that would go on is cut off and told why; the exit status is still 0."""
    daemon = start_daemon(FAKE)
    with daemon.client() as client, daemon.client() as other:
        other.stats()
        with client.generate("hold", "one two three") as stream:
            events = iter(stream)
            next(events)
            daemon.signal(signal.SIGTERM)
            wait_until(lambda: other.stats().daemon.draining, "the daemon drains")
            daemon.signal(signal.SIGTERM)
            with pytest.raises(mlx_sidecar.ShuttingDown):
                list(events)
    assert daemon.wait() == 0
    assert not daemon.socket.exists()


def test_drain_limit_cuts_off_running_streams(start_daemon: Start) -> None:
    """`drain_timeout` is how long they may go on; loads count as well. Callers learn when to come back."""
    daemon = start_daemon(FAKE, drain_timeout="0.1")
    with (
        daemon.client() as client,
        client.generate("hold", "one two three") as stream,
        client.get_or_load("hold") as load,
    ):
        events, progress = iter(stream), iter(load)
        next(events)
        next(progress)
        daemon.signal(signal.SIGTERM)
        for rest in (events, progress):
            with pytest.raises(mlx_sidecar.ShuttingDown) as caught:
                list(rest)
            assert caught.value.retry_after
    assert daemon.wait() == 0
    assert [line["code"] for line in daemon.log() if line["event"] == "rpc"].count("CANCELLED") == 0


def test_drain_drops_waiting_requests(start_daemon: Start) -> None:
    """Waiting requests fail at once with UNAVAILABLE and a retry delay."""
    daemon = start_daemon(FAKE)
    with daemon.client() as client:

        def stop() -> None:
            wait_until(lambda: client.stats().engine.queued == 1, "the request waits")
            daemon.signal(signal.SIGTERM)

        assert refusal(daemon, "hold-waiting", on_sent=stop) == "SHUTTING_DOWN"
    assert daemon.wait() == 0


def test_drain_gives_every_caller_a_retry_delay(start_daemon: Start) -> None:
    """While the engine ends, what waits for it fails and what is new is refused; gRPC's stop says CANCELLED only."""
    daemon = start_daemon(FAKE)
    with daemon.client() as client, grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        client.load("ok")
        os.kill(daemon.engine_pid(), signal.SIGSTOP)
        stub = SidecarServiceStub(channel)
        running = stub.Invalidate.future(pb.InvalidateRequest(all=pb.AllTarget(weights=True)))
        stub.Stats(pb.StatsRequest())  # what was sent before it is on its way to the engine
        daemon.signal(signal.SIGTERM)
        error = running.exception()
        assert isinstance(error, grpc.Call)
        assert reason_to_come_back(error) == "SHUTTING_DOWN"
        late = stub.Generate(pb.GenerateRequest(model="ok", text="one"))
        with pytest.raises(grpc.RpcError):
            list(late)
        assert reason_to_come_back(late) == "SHUTTING_DOWN"
    assert daemon.wait() == 0


def test_killed_engine_fails_its_streams_and_recovers(start_daemon: Start) -> None:
    """kill -9 of the real engine in the middle of a stream: the socket stays, the caller knows what happened."""
    daemon = start_daemon()
    with daemon.client() as client:
        first = client.complete("embedded", PROMPT, max_tokens=8)
        inode = daemon.socket.stat().st_ino
        engine = client.stats().engine.pid
        with client.generate("embedded", PROMPT, max_tokens=3000, ignore_eos=True) as stream:
            events = iter(stream)
            while not isinstance(next(events), Delta):
                pass
            os.kill(engine, signal.SIGKILL)
            with pytest.raises(mlx_sidecar.EngineRestarted) as caught:
                list(events)
        assert caught.value.code == "UNAVAILABLE"
        assert caught.value.retry_after
        assert daemon.socket.stat().st_ino == inode
        again = client.complete("embedded", PROMPT, max_tokens=8)
        assert (again.text, again.usage.cached_tokens) == (first.text, 0)
        after = client.stats().engine
        assert after.restarts == 1
        assert after.pid != engine
    assert daemon.stop() == 0


def test_load_choices_outlive_an_engine_restart(start_daemon: Start) -> None:
    """The next engine pins a model when it is loaded again; one whose weights were dropped meanwhile is not pinned."""
    with start_daemon().client() as client:
        client.stats()  # it listens

        def after_a_death() -> tuple[bool, int]:
            engine = client.stats().engine
            os.kill(engine.pid, signal.SIGKILL)
            wait_until(lambda: client.stats().engine.restarts > engine.restarts, "the engine is replaced")
            client.complete("embedded", "The", max_tokens=1)
            (model,) = client.stats().models
            return model.pinned, model.info.context_length

        own = client.load("embedded", estimate_only=True).context_length
        assert client.load("embedded", pin=True, context_length=64).context_length == 64
        assert after_a_death() == (True, 64)
        client.invalidate_model("embedded")
        assert after_a_death() == (False, own)


def test_stats_and_health_answer_with_a_stopped_engine(start_daemon: Start) -> None:
    """SIGSTOP looks like a hang: it is found, killed and replaced."""
    daemon = start_daemon(FAKE)
    with daemon.client() as client:
        client.load("ok")
        engine = client.stats().engine.pid
        os.kill(engine, signal.SIGSTOP)
        wait_until(lambda: client.stats().engine.state == "stalled", "the stall is noticed")
        wait_until(lambda: client.stats().engine.restarts == 1, "the engine is replaced")
        assert client.load("ok").model == "ok"
        assert not alive(engine)


def test_an_engine_ends_with_its_parent(start_daemon: Start) -> None:
    """kill -9 of the parent: the engine sees the end of its socket and goes, idle or busy."""
    daemon = start_daemon()
    with daemon.client() as client:
        client.load("embedded")
        engine = client.stats().engine.pid
        stream = client.generate("embedded", PROMPT, max_tokens=3000, ignore_eos=True)
        next(iter(stream))
        daemon.process.kill()
        daemon.wait()
        wait_until(lambda: not alive(engine), "engine_stopped")
        with pytest.raises(mlx_sidecar.SidecarError):
            list(stream)


def test_request_that_kills_two_engines_is_refused(start_daemon: Start) -> None:
    """A model with three engine deaths is quarantined until an Invalidate."""
    daemon = start_daemon(FAKE)
    with daemon.client() as client:
        for _ in range(2):
            with pytest.raises(mlx_sidecar.EngineRestarted):
                client.complete("die", "the same prompt")
        with pytest.raises(mlx_sidecar.RequestQuarantined):
            client.complete("die", "the same prompt")
        with pytest.raises(mlx_sidecar.EngineRestarted):
            client.complete("die", "another prompt")
        with pytest.raises(mlx_sidecar.ModelQuarantined, match="mlx-sidecar invalidate die"):
            client.complete("die", "yet another prompt")
        assert client.complete("ok", "other models are served").text
        client.invalidate_model("die")
        with pytest.raises(mlx_sidecar.EngineRestarted):
            client.complete("die", "a fourth prompt")


def test_engine_that_sends_garbage_is_restarted(start_daemon: Start) -> None:
    """Frames that are none, or announce four gigabytes, end the engine and not the daemon."""
    daemon = start_daemon(FAKE)
    with daemon.client() as client:
        for model in ("garbage", "huge"):
            # The client's own retries may be what makes it the second death.
            with pytest.raises((mlx_sidecar.EngineRestarted, mlx_sidecar.RequestQuarantined)):
                client.complete(model, "hello")
        assert client.complete("ok", "hello again").text


def test_removed_socket_makes_the_daemon_exit(start_daemon: Start) -> None:
    """Without its socket file, no client can reach the daemon."""
    daemon = start_daemon(FAKE)
    with daemon.client() as client:
        client.stats()
    daemon.socket.unlink()
    assert daemon.wait() == 1
