"""
Conversion of gRPC errors to typed exceptions, for both clients.

A status without the daemon's details can come from gRPC itself. Then a connection to the socket decides whether a
daemon runs.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message as Proto

from mlx_sidecar._address import MAX_SOCKET_BYTES, listens, resolve
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
"""Default of `retry_after` if the daemon sent none."""


def not_running(socket: Path, why: str) -> DaemonNotRunning:
    """Return the exception for a daemon that does not run; `why` is the evidence."""
    length = len(os.fsencode(socket))
    if length > MAX_SOCKET_BYTES:  # no daemon can serve there, so the command that starts one would fail
        return DaemonNotRunning(
            f"no mlx-sidecar can answer at {socket}: the path has {length} bytes, and a socket's at most "
            f"{MAX_SOCKET_BYTES}; choose a shorter one"
        )
    return DaemonNotRunning(f"no mlx-sidecar answers at {socket} ({why}); start it with: {_serve(socket)}")


def _serve(socket: Path) -> str:
    """Return the command that starts a daemon on a socket; one without it would serve on the default socket."""
    try:
        default = resolve(None)
    except RuntimeError:  # this user has no home directory
        default = None
    return "mlx-sidecar serve" if socket == default else f"mlx-sidecar serve --socket {shlex.quote(str(socket))}"


def unanswered(socket: Path, why: str, there: str) -> SidecarError:
    """Return the exception for an unanswered call, with the text `why` without a listener, `there` with a listener."""
    try:
        if not listens(socket):
            return not_running(socket, why)
    except PermissionError as error:
        text = f"no connection to {socket}: the system does not let this program connect ({error.strerror})"
        return ConnectionLost(f"{text}; if it runs in a sandbox, allow it this socket there")
    except OSError as error:
        text = f"no connection to {socket}: this process cannot open a socket ({error.strerror})"
        return ConnectionLost(text, retry_after=RETRY_SECONDS)
    return ConnectionLost(f"mlx-sidecar listens at {socket}, but {there}; try again", retry_after=RETRY_SECONDS)


def failure(error: grpc.RpcError, socket: Path) -> SidecarError:
    """Return the exception for a failed call. Its class depends on code and reason, never on the message's text."""
    from google.rpc import error_details_pb2  # imported here and below: only failed calls need it

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
    """Return the exception for a status without the daemon's details, which gRPC made on either side."""
    match code:
        case "UNAVAILABLE":
            # gRPC's own text repeats the quoted path. It stays available as the exception's cause.
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
        # The details contradict the status. gRPC acts on the status.
        return []
    return [] if status is None else list(status.details)


def _find(details: list[Any], kind: type[ProtoT]) -> ProtoT | None:
    for detail in details:
        message = kind()
        if detail.Is(kind.DESCRIPTOR) and detail.Unpack(message):
            return message
    return None
