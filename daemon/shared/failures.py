"""Errors as messages between processes, and back."""

from __future__ import annotations

from daemon.shared.durations import duration, seconds
from daemon.shared.errors import Reason, SidecarError
from daemon.v1 import ipc_pb2 as ipc


def failure_of(error: SidecarError) -> ipc.Failure:
    """Return an error as a message."""
    metadata = {key: _text(value) for key, value in error.metadata.items()}
    failure = ipc.Failure(reason=error.reason, message=_text(error.message), metadata=metadata, field=error.field)
    if error.retry_after is not None:
        failure.retry_after.CopyFrom(duration(error.retry_after))
    return failure


def error_of(failure: ipc.Failure) -> SidecarError:
    """Return an error that came as a message."""
    known = failure.reason in Reason.__members__
    return SidecarError(
        Reason(failure.reason) if known else Reason.INTERNAL,
        failure.message,
        metadata=dict(failure.metadata),
        retry_after=seconds(failure.retry_after) if failure.HasField("retry_after") else None,
        field=failure.field,
    )


def _text(words: str) -> str:
    """Return words that can be encoded. Names of files may be no text, and must not take the engine along."""
    return words.encode("utf-8", "replace").decode()
