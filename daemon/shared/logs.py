"""
Logging set-up: structlog and the standard library's loggers write the same lines.

A terminal gets coloured text, a file or a pipe one JSON object a line. A line has only the fields that `log_fields.py`
permits. Tracebacks have places and classes, no texts or values: those could be a request's.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import stat
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import structlog

from daemon.shared.log_fields import Words, permitted
from daemon.shared.log_frames import frames, library_event
from daemon.shared.observed_time import polls

if TYPE_CHECKING:
    import asyncio

MAX_FILE_BYTES = 10 << 20
KEPT_FILES = 5
"""Size at which the log file is rotated, and how many old files are kept."""
CLAIM_SECONDS = 2.0
"""Wait for the log file of a process that is just ending."""
_CLAIM_POLL_SECONDS = 0.05

_BRING_HANDLERS = ("asyncio", "grpc", "huggingface_hub", "mlx_lm", "transformers")
_CHATTY = ("httpcore", "httpx", "urllib3")
_FIRST = ("timestamp", "level", "event", "process", "rpc", "code", "reason", "model")
"""Fields that a line begins with, because an eye looks for them; the others follow in the order of their names."""
_installed: list[logging.Handler] = []
_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]

log = structlog.get_logger()


def configure(level: str, log_file: Path | None, wait: float = CLAIM_SECONDS) -> None:
    """
    Send all logs of this process to stderr, or to `log_file`. A terminal on stderr gets them in any case.

    One process alone writes a given file: two would rotate it under each other. If another process has it, or it cannot
    be opened, that is reported once on stderr, which then gets the logs. May be called again, for example after an
    import of a library that installs handlers.

    Args:
        level: "debug", "info", "warning" or "error".
        log_file: File of mode 0600 that is rotated at 10 MiB, five old ones kept; None for stderr.
        wait: Seconds to wait for a process that has the file.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    file = _open_file(log_file, wait) if log_file is not None else None
    handlers: list[logging.Handler] = [] if file is None else [file]
    if file is None or sys.stderr.isatty():
        handlers.append(_stderr_handler())
    _install(handlers)
    logging.getLogger().setLevel(number)
    for name in _BRING_HANDLERS:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    warnings.showwarning = _show_warning
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def reopen_on_hangup(
    loop: asyncio.AbstractEventLoop, level: str, log_file: Path | None, stop: Callable[[], None]
) -> None:
    """
    Let SIGHUP configure the logs anew, which opens the log file anew. Only on the main thread.

    Args:
        loop: The event loop.
        level, log_file: As `configure` takes them.
        stop: Called instead if stderr is a terminal: what shows the logs was closed.
    """
    if sys.stderr.isatty():
        loop.add_signal_handler(signal.SIGHUP, stop)
    else:
        loop.add_signal_handler(signal.SIGHUP, lambda: configure(level, log_file, 0.0))


def take_over() -> None:
    """Log the exceptions that end a thread or are ignored by Python, which would print their texts."""
    threading.excepthook = lambda args: log.error("thread_crashed", exc_info=args.exc_value)
    sys.unraisablehook = lambda args: log.error("exception_ignored", exc_info=args.exc_value)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    log.warning("library_warning", error=category.__qualname__, source=f"{Path(filename).name}:{lineno}")


def _install(handlers: list[logging.Handler]) -> None:
    root = logging.getLogger()
    while _installed:
        old = _installed.pop()
        root.removeHandler(old)
        if old not in handlers:
            with suppress(OSError):  # a full disk did not take the last lines
                old.close()
    for new in handlers:
        root.addHandler(new)
        _installed.append(new)


def _stderr_handler() -> logging.Handler:
    handler = _QuietStream(sys.stderr)
    handler.setFormatter(_text_formatter() if sys.stderr.isatty() else _json_formatter())
    return handler


def _text_formatter() -> logging.Formatter:
    # The default traceback on a console is rich's, which prints local variables.
    text = structlog.dev.ConsoleRenderer(
        colors=not os.environ.get("NO_COLOR"), exception_formatter=structlog.dev.plain_traceback
    )
    return _formatter(text)


def _json_formatter() -> logging.Formatter:
    return _formatter(structlog.processors.JSONRenderer())


def _formatter(*last: structlog.typing.Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        pass_foreign_args=True,
        processors=[_permitted, *last],
    )


def _permitted(_logger: Any, _method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Return the fields of an event that may be logged, of ours or of a library."""
    record: logging.LogRecord = fields.pop("_record")
    if fields.pop("_from_structlog"):
        fields["event"] = Words(fields["event"])
    else:
        fields["event"] = library_event(record, fields.pop("positional_args", ()))
        fields["source"] = f"{record.module}:{record.lineno}"
    fields.pop("stack_info", None)
    error = _exception(fields.pop("exc_info", None))
    if error is not None:
        fields["exception"] = frames(error)
    kept = permitted(fields)
    return {name: kept[name] for name in (*_FIRST, *sorted(kept.keys() - set(_FIRST))) if name in kept}


def _exception(given: Any) -> BaseException | None:
    """Return the exception of `exc_info`, which may be an exception, a tuple or a flag."""
    if isinstance(given, BaseException):
        return given
    if isinstance(given, tuple):
        return given[1] if isinstance(given[1], BaseException) else None
    return sys.exc_info()[1] if given else None


class _QuietStream(logging.StreamHandler[TextIO]):
    """A handler that drops lines which it cannot write. The standard handler would print their values."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Do nothing."""


class _PrivateFile(RotatingFileHandler):
    """
    A rotating file of mode 0600, locked. A failure to write it is reported on stderr once, until a write succeeds.

    Args:
        path: The file.
        wait: Seconds to wait for a process that has it.
    """

    def __init__(self, path: Path, wait: float) -> None:
        self._lost = 0
        """Records that were not written since the last that was."""
        self._wait = wait
        super().__init__(path, maxBytes=MAX_FILE_BYTES, backupCount=KEPT_FILES, encoding="utf-8")
        self._wait = 0.0  # for the files that follow, which are new

    def is_at(self, path: Path) -> bool:
        """Tell whether a path leads to the file that this writes."""
        if self.stream is None:  # the last rotation failed
            return False
        with suppress(OSError, ValueError):
            return os.path.samestat(os.fstat(self.stream.fileno()), path.stat())
        return False

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", opener=self._open_private)

    def _open_private(self, path: str, flags: int) -> int:
        # O_NONBLOCK: a pipe without a reader would block.
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.fchmod(fd, 0o600)
                _claim(fd, self._wait)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def emit(self, record: logging.LogRecord) -> None:
        lost_before = self._lost
        super().emit(record)
        if self._lost == lost_before:
            self._lost = 0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        self._lost += 1
        if self._lost == 1:
            _report(Path(self.baseFilename), sys.exc_info()[1], "its lines are lost until it can be")


def _claim(fd: int, wait: float) -> None:
    """
    Lock a log file.

    Raises:
        OSError: If a process has it that does not end.
    """
    if not any(_locked(fd) for _ in polls(wait, _CLAIM_POLL_SECONDS)):
        raise OSError(errno.EBUSY, "another process writes it; each needs a log_file of its own")


def _locked(fd: int) -> bool:
    """Try to lock a file, and tell whether no other process has it. Some file systems have no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _open_file(path: Path, wait: float = 0.0) -> logging.Handler | None:
    for handler in _installed:
        if isinstance(handler, _PrivateFile) and handler.is_at(path):
            return handler  # its lock would be in the way of another one
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = _PrivateFile(path, wait)
    except OSError as error:
        _report(path, error, "stderr gets the log instead")
        return None
    handler.setFormatter(_json_formatter())
    return handler


def _report(path: Path, error: BaseException | None, effect: str) -> None:
    reason = error.strerror if isinstance(error, OSError) else error
    with suppress(OSError, ValueError):  # of a service it is a file on the same disk; a line that is lost fails no call
        sys.stderr.write(f"mlx-sidecar: the log file {path} cannot be written ({reason}); {effect}\n")
