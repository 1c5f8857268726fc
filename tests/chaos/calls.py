"""Formats the status of a failed call for the history of a chaos run."""

from __future__ import annotations

from typing import Any

from google.rpc import error_details_pb2
from grpc_status import rpc_status


def ending(call: Any) -> str:
    """Return the end of a call that failed: "CODE REASON"; if the error is gRPC's own, its words if they matter."""
    status = rpc_status.from_call(call)
    info = error_details_pb2.ErrorInfo()
    if status is not None and status.details and status.details[0].Unpack(info):
        return f"{call.code().name} {info.reason}"
    code = str(call.code().name)
    return code if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED") else f"{code} {call.details()!r}"
