"""The engine's end of a worker process that renders chat templates."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from daemon.shared.observed_time import Alarm, ended

PATIENCE_SECONDS = 60.0
"""A worker without an answer after this time is killed. Its own limit counts processor time, not waiting."""
END_SECONDS = 1.0
"""Longest wait for a killed worker to end; the kernel may be in the middle of a call for it."""


class Renderer:
    """
    Starts a worker process and sends it work. One thread asks at a time; any thread may kill.

    Args:
        command: Command line of the worker.

    Raises:
        OSError: If the worker cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        # With close_fds, Python would fork a process that runs Metal. Errors of the worker may quote a prompt, so they
        # go nowhere.
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            close_fds=False,
        )

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def ask(self, line: bytes) -> dict[str, Any] | None:
        """
        Return the worker's answer to a line; None if the worker died meanwhile.

        Raises:
            ValueError: If the answer is no JSON.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        timer = Alarm(PATIENCE_SECONDS, process.kill)
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            return None
        finally:
            timer.cancel()
        if not answer.endswith(b"\n"):
            return None
        parsed: dict[str, Any] = json.loads(answer)
        return parsed

    def kill(self) -> None:
        """End the worker, also in the middle of its work; `ask` then returns None."""
        self._process.kill()

    def close(self) -> None:
        """End the worker and close its pipes. Only for the thread that asks, or while no thread does."""
        self._process.kill()
        ended(self._process, END_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
