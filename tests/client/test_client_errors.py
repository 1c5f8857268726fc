"""Every failure arrives as the exception that its reason names, with all that the daemon said about it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

import mlx_sidecar
from mlx_sidecar import (
    Cancelled,
    Client,
    ContextLengthExceeded,
    DaemonNotRunning,
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    ProtocolError,
    QueueFull,
    SidecarError,
    _exceptions,
)
from mlx_sidecar._exceptions import REASONS
from tests.client.scripted import HANG, Fail, FakeDaemon, Script, finish, hello, started


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_has_its_exception(client: Client, script: Script, reason: str) -> None:
    """By the reason alone: the code and the message could change without harm."""
    kind = REASONS[reason]
    # After the first message, because the client tries UNAVAILABLE again before it.
    script.answer([started(), Fail(kind.code, reason, "naïve: 100 %", metadata={"needed_bytes": "5"})])
    with pytest.raises(SidecarError) as caught:
        client.complete("m", "Hi")
    error = caught.value
    assert type(error) is kind
    assert (str(error), error.code, error.reason) == ("naïve: 100 %", kind.code, reason)
    assert error.metadata == {"needed_bytes": "5"}
    assert (error.retry_after, error.field, error.error_id) == (None, None, None)


def test_exception_tree_is_complete_and_flat() -> None:
    """Every exception is exported, is a `SidecarError`, says when it happens, and is drawn in the tree."""
    tree = str(_exceptions.__doc__)
    kinds = {
        name: kind
        for name, kind in vars(_exceptions).items()
        if isinstance(kind, type) and kind.__module__ == _exceptions.__name__
    }
    assert len(kinds) == len(REASONS) + 7
    for name, kind in kinds.items():
        assert issubclass(kind, SidecarError)
        assert name in mlx_sidecar.__all__
        assert f"{name}\n" in tree
        assert "__doc__" in vars(kind)
    assert issubclass(ContextLengthExceeded, InvalidArgument)


def test_retry_delay_is_in_seconds(client: Client, script: Script) -> None:
    """From RetryInfo."""
    advice = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))
    script.answer([Fail("RESOURCE_EXHAUSTED", "QUEUE_FULL", details=[advice])])
    with pytest.raises(QueueFull) as caught:
        client.complete("m", "Hi")
    assert caught.value.retry_after == 1.5
    assert len(script.requests) == 1


def test_refused_field_is_named(client: Client, script: Script) -> None:
    """From BadRequest."""
    bad = error_details_pb2.BadRequest(field_violations=[{"field": "sampling.top_p"}, {"field": "seed"}])
    script.answer([Fail("INVALID_ARGUMENT", "INVALID_ARGUMENT", details=[bad])])
    with pytest.raises(InvalidArgument) as caught:
        client.complete("m", "Hi", top_p=2)
    assert caught.value.field == "sampling.top_p"


def test_internal_error_has_the_id_of_its_log_entry(client: Client, script: Script) -> None:
    """From ErrorInfo's metadata; unary calls are decoded like streams."""
    script.answer([Fail("INTERNAL", "INTERNAL", metadata={"error_id": "e42"})])
    with pytest.raises(InternalError) as caught:
        client.stats()
    assert caught.value.error_id == "e42"


@pytest.mark.parametrize(
    "fail",
    [Fail("FAILED_PRECONDITION", "NOT_INVENTED_YET"), Fail("INTERNAL", "INTERNAL", domain="example.com")],
)
def test_unknown_reason_is_a_protocol_error(client: Client, script: Script, fail: Fail) -> None:
    """A reason of a newer daemon, or of somebody else's, keeps its code and its message."""
    script.answer([fail])
    with pytest.raises(ProtocolError, match="it failed") as caught:
        client.complete("m", "Hi")
    assert caught.value.code == fail.code


def test_a_deadline_that_passes_is_typed(client: Client, script: Script) -> None:
    """`timeout` is the call's deadline; the daemon sees the call end."""
    script.answer([HANG])
    with pytest.raises(DeadlineExceeded):
        client.complete("m", "Hi", timeout=1)  # time enough to be heard on a busy machine
    assert script.cancelled.wait(10)


def test_unary_call_has_the_timeout_of_its_client(serve: Callable[[Path], Any], socket: Path, script: Script) -> None:
    """So that a daemon that hangs does not hang its clients."""
    serve(socket)
    script.answer([HANG])
    with Client(socket, timeout=0.2) as client, pytest.raises(DeadlineExceeded):
        client.stats()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, DaemonNotRunning),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, Cancelled),
        (grpc.StatusCode.UNIMPLEMENTED, ProtocolError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ProtocolError),
        (grpc.StatusCode.UNKNOWN, ProtocolError),
    ],
)
def test_status_without_details_is_mapped_by_code(
    fake: FakeDaemon, code: grpc.StatusCode, kind: type[SidecarError]
) -> None:
    """gRPC itself makes such errors, on both sides."""
    stream = fake.client.generate("m", "Hi")
    _, rpc = fake.take_stream("Generate")
    finish(rpc, code, "why")
    with pytest.raises(kind) as caught:
        list(stream)
    assert type(caught.value) is kind
    assert caught.value.code == code.name
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_crash_before_first_message_is_retried(client: Client, script: Script) -> None:
    """gRPC repeats the call by itself, and the caller sees only the answer."""
    script.answer([Fail("UNAVAILABLE", "ENGINE_RESTARTED")], hello())
    assert client.complete("m", "Hi").text == "Hello there"
    assert len(script.requests) == 2


def test_crash_after_first_message_is_not_retried(client: Client, script: Script) -> None:
    """No text is ever delivered twice."""
    script.answer([started(), Fail("UNAVAILABLE", "ENGINE_RESTARTED")], hello())
    with pytest.raises(mlx_sidecar.EngineRestarted):
        client.complete("m", "Hi")
    assert len(script.requests) == 1


def test_refusal_that_asks_for_no_retry_is_told_at_once(client: Client, script: Script) -> None:
    """The daemon asks for it where its engine is away for longer: gRPC would wait as long without a word."""
    script.answer([Fail("UNAVAILABLE", "ENGINE_RESTARTED", pushback="-1")], hello())
    with pytest.raises(mlx_sidecar.EngineRestarted):
        client.complete("m", "Hi")
    assert len(script.requests) == 1


def test_exception_survives_pickling() -> None:
    """Worker pools pickle exceptions."""
    error = QueueFull("full", retry_after=2.0, metadata={"queued": "64"})
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.retry_after, copy.metadata) == (
        QueueFull,
        "full",
        2.0,
        {"queued": "64"},
    )
    assert (copy.code, copy.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")


@pytest.mark.parametrize("size", [16 * 1024 * 1024 + 1, 40_000_000])
def test_request_that_grpc_would_refuse_is_an_invalid_argument(client: Client, script: Script, size: int) -> None:
    """In the words of the daemon, which such a request does not reach: gRPC's own status has no reason."""
    with pytest.raises(InvalidArgument, match=r"has \d+ bytes; at most 8388608 are allowed") as caught:
        client.complete("m", "x" * size)
    assert caught.value.field == "request"
    assert not script.requests
