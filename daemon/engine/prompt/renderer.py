"""One process that renders chat templates, as the engine sees it: asked, answered by, killed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from daemon.shared.observed_time import Alarm, ended

PATIENCE_SECONDS = 60.0
"""A worker that says nothing for so long is killed, whatever it waits for; its own limit is of processor time."""
END_SECONDS = 1.0
"""A worker that was killed is waited for so long; the kernel may be in the middle of something for it."""


class Renderer:
    """
    Starts a worker. One thread asks at a time; any may kill.

    Args:
        command: Command line of the worker.

    Raises:
        OSError: If it cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        # With close_fds, Python would fork a process that runs Metal. What it says may quote a prompt: nobody listens.
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            close_fds=False,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, line: bytes) -> dict[str, str] | None:
        """
        Return the worker's answer to a line; None if it died of it.

        Raises:
            ValueError: If what it says is no answer.
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
        parsed: dict[str, str] = json.loads(answer)
        return parsed

    def kill(self) -> None:
        """End it, also in the middle of its work; the thread that asks it gets no answer."""
        self._process.kill()

    def close(self) -> None:
        """End it and give back what it held. For the thread that asks it, or when none does."""
        self._process.kill()
        ended(self._process, END_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
