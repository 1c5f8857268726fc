"""gRPC channel options, retry policy and timeouts of both clients."""

from __future__ import annotations

import json
import math
import os
from numbers import Real
from typing import Any

import grpc
import grpc.experimental

from mlx_sidecar._exceptions import Cancelled, InvalidArgument
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub

CONNECT_TIMEOUT = 2.0
"""Longest wait for a daemon that is starting; after it the daemon counts as not running."""

POLL_INTERVAL = 0.02
"""Seconds between two checks for a socket that does not exist yet."""

PING = "/grpc.health.v1.Health/Check"
"""
The first call of a client, with an empty message and `wait_for_ready`. Any answer shows that it is connected.

`grpc.channel_ready_future` would do the same, but its thread delays the close of the channel by 0.2 s.
"""

_LONGEST_TIMEOUT = 1e9
"""Seconds. gRPC takes a deadline that is much further away for one that has passed."""

_MOST_REQUEST_BYTES, _TAKEN_BYTES = 8 * 1024 * 1024, 16 * 1024 * 1024
"""Most bytes of a request, and those that gRPC of the daemon takes: it refuses more without the daemon's reason."""

_MAX_MESSAGE_BYTES = 32 * 1024 * 1024

_RETRY_POLICY = {
    # gRPC retries only before the first message of the answer, so no text is ever delivered twice.
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "mlx_sidecar.v1.SidecarService", "method": method}],
            "retryPolicy": _RETRY_POLICY,
        }
        for method in ("GetOrLoad", "Generate", "Invalidate", "Stats", "ListModels", "Tokenize", "Embed")
    ]
}

CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    # A larger request is sent, but not buffered for a retry; prompts can be long.
    ("grpc.per_rpc_retry_buffer_size", _MAX_MESSAGE_BYTES),
    # Otherwise all clients of a process share connections, and also the back-off after a failure.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
"""Options of `grpc.aio.insecure_channel`."""

SYNC_CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    *CHANNEL_OPTIONS,
    # Read streams in the caller's thread. With gRPC's own thread, a stream that is being retried when the daemon goes
    # away never ends, not even at its deadline (grpcio 1.80 to 1.85.1; tests/client/test_client_retries.py shows it).
    (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
]
"""Options of `grpc.insecure_channel`."""


def metadata() -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call: the id of this process, which may have been forked since the last call."""
    return (("mlx-sidecar-pid", str(os.getpid())),)


def seconds(timeout: Any) -> float:
    """
    Return a timeout as a number.

    Raises:
        TypeError: If it is none.
        InvalidArgument: If it is "not a number".
    """
    if not isinstance(timeout, Real):
        raise TypeError(f"timeout is a number of seconds, and cannot have a value of type {type(timeout).__name__}")
    number = float(timeout)
    if math.isnan(number):
        raise InvalidArgument("timeout: it must be a number of seconds, not NaN", field="timeout")
    return number


def limit(timeout: Any) -> float | None:
    """Return a call's timeout as gRPC takes it; None and infinity are no limit. Raises as `seconds` does."""
    number = None if timeout is None else seconds(timeout)
    return None if number is None or number > _LONGEST_TIMEOUT else number


def refuse_too_large(request: Any) -> None:
    """
    Refuse a request that does not reach the daemon, which refuses smaller ones itself.

    Raises:
        InvalidArgument: As the daemon does.
    """
    if (size := request.ByteSize()) > _TAKEN_BYTES:
        text = f"request: has {size} bytes; at most {_MOST_REQUEST_BYTES} are allowed"
        raise InvalidArgument(text, field="request")


def closed_meanwhile() -> Cancelled:
    """Return the exception for a call whose client was closed before the call's end."""
    return Cancelled("the client was closed during the call")


def answered(error: Any) -> bool:
    """Tell whether a failed ping was answered. An error such as UNIMPLEMENTED also shows a daemon."""
    return error.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)


def stub(channel: Any) -> Any:
    """Return the API's stub on a synchronous or asynchronous channel."""
    return SidecarServiceStub(channel)
