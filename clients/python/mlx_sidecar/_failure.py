"""gRPC errors to typed exceptions, for both clients. Only the socket is asked whether a daemon is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message as Proto

from mlx_sidecar._address import listens
from mlx_sidecar._exceptions import (
    REASONS,
    Cancelled,
    ConnectionLost,
    DaemonNotRunning,
    DeadlineExceeded,
    ProtocolError,
    SidecarError,
)

DOMAIN = "mlx-sidecar"
"""The domain of the daemon's ErrorInfo."""

ProtoT = TypeVar("ProtoT", bound=Proto)


RETRY_SECONDS = 1.0
"""After which another try makes sense where the daemon did not say."""


def not_running(socket: Path, why: str) -> DaemonNotRunning:
    """Return the exception for a daemon that is not there; `why` is what was seen."""
    return DaemonNotRunning(f"no mlx-sidecar answers at {socket} ({why}); start it with: mlx-sidecar serve")


def unanswered(socket: Path, why: str, there: str) -> SidecarError:
    """Return the exception for a call that nothing answered: `why` if nothing listens, `there` if something does."""
    if not listens(socket):
        return not_running(socket, why)
    return ConnectionLost(f"mlx-sidecar listens at {socket}, but {there}; try again", retry_after=RETRY_SECONDS)


def failure(error: grpc.RpcError, socket: Path) -> SidecarError:
    """Return the exception for a failed call; its code and reason decide, never the text of its message."""
    from google.rpc import error_details_pb2  # here and below: calls that succeed need neither

    call: Any = error
    code, text = call.code().name, call.details() or call.code().name
    details = _details(call)
    info = _find(details, error_details_pb2.ErrorInfo)
    if info is None or info.domain != DOMAIN:
        return _undetailed(code, text, socket)
    kind = REASONS.get(info.reason, ProtocolError)
    retry = _find(details, error_details_pb2.RetryInfo)
    bad = _find(details, error_details_pb2.BadRequest)
    return kind(
        text,
        code=code,
        reason=info.reason,
        metadata=info.metadata,
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9 if retry is not None else None,
        field=bad.field_violations[0].field if bad is not None and bad.field_violations else None,
        error_id=info.metadata.get("error_id"),
    )


def _undetailed(code: str, text: str, socket: Path) -> SidecarError:
    """Return the exception for a status that gRPC itself made, on this side or on the other."""
    match code:
        case "UNAVAILABLE":
            # gRPC's own text repeats the path, quoted, and more; it stays in the exception's cause.
            return unanswered(socket, "the connection failed", "the call was refused or cut off without a reason")
        case "DEADLINE_EXCEEDED":
            return DeadlineExceeded(text)
        case "CANCELLED":
            return Cancelled(text)
    return ProtocolError(f"{code}: {text}", code=code)


def _details(call: Any) -> list[Any]:
    from grpc_status import rpc_status

    try:
        status = rpc_status.from_call(call)
    except ValueError:
        # The details contradict the status; the status is what gRPC acts on.
        return []
    return [] if status is None else list(status.details)


def _find(details: list[Any], kind: type[ProtoT]) -> ProtoT | None:
    for detail in details:
        found = kind()
        if detail.Is(kind.DESCRIPTOR) and detail.Unpack(found):
            return found
    return None
