"""Any request at all, over the socket: an answer, or a status of the error table; never a crash, UNKNOWN or a hang."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.shared.errors import Reason
from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.fuzz.messages import messages
from tests.support.daemons import RunningDaemon
from tests.support.repetitions import scaled

HANG_SECONDS = 5
MODELS = st.sampled_from(["ok", "ok", "ok", "fail", "log", "", "no such model", "../../etc", "embedded", "x" * 2000])
REQUESTS = {
    "Generate": messages(pb.GenerateRequest, model=MODELS),
    "GetOrLoad": messages(pb.GetOrLoadRequest, model=MODELS),
    "Invalidate": messages(pb.InvalidateRequest),
    "Stats": messages(pb.StatsRequest),
}


@pytest.fixture(name="served", scope="module")
def _served() -> Iterator[tuple[RunningDaemon, SidecarServiceStub]]:
    """Return a daemon with a fake engine; at the end it is the same one, and so is its engine."""
    folder = Path(tempfile.mkdtemp(prefix="mlxs-", dir="/tmp"))
    daemon = RunningDaemon.start(folder, [sys.executable, "-m", "tests.support.serve_fake"])
    with daemon.client() as client, grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        client.load("ok")
        before = client.stats().engine
        yield daemon, SidecarServiceStub(channel)
        after = client.stats().engine
        assert (after.pid, after.restarts, after.queued) == (before.pid, 0, 0)
    assert daemon.stop() == 0
    assert not [line for line in daemon.log() if line["event"] == "unexpected_error"]
    shutil.rmtree(folder)


def send(stub: SidecarServiceStub, rpc: str, request: Any) -> None:
    """Send a request and check what comes back."""
    call = getattr(stub, rpc)
    if rpc in ("Generate", "GetOrLoad"):
        call = call(request, timeout=HANG_SECONDS)
        try:
            assert list(call)
        except grpc.RpcError:
            _check(call)
        return
    try:
        call(request, timeout=HANG_SECONDS)
    except grpc.RpcError as error:
        _check(error)


def _check(call: Any) -> None:
    status, info = rpc_status.from_call(call), error_details_pb2.ErrorInfo()
    assert status is not None, f"a bare {call.code()}: {call.details()}"
    assert status.details[0].Unpack(info)
    assert info.reason in Reason.__members__
    assert info.reason != Reason.INTERNAL, status.message


def requests_of(stub: SidecarServiceStub, rpc: str, times: int) -> None:
    """Send so many requests."""

    @settings(max_examples=times)
    @given(REQUESTS[rpc])
    def run(request: Any) -> None:
        send(stub, rpc, request)

    run()


@pytest.mark.parametrize("rpc", REQUESTS)
def test_random_request_is_answered_or_refused(served: tuple[RunningDaemon, SidecarServiceStub], rpc: str) -> None:
    """Sixty requests of each kind go to the real validator and an engine that answers everything."""
    requests_of(served[1], rpc, 60)


@pytest.mark.slow
@pytest.mark.parametrize("rpc", ["Generate", "GetOrLoad", "Invalidate"])
def test_thousands_of_random_requests_are_answered(served: tuple[RunningDaemon, SidecarServiceStub], rpc: str) -> None:
    """The same as the test above, with 20,000 requests of each kind."""
    requests_of(served[1], rpc, scaled(20_000))
