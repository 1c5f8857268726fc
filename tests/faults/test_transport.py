"""Rows 1 to 16 of the fault table: connections, streams and bytes on the socket."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.internal import api_implementation

from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.faults.conftest import FAKE
from tests.faults.raw import (
    PREFACE,
    SERVICE,
    SETTINGS,
    Refusal,
    call,
    connect,
    frame,
    frames,
    opened,
    opened_and_reset,
    until_closed,
)
from tests.faults.watch import answers_in_time, ask
from tests.support.daemons import RunningDaemon, wait_until

OK = pb.GenerateRequest(model="ok", text="one")
SEED = 20261121


def test_other_protocols_are_disconnected(target: RunningDaemon) -> None:
    """Row 1: HTTP/1.1."""
    raw = connect(target)
    raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    until_closed(raw)


def test_ten_megabytes_of_noise_are_disconnected(target: RunningDaemon) -> None:
    """Row 2."""
    raw = connect(target)
    noise = random.Random(SEED).randbytes(10_000_000)
    with suppress(ConnectionError):  # it need not hear all of it
        raw.sendall(noise)
    until_closed(raw)


def test_half_an_http2_preface_is_disconnected(target: RunningDaemon) -> None:
    """Row 2: by the handshake's own time-out."""
    raw = connect(target)
    raw.sendall(PREFACE[:9])
    until_closed(raw)


def test_connection_without_calls_is_disconnected(start_daemon: Callable[..., RunningDaemon]) -> None:
    """Row 3: after ten minutes, or the shorter time that a test sets."""
    daemon = start_daemon([sys.executable, "-m", "tests.faults.serve_impatient", "1000"])
    ask(daemon)
    raw = connect(daemon)
    raw.sendall(PREFACE + SETTINGS)
    assert b"\0\0" in until_closed(raw)
    answers_in_time(daemon)


@pytest.mark.parametrize(
    ("size", "reason"), [(8 * 2**20 + 1, "INVALID_ARGUMENT"), (16 * 2**20 + 1, "")], ids=["ours", "gRPC's"]
)
def test_request_one_byte_too_large_is_refused(target: RunningDaemon, size: int, reason: str) -> None:
    """Row 4: by our limit with our error, far beyond it by gRPC's, and never with advice to try again."""
    request = pb.GenerateRequest(model="ok", text="x")
    request.text = "x" * (size - request.ByteSize() + 1 - 3)
    request.text += "x" * (size - request.ByteSize())
    refusal = call(target, "Generate", request.SerializeToString())
    assert (refusal.reason, refusal.retry) == (reason, False)
    assert refusal.code.name == (reason or "RESOURCE_EXHAUSTED")


@pytest.mark.parametrize("method", ["Generate", "GetOrLoad", "Invalidate", "Stats"])
@pytest.mark.parametrize("data", [b"\xff" * 100, b"\x0a\x7f", b"\x5b" * 20_000], ids=["noise", "torn", "nested"])
def test_undecodable_message_is_an_invalid_argument(target: RunningDaemon, method: str, data: bytes) -> None:
    """Rows 5 and 6: not INTERNAL, as gRPC has it, and no stack overflows."""
    refusal = call(target, method, data)
    assert (refusal.reason, refusal.field) == ("INVALID_ARGUMENT", "request")


def test_protobuf_messages_are_parsed_in_c() -> None:
    """Row 6: the parser in Python recursed without a bound (CVE-2025-4565)."""
    assert api_implementation.Type() == "upb"


@pytest.mark.parametrize(
    ("data", "code", "field"),
    [
        (OK.SerializeToString() + b"\xba\x3e\x01x", "INVALID_ARGUMENT", "request"),
        (OK.SerializeToString() + b"\x52\x02\x08\x63", "INVALID_ARGUMENT", "cache.mode"),
        (OK.SerializeToString() + b"\x22\x03\x0a\x01\x07", "OK", ""),
        (b"\x0a\x02\xff\xfe" + b"\x1a\x01x", "INVALID_ARGUMENT", "request"),
        (OK.SerializeToString() + b"\x30" + b"\xff" * 8 + b"\x7f", "INVALID_ARGUMENT", "max_tokens"),
    ],
    ids=["unknown field", "unknown enum value", "oneof twice", "no UTF-8", "max_tokens of 2^63-1"],
)
def test_unusual_messages_pass_or_name_their_field(target: RunningDaemon, data: bytes, code: str, field: str) -> None:
    """Row 7, and the largest number of row 20: never UNKNOWN."""
    assert call(target, "Generate", data).code_and_field == (code, field)


@pytest.mark.parametrize("size", [20_000, 100_000])
def test_oversized_metadata_is_refused(target: RunningDaemon, size: int) -> None:
    """Row 8: by gRPC."""
    refusal = call(target, "Generate", OK.SerializeToString(), metadata=[("x", "y" * size)])
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("method", [SERVICE + "Nothing", "/mlx_sidecar.v2.SidecarService/Stats", "/x/y"])
def test_unknown_method_is_unimplemented(target: RunningDaemon, method: str) -> None:
    """Row 9."""
    assert call(target, method, b"").code is grpc.StatusCode.UNIMPLEMENTED


def test_stats_answer_beside_two_hundred_open_streams(target: RunningDaemon) -> None:
    """Row 10. They are opened a few at a time, because no more than `max_queue` may wait until they have begun."""
    apart = [("grpc.use_local_subchannel_pool", 1)]
    with ExitStack() as stack:
        channels = [grpc.insecure_channel(f"unix:{target.socket}", options=apart) for _ in range(2)]
        stubs = [SidecarServiceStub(stack.enter_context(channel)) for channel in channels]
        streams: list[Any] = []
        for _ in range(4):
            opened = [stub.Generate(pb.GenerateRequest(model="hold", text="x")) for stub in stubs for _ in range(25)]
            assert all(next(stream).HasField("started") for stream in opened)
            streams += opened
        answers_in_time(target)
        for stream in streams:
            stream.cancel()


def test_drain_waits_for_no_unread_health_watch(start_daemon: Callable[..., RunningDaemon]) -> None:
    """Its connection takes no data, as that of a stopped program; the drain tells each watch and waits for none."""
    daemon = start_daemon(FAKE)
    ask(daemon)
    no_window = frame(4, 0, 0, struct.pack(">HI", 4, 0))
    with connect(daemon) as raw:
        raw.sendall(PREFACE + no_window + opened(1, "/grpc.health.v1.Health/Watch") + frame(0, 1, 1, b"\0" * 5))
        received = b""
        while (1, 1) not in frames(received):  # headers, which come before the status that does not fit
            part = raw.recv(1 << 16)
            assert part
            received += part
        assert daemon.stop() == 0


def test_immediately_cancelled_calls_reach_no_engine(target: RunningDaemon) -> None:
    """Row 11: a rapid reset (CVE-2023-44487); the connection may be closed for it."""
    journal = target.folder / "journal"
    before = len(journal.read_text().splitlines())
    for _ in range(20):
        raw = connect(target)
        frames = [opened_and_reset(2 * number + 1, SERVICE + "Generate") for number in range(1_000)]
        with suppress(ConnectionError, TimeoutError):
            raw.sendall(PREFACE + SETTINGS + b"".join(frames))
        raw.close()
    many = range(500)  # while thousands wait to be taken, gRPC cancels some new calls at random, however few
    wait_until(
        lambda: all(call(target, "Stats", b"").code is grpc.StatusCode.OK for _ in many), "gRPC has cleared them away"
    )
    assert len(journal.read_text().splitlines()) == before


def test_daemon_recovers_from_descriptor_exhaustion(start_daemon: Callable[..., RunningDaemon], folder: Path) -> None:
    """Row 12: 150 connections, with 64 descriptors in all."""
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); "
    daemon = start_daemon(
        [sys.executable, "-c", limited + "runpy.run_module('tests.support.serve_fake', run_name='__main__')"]
    )
    ask(daemon)
    held = []
    for _ in range(150):
        try:
            held.append(connect(daemon))
        except (BlockingIOError, TimeoutError, ConnectionError):
            break
    for raw in held:
        raw.close()
    answers_in_time(daemon)
    assert daemon.process.poll() is None
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("seconds", "code"),
    [(-1.0, "DEADLINE_EXCEEDED"), (0.001, "DEADLINE_EXCEEDED"), (3e9, "CANCELLED"), (None, "CANCELLED")],
)
def test_extreme_deadlines_are_kept(target: RunningDaemon, seconds: float | None, code: str) -> None:
    """Row 13: passed already, at once, in a hundred years, never. The last two end with their caller."""
    with grpc.insecure_channel(f"unix:{target.socket}") as channel:
        stream = SidecarServiceStub(channel).Generate(pb.GenerateRequest(model="hold", text="x"), timeout=seconds)
        if code == "CANCELLED":
            assert next(stream).HasField("started")
            stream.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
    assert Refusal(caught.value).code.name == code


CALLER = """
import sys
from mlx_sidecar import Client
with Client({socket!r}) as client:
    stream = client.get_or_load("hold") if {model!r} == "load" else client.generate({model!r}, "one two")
    print("sent", flush=True)
    list(stream)
"""


@pytest.mark.parametrize("model", ["hold", "hold-waiting", "load"], ids=["decoding", "queued", "loading"])
def test_killed_caller_leaves_no_call_behind(target: RunningDaemon, model: str) -> None:
    """Row 15: its call is cancelled in the engine, whatever it waits for."""
    journal = target.folder / "journal"

    def lines() -> list[dict[str, object]]:
        return [json.loads(line) for line in journal.read_text().splitlines()]

    before = len(lines())
    program = CALLER.format(socket=str(target.socket), model=model)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=os.environ) as caller:
        wait_until(lambda: len(lines()) > before, "the engine has the call")
        caller.send_signal(signal.SIGKILL)
    opened = lines()[before]
    wait_until(lambda: any("cancel" in line for line in lines()[before:]), "the engine is told")
    assert lines()[-1]["call_id"] == opened["call_id"]


def test_symlink_to_a_live_socket_is_refused(target: RunningDaemon, folder: Path, surroundings: dict[str, str]) -> None:
    """Row 16: gRPC alone would replace both."""
    run = folder / "run"
    run.mkdir(mode=0o700)
    (run / "sidecar.sock").symlink_to(target.socket)
    ended = subprocess.run(FAKE, env=surroundings, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert (run / "sidecar.sock").is_symlink()
    assert ask(target).daemon.pid == target.process.pid


def test_thousand_stats_calls_ask_no_engine(start_daemon: Callable[..., RunningDaemon]) -> None:
    """Row 62: each is answered, also while the engine is stopped."""
    daemon = start_daemon(FAKE)
    wait_until(lambda: ask(daemon).engine.state == pb.ENGINE_STATE_READY, "the engine is up")
    engine = ask(daemon).engine.pid
    os.kill(engine, signal.SIGSTOP)
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub = SidecarServiceStub(channel)
        for _ in range(10):
            answers = [stub.Stats.future(pb.StatsRequest(), timeout=60) for _ in range(100)]
            assert all(answer.result().daemon.pid == daemon.process.pid for answer in answers)
    with suppress(ProcessLookupError):
        os.kill(engine, signal.SIGCONT)
    assert daemon.stop() == 0
