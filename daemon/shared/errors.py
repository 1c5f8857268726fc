"""
The table of errors: a reason that callers can rely on, and the gRPC code that carries it.

Code raises `SidecarError(Reason.X, "what went wrong and what to do", ...)`. The reason travels unchanged through the
IPC frames and ends as `google.rpc.ErrorInfo.reason` (domain "mlx-sidecar"); the client mirrors the table with one
exception class for each reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from google.rpc import code_pb2

DOMAIN = "mlx-sidecar"

RETRY_SECONDS = 2.0
"""Time to retry of errors that pass soon, where nothing tells how soon."""


class Reason(StrEnum):
    """Why a call failed. Names are part of the API: add, never rename."""

    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    MODEL_GATED = "MODEL_GATED"
    MODEL_NOT_CACHED = "MODEL_NOT_CACHED"
    MODEL_UNSUPPORTED = "MODEL_UNSUPPORTED"
    MODEL_CORRUPT = "MODEL_CORRUPT"
    MODEL_EXCEEDS_BUDGET = "MODEL_EXCEEDS_BUDGET"
    MODEL_QUARANTINED = "MODEL_QUARANTINED"
    REQUEST_QUARANTINED = "REQUEST_QUARANTINED"
    REQUEST_EXCEEDS_MEMORY = "REQUEST_EXCEEDS_MEMORY"
    BUDGET_IN_USE = "BUDGET_IN_USE"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    CONTEXT_LENGTH_EXCEEDED = "CONTEXT_LENGTH_EXCEEDED"
    QUEUE_FULL = "QUEUE_FULL"
    SLOW_CONSUMER = "SLOW_CONSUMER"
    SLOW_SENDER = "SLOW_SENDER"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    ENGINE_RESTARTED = "ENGINE_RESTARTED"
    MODEL_NOT_RESPONDING = "MODEL_NOT_RESPONDING"
    MACHINE_EXHAUSTED = "MACHINE_EXHAUSTED"
    MACHINE_FAULT = "MACHINE_FAULT"
    NAN_LOGITS = "NAN_LOGITS"
    INTERNAL = "INTERNAL"


CODES: Mapping[Reason, int] = {
    Reason.MODEL_NOT_FOUND: code_pb2.NOT_FOUND,
    Reason.MODEL_GATED: code_pb2.PERMISSION_DENIED,
    Reason.MODEL_NOT_CACHED: code_pb2.FAILED_PRECONDITION,
    Reason.MODEL_UNSUPPORTED: code_pb2.FAILED_PRECONDITION,
    Reason.MODEL_CORRUPT: code_pb2.FAILED_PRECONDITION,
    Reason.MODEL_EXCEEDS_BUDGET: code_pb2.FAILED_PRECONDITION,
    Reason.MODEL_QUARANTINED: code_pb2.FAILED_PRECONDITION,
    Reason.REQUEST_QUARANTINED: code_pb2.FAILED_PRECONDITION,
    Reason.REQUEST_EXCEEDS_MEMORY: code_pb2.FAILED_PRECONDITION,
    Reason.BUDGET_IN_USE: code_pb2.RESOURCE_EXHAUSTED,
    Reason.INVALID_ARGUMENT: code_pb2.INVALID_ARGUMENT,
    Reason.CONTEXT_LENGTH_EXCEEDED: code_pb2.INVALID_ARGUMENT,
    Reason.QUEUE_FULL: code_pb2.RESOURCE_EXHAUSTED,
    Reason.SLOW_CONSUMER: code_pb2.RESOURCE_EXHAUSTED,
    Reason.SLOW_SENDER: code_pb2.RESOURCE_EXHAUSTED,
    Reason.SHUTTING_DOWN: code_pb2.UNAVAILABLE,
    Reason.ENGINE_RESTARTED: code_pb2.UNAVAILABLE,
    Reason.MODEL_NOT_RESPONDING: code_pb2.FAILED_PRECONDITION,
    Reason.MACHINE_EXHAUSTED: code_pb2.RESOURCE_EXHAUSTED,
    Reason.MACHINE_FAULT: code_pb2.FAILED_PRECONDITION,
    Reason.NAN_LOGITS: code_pb2.INTERNAL,
    Reason.INTERNAL: code_pb2.INTERNAL,
}
"""The google.rpc.Code of each reason."""


class SidecarError(Exception):
    """
    An error that reaches the caller as a gRPC status.

    Args:
        reason: The row of the table.
        message: One or two sentences: what is wrong, with figures, and how to mend it. Never text of a prompt.
        metadata: Figures of the error, for programs.
        retry_after: Seconds after which a retry may succeed; None if a retry is pointless.
        field: Path of the request field that is wrong, such as "sampling.top_p".
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        field: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.field = field

    @property
    def code(self) -> int:
        """Its google.rpc.Code."""
        return CODES[self.reason]

    def again(self) -> SidecarError:
        """Return an equal error for another call: an exception that is raised holds the frames of those it ends."""
        return SidecarError(
            self.reason, self.message, metadata=self.metadata, retry_after=self.retry_after, field=self.field
        )

    def __repr__(self) -> str:
        return f"SidecarError({self.reason}, {self.message!r})"


def invalid(field: str, message: str) -> SidecarError:
    """Return the error for a request field that is out of range; `message` goes on after the field's name."""
    return SidecarError(Reason.INVALID_ARGUMENT, f"{field} {message}", field=field)
