"""Chat templates: rendered in processes that can be killed, because a thread that never ends cannot."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from daemon.engine.prompt.renderer import Renderer
from daemon.shared.errors import Reason, SidecarError, invalid
from daemon.shared.machine_faults import machine_fault

WORKERS = 3
"""Templates that are rendered at the same time. Each worker takes 60 MB, and 512 MB more at most while it renders."""
IDLE_SECONDS = 20.0
"""A worker that had nothing to do for so long is ended, but for one: a start takes a second."""
BAN_SECONDS = 600.0
STRIKES = 2
"""A template whose worker died so often within the time above is refused unrendered, until that time is over."""
_MESSAGE = 200
_REMEMBERED = 64
_COMMAND = (sys.executable, "-P", "-m", "daemon.engine.template_worker")

log = structlog.get_logger()


class Templates:
    """
    Renders conversations, as many at a time as there may be workers; any thread may ask, and waits.

    Workers start when they are needed. Who is next when all are busy is the caller's business.

    Args:
        clock: Seconds that never go back.
        command: Command line of the workers.
        workers: The most of them.
    """

    def __init__(self, clock: Callable[[], float], command: Sequence[str] = _COMMAND, workers: int = WORKERS) -> None:
        self._clock = clock
        self._command = command
        self._lock = threading.Lock()
        self._free = threading.Semaphore(workers)
        self._idle: list[tuple[Renderer, float]] = []
        """Workers without work, and when they ended their last; the one that is used next comes last."""
        self._busy: set[Renderer] = set()
        self._strikes: OrderedDict[bytes, list[float]] = OrderedDict()
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Process ids of its workers."""
        with self._lock:
            return [one.pid for one in (*self._busy, *(one for one, _ in self._idle))]

    def render(self, template: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """
        Return a conversation as text. `options` are variables of the template, `tools` among them.

        Raises:
            SidecarError: INVALID_ARGUMENT if the template refuses it, fails, or takes too much time or memory;
                MACHINE_EXHAUSTED or MACHINE_FAULT if the worker cannot be started.
        """
        wanted = {"template": template, "messages": messages, "options": options}
        line = json.dumps(wanted).encode() + b"\n"
        digest = hashlib.sha256(template.encode("utf-8", "surrogatepass")).digest()
        with self._free:
            with self._lock:
                self._refuse_if_banned(digest)
            answer = self._ask(line)
        if answer is None:
            raise self._killed(digest)
        if "text" in answer:
            return answer["text"]
        if "errno" in answer:
            raise _unstarted(OSError(int(answer["errno"]), "in the worker"))
        if "refused" in answer:
            raise invalid("chat", f"is refused by the model's chat template: {answer['refused'][:_MESSAGE]}")
        raise invalid("chat", f"cannot be rendered by the model's chat template ({answer['raised']})")

    def trim(self) -> None:
        """End all but one of the workers that had nothing to do for long; to be called now and then, never blocks."""
        with self._lock:
            spare = len(self._idle) + len(self._busy) - 1
            before = self._clock() - IDLE_SECONDS
            ended = [one for one in self._idle[: max(0, spare)] if one[1] <= before]
            self._idle = [one for one in self._idle if one not in ended]
        for worker, _ in ended:
            threading.Thread(target=worker.close, name="trim", daemon=True).start()

    def close(self) -> None:
        """End the workers, also in the middle of their work; nothing is rendered any more."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for worker in (*self._busy, *(one for one, _ in idle)):
                worker.kill()
        for worker, _ in idle:
            worker.close()

    def _ask(self, line: bytes) -> dict[str, str] | None:
        """Return a worker's answer; None if it died of the question."""
        worker = self._take()
        answer = None
        try:
            answer = worker.ask(line)
        finally:
            self._give_back(worker, alive=answer is not None)
        return answer

    def _take(self) -> Renderer:
        with self._lock:
            if self._closed:
                raise invalid("chat", "cannot be rendered: the engine ends")
            worker = self._idle.pop()[0] if self._idle else None
        if worker is None:
            try:
                worker = Renderer(self._command)
            except OSError as error:
                raise _unstarted(error) from error
        with self._lock:
            self._busy.add(worker)
            if self._closed:  # meanwhile; it answers nothing
                worker.kill()
        return worker

    def _give_back(self, worker: Renderer, *, alive: bool) -> None:
        with self._lock:
            self._busy.discard(worker)
            stays = alive and not self._closed
            if stays:
                self._idle.append((worker, self._clock()))
        if not stays:
            worker.close()

    def _killed(self, digest: bytes) -> SidecarError:
        log.warning("a chat template took too much time or memory; its worker was ended", template=digest.hex()[:16])
        with self._lock:
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


def _unstarted(error: OSError) -> SidecarError:
    cannot = "the process that renders chat templates cannot be started"
    return machine_fault(error, cannot) or SidecarError(Reason.MACHINE_FAULT, f"{cannot}: {error.strerror}")
