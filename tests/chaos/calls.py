"""Channels of the clients of a chaos run, and the status of a failed call for its history."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.experimental
from google.rpc import error_details_pb2
from grpc_status import rpc_status

CHANNEL: list[tuple[str, int]] = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
    # Without it, a stream that gRPC retries while its server goes away never ends, whatever its deadline: grpcio 1.80
    # to 1.85.1, see tests/client/test_client_retries.py. The project's own client has it for the same reason.
    (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
]
"""A daemon that is back is found at once, and each client has a connection of its own."""


def ending(call: Any) -> str:
    """Return the end of a call that failed: "CODE REASON"; if the error is gRPC's own, its words if they matter."""
    status = rpc_status.from_call(call)
    info = error_details_pb2.ErrorInfo()
    if status is not None and status.details and status.details[0].Unpack(info):
        return f"{call.code().name} {info.reason}"
    code = str(call.code().name)
    return code if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED") else f"{code} {call.details()!r}"
