"""Chat templates: rendered in a process that can be killed, because a thread that never ends cannot."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from daemon.errors import SidecarError, invalid
from daemon.watching import Alarm

PATIENCE_SECONDS = 60.0
"""A worker that says nothing for so long is killed, whatever it waits for; its own limit is of processor time."""
BAN_SECONDS = 600.0
STRIKES = 2
"""A template whose worker died so often within the time above is refused unrendered, until that time is over."""
_MESSAGE = 200
_REMEMBERED = 64
_COMMAND = (sys.executable, "-P", "-m", "daemon.engine.template_worker")

log = structlog.get_logger()


class Templates:
    """
    Renders conversations, one at a time; any thread may ask, and waits. The worker starts with the first.

    Args:
        clock: Seconds that never go back.
        command: Command line of the worker.
    """

    def __init__(self, clock: Callable[[], float], command: Sequence[str] = _COMMAND) -> None:
        self._clock = clock
        self._command = command
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None
        self._strikes: OrderedDict[bytes, list[float]] = OrderedDict()
        self._closed = False

    def render(self, template: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """
        Return a conversation as text. `options` are variables of the template, `tools` among them.

        Raises:
            SidecarError: INVALID_ARGUMENT if the template refuses it, fails, or takes too much time or memory.
        """
        wanted = {"template": template, "messages": messages, "options": options}
        line = json.dumps(wanted).encode() + b"\n"
        digest = hashlib.sha256(template.encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            self._refuse_if_banned(digest)
            answer = self._ask(line)
            if answer is None:
                raise self._killed(digest)
        if "text" in answer:
            return answer["text"]
        if "refused" in answer:
            raise invalid("chat", f"is refused by the model's chat template: {answer['refused'][:_MESSAGE]}")
        raise invalid("chat", f"cannot be rendered by the model's chat template ({answer['raised']})")

    def close(self) -> None:
        """End the worker, also in the middle of its work; nothing is rendered any more."""
        self._closed = True
        worker = self._worker
        if worker is not None:
            worker.kill()
        with self._lock:
            self._end()

    def _ask(self, line: bytes) -> dict[str, str] | None:
        """Return the worker's answer; None if it died of the question."""
        if self._closed:
            raise invalid("chat", "cannot be rendered: the engine ends")
        worker = self._worker = self._worker or self._start()
        timer = Alarm(PATIENCE_SECONDS, worker.kill)
        timer.start()
        try:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write(line)
            worker.stdin.flush()
            answer = worker.stdout.readline()
        except BrokenPipeError:
            answer = b""
        finally:
            timer.cancel()
        if not answer.endswith(b"\n"):
            self._end()
            return None
        parsed: dict[str, str] = json.loads(answer)
        return parsed

    def _start(self) -> subprocess.Popen[bytes]:
        # With close_fds, Python would fork a process that runs Metal. What it says may quote a prompt: nobody listens.
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            close_fds=False,
        )

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.communicate()

    def _killed(self, digest: bytes) -> SidecarError:
        log.warning("a chat template took too much time or memory; its worker was ended", template=digest.hex()[:16])
        strikes = self._strikes.setdefault(digest, [])
        strikes.append(self._clock())
        while len(self._strikes) > _REMEMBERED:
            self._strikes.popitem(last=False)
        return invalid("chat", "takes the model's chat template too much time or memory to render; shorten it")

    def _refuse_if_banned(self, digest: bytes) -> None:
        strikes = self._strikes.get(digest, [])
        recent = [moment for moment in strikes if self._clock() - moment < BAN_SECONDS]
        if len(recent) >= STRIKES:
            raise invalid("chat", "is not rendered: the model's chat template never ended; send text instead")
