"""Exit codes of every command, and which error ends in which. They are part of the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mlx_sidecar import SidecarError

OK = 0
REFUSED = 1
USAGE = 2
NOT_RUNNING = 3
INTERRUPTED = 130

MEANINGS = {
    OK: "done",
    REFUSED: "refused or failed; the reason is on stderr",
    USAGE: "wrong usage or configuration",
    NOT_RUNNING: "the daemon is not running",
    INTERRUPTED: "interrupted",
}

EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:<4} {meaning}" for code, meaning in MEANINGS.items())
"""The end of `mlx-sidecar --help`."""


class Answer(NamedTuple):
    """What to say about an error, and the exit code."""

    text: str
    code: int


def explain(error: BaseException) -> Answer | None:
    """Return what a person is told about `error`; None if it is a bug, whose traceback is worth seeing."""
    # Imported here: an error may cost some milliseconds, `--help` and `ps` need none of it.
    from daemon.cli.starting import StartError
    from daemon.launchd.errors import ServiceError
    from daemon.server.singleton import AlreadyRunning
    from daemon.server.socket_path import SocketPathError
    from daemon.shared.config import ConfigError
    from mlx_sidecar import DaemonNotRunning, SidecarError, UntrustedSocket

    match error:
        case ConfigError() | SocketPathError() | UntrustedSocket():
            return Answer(str(error), USAGE)
        case DaemonNotRunning() | StartError():
            return Answer(str(error), NOT_RUNNING)
        case AlreadyRunning() | ServiceError():
            return Answer(str(error), REFUSED)
        case SidecarError():
            return Answer(_refusal(error), REFUSED)
    return None


def document(error: BaseException, text: str, code: int) -> dict[str, dict[str, Any]]:
    """
    Return an error as `--json` prints it. Every key is always there.

    Args:
        error: The error.
        text: Its sentence, as on standard error.
        code: The exit status.
    """
    from mlx_sidecar import SidecarError

    said = error if isinstance(error, SidecarError) else SidecarError("", code="")
    return {
        "error": {
            "message": text,
            "exit_status": code,
            "code": said.code or None,
            "reason": said.reason or None,
            "field": said.field,
            "retry_after": said.retry_after,
            "error_id": said.error_id,
            "metadata": said.metadata,
        }
    }


def _refusal(error: SidecarError) -> str:
    notes = [error.reason or error.code, f"error id {error.error_id}" if error.error_id else ""]
    text = f"{error} ({', '.join(note for note in notes if note)})"
    if error.retry_after is not None:
        text += f"; try again in {max(error.retry_after, 0.1):.3g} s"
    return text
