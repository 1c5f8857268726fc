"""
The exceptions of the client, one class for each reason of the API and for each failure of the connection.

    SidecarError
    ├── ModelNotFound
    ├── ModelGated
    ├── ModelNotCached
    ├── ModelUnsupported
    ├── ModelCorrupt
    ├── ModelExceedsBudget
    ├── ModelQuarantined
    ├── RequestQuarantined
    ├── RequestExceedsMemory
    ├── BudgetInUse
    ├── InvalidArgument
    │   └── ContextLengthExceeded
    ├── QueueFull
    ├── SlowConsumer
    ├── SlowSender
    ├── ShuttingDown
    ├── EngineRestarted
    ├── ModelNotResponding
    ├── MachineExhausted
    ├── MachineFault
    ├── NanLogits
    ├── InternalError
    ├── DaemonNotRunning
    ├── ConnectionLost
    ├── UntrustedSocket
    ├── DeadlineExceeded
    ├── Cancelled
    └── ProtocolError

Wrong types raise TypeError and calls on a closed client raise RuntimeError, as everywhere in Python.
"""
# ruff: noqa: N818 - the names are those of the reasons in the API; "Error" at the end of each would say nothing

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class SidecarError(Exception):
    """
    Root of all exceptions of this package.

    Attributes:
        code: Name of the gRPC status, such as "NOT_FOUND". Exceptions that the client raises without a call have the
            code that the daemon would have used.
        reason: Stable name of the error, such as "MODEL_NOT_FOUND"; empty if the daemon sent none.
        metadata: Further details, such as sizes in bytes; keys and values are text.
        retry_after: Seconds after which a retry is useful; None if it is not, or unknown.
        field: Path of the refused request field, such as "sampling.top_p"; None if no field is wrong.
        error_id: Id of the error's entry in the daemon's log; None if there is none.
    """

    code: str = "UNKNOWN"
    reason: str = ""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        field: str | None = None,
        error_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = type(self).code if code is None else code
        self.reason = type(self).reason if reason is None else reason
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after = retry_after
        self.field = field
        self.error_id = error_id


class ModelNotFound(SidecarError):
    """There is no such model, revision, adapter or directory."""

    code = "NOT_FOUND"
    reason = "MODEL_NOT_FOUND"


class ModelGated(SidecarError):
    """The Hub refuses the model: it is gated or private, and the daemon has no token that opens it."""

    code = "PERMISSION_DENIED"
    reason = "MODEL_GATED"


class ModelNotCached(SidecarError):
    """
    The model is not on disk or not in memory, and the request allows no download or load.

    Raised by loads without `allow_download` and by generations with `require_loaded`.
    """

    code = "FAILED_PRECONDITION"
    reason = "MODEL_NOT_CACHED"


class ModelUnsupported(SidecarError):
    """The daemon cannot run the model's architecture or configuration."""

    code = "FAILED_PRECONDITION"
    reason = "MODEL_UNSUPPORTED"


class ModelCorrupt(SidecarError):
    """The model's files are damaged or do not belong together."""

    code = "FAILED_PRECONDITION"
    reason = "MODEL_CORRUPT"


class ModelExceedsBudget(SidecarError):
    """The model can never fit into the memory budget; `metadata` has the figures in bytes."""

    code = "FAILED_PRECONDITION"
    reason = "MODEL_EXCEEDS_BUDGET"


class ModelQuarantined(SidecarError):
    """The engine died too often with this model; it is refused for a while."""

    code = "FAILED_PRECONDITION"
    reason = "MODEL_QUARANTINED"


class RequestQuarantined(SidecarError):
    """This very request was running at two engine crashes; it is not tried a third time."""

    code = "FAILED_PRECONDITION"
    reason = "REQUEST_QUARANTINED"


class RequestExceedsMemory(SidecarError):
    """The KV cache of prompt and completion can never fit into memory; `metadata` has the figures in bytes."""

    code = "FAILED_PRECONDITION"
    reason = "REQUEST_EXCEEDS_MEMORY"


class BudgetInUse(SidecarError):
    """The memory is taken by models and requests that are in use; see `retry_after`."""

    code = "RESOURCE_EXHAUSTED"
    reason = "BUDGET_IN_USE"


class InvalidArgument(SidecarError):
    """
    A parameter is out of range or not supported; `field` names it.

    The client raises it too, for values that cannot be sent at all.
    """

    code = "INVALID_ARGUMENT"
    reason = "INVALID_ARGUMENT"


class ContextLengthExceeded(InvalidArgument):
    """Prompt plus `max_tokens` are longer than the model's context."""

    reason = "CONTEXT_LENGTH_EXCEEDED"


class QueueFull(SidecarError):
    """Too many requests or prompt tokens are waiting; see `retry_after`."""

    code = "RESOURCE_EXHAUSTED"
    reason = "QUEUE_FULL"


class SlowConsumer(SidecarError):
    """Nothing was read of a stream for too long while much of it waited; the rest of it was dropped."""

    code = "RESOURCE_EXHAUSTED"
    reason = "SLOW_CONSUMER"


class SlowSender(SidecarError):
    """The request took too long to arrive whole; see `retry_after`."""

    code = "RESOURCE_EXHAUSTED"
    reason = "SLOW_SENDER"


class ShuttingDown(SidecarError):
    """The daemon finishes its last streams and takes no new work; see `retry_after`."""

    code = "UNAVAILABLE"
    reason = "SHUTTING_DOWN"


class EngineRestarted(SidecarError):
    """The engine process died or hung while it had this request, and is being started again."""

    code = "UNAVAILABLE"
    reason = "ENGINE_RESTARTED"


class ModelNotResponding(SidecarError):
    """Reading a model's files, or preparing a prompt for it, hangs; its disk may be gone. See `retry_after`."""

    code = "FAILED_PRECONDITION"
    reason = "MODEL_NOT_RESPONDING"


class MachineExhausted(SidecarError):
    """The daemon's machine ran out of memory, disk space, open files or processes; see `retry_after`."""

    code = "RESOURCE_EXHAUSTED"
    reason = "MACHINE_EXHAUSTED"


class MachineFault(SidecarError):
    """The daemon's machine cannot do what is needed: a disk fails, or access is denied. The message has the cure."""

    code = "FAILED_PRECONDITION"
    reason = "MACHINE_FAULT"


class NanLogits(SidecarError):
    """The model computed something that is not a number; its weights are probably damaged."""

    code = "INTERNAL"
    reason = "NAN_LOGITS"


class InternalError(SidecarError):
    """A bug in the daemon; its log has the rest under `error_id`."""

    code = "INTERNAL"
    reason = "INTERNAL"


class DaemonNotRunning(SidecarError):
    """There is no socket, or nothing listens on it; also after a call that the daemon went away from."""

    code = "UNAVAILABLE"


class ConnectionLost(SidecarError):
    """
    A daemon listens on the socket, but the call was not answered: its connection broke, gRPC refused it without a
    reason, or connecting took too long. Another try makes sense.
    """

    code = "UNAVAILABLE"


class UntrustedSocket(SidecarError):
    """The socket or its directory could be another user's; nothing was sent to it."""

    code = "PERMISSION_DENIED"


class DeadlineExceeded(SidecarError):
    """The call's `timeout` passed."""

    code = "DEADLINE_EXCEEDED"


class Cancelled(SidecarError):
    """The stream or its client was closed before the stream's end, or the daemon cancelled the call."""

    code = "CANCELLED"


class ProtocolError(SidecarError):
    """The daemon answered in a way that this client does not understand; one of them is probably outdated."""


REASONS: Mapping[str, type[SidecarError]] = MappingProxyType(
    {
        error.reason: error
        for error in (
            ModelNotFound,
            ModelGated,
            ModelNotCached,
            ModelUnsupported,
            ModelCorrupt,
            ModelExceedsBudget,
            ModelQuarantined,
            RequestQuarantined,
            RequestExceedsMemory,
            BudgetInUse,
            InvalidArgument,
            ContextLengthExceeded,
            QueueFull,
            SlowConsumer,
            SlowSender,
            ShuttingDown,
            EngineRestarted,
            ModelNotResponding,
            MachineExhausted,
            MachineFault,
            NanLogits,
            InternalError,
        )
    }
)
"""The exception for each `ErrorInfo.reason` of the daemon."""
