"""The exit codes of every command, which are part of the public interface, and the error that leads to each."""

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


_HOMELESS = "Could not determine home directory."
"""What `Path.home` says of a user that the system does not know, as in containers."""
_VAGUE = ("; try again", "; try again shortly", ", or try again shortly")
"""How texts end where the time of the next try follows."""


class Answer(NamedTuple):
    """The text that a command prints for an error, and its exit code."""

    text: str
    code: int


def explain(error: BaseException) -> Answer | None:
    """Return the text and the exit code of an expected error; None for a bug, which is shown with its traceback."""
    from daemon.cli.output.formatting import printable

    answer = _answer(error)
    # A text may quote what the files of a model say, and control characters could command a terminal.
    return None if answer is None else answer._replace(text=printable(answer.text))


def _answer(error: BaseException) -> Answer | None:
    # Imported here: only an error needs these modules, and `--help` and `ps` must start fast.
    from daemon.cli.starting import StartError
    from daemon.http.token import TokenError
    from daemon.launchd.errors import ServiceError
    from daemon.server.singleton import AlreadyRunning
    from daemon.server.socket_path import SocketPathError
    from daemon.shared.config import ConfigError
    from mlx_sidecar import DaemonNotRunning, SidecarError, UntrustedSocket

    match error:
        case ConfigError() | SocketPathError() | TokenError() | UntrustedSocket():
            return Answer(str(error), USAGE)
        case DaemonNotRunning() | StartError():
            return Answer(str(error), NOT_RUNNING)
        case AlreadyRunning() | ServiceError():
            return Answer(str(error), REFUSED)
        case RuntimeError() if str(error) == _HOMELESS:
            text = "HOME is not set, and the system knows no home directory of this user; set HOME to one."
            return Answer(text, USAGE)
        case SidecarError():
            return Answer(_refusal(error), REFUSED)
    return None


def document(error: BaseException, text: str, code: int) -> dict[str, dict[str, Any]]:
    """
    Return an error as `--json` prints it. All keys are always present.

    Args:
        error: The error.
        text: Its text, as on standard error.
        code: The exit code.
    """
    from mlx_sidecar import SidecarError

    fields = error if isinstance(error, SidecarError) else SidecarError("", code="")
    return {
        "error": {
            "message": text,
            "exit_status": code,
            "code": fields.code or None,
            "reason": fields.reason or None,
            "field": fields.field,
            "retry_after": fields.retry_after,
            "error_id": fields.error_id,
            "metadata": fields.metadata,
        }
    }


def _refusal(error: SidecarError) -> str:
    notes = [error.reason or error.code, f"error id {error.error_id}" if error.error_id else ""]
    said, retry = str(error), ""
    if error.retry_after is not None:
        for vague in _VAGUE:
            said = said.removesuffix(vague)
        retry = f"; try again in {max(error.retry_after, 0.1):.3g} s"
    return f"{said} ({', '.join(note for note in notes if note)}){retry}"
