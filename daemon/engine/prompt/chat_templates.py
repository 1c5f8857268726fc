"""Renders chat templates in worker processes, which can be killed when a template never ends; a thread cannot."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import structlog

from daemon.engine.prompt.renderer import Renderer
from daemon.engine.prompt.template_shape import TemplateShape
from daemon.shared.errors import Reason, SidecarError, invalid
from daemon.shared.machine_faults import machine_fault

WORKERS = 3
"""Templates that are rendered at the same time. Each worker takes 60 MB, and at most 512 MB more while it renders."""
IDLE_SECONDS = 20.0
"""A worker that was idle for so long is ended. The last worker stays, because a start takes a second."""
BAN_SECONDS = 600.0
STRIKES = 2
"""A template that killed so many workers within BAN_SECONDS is refused unrendered until that time is over."""
_MESSAGE = 200
"""Characters of a template's own message that an error quotes."""
_REMEMBERED = 64
"""Templates that are remembered, with their strikes and with their shapes."""
_COMMAND = (sys.executable, "-P", "-m", "daemon.engine.template_worker")

log = structlog.get_logger()


def local_now() -> float:
    """Return the time of this machine's wall clock, as the seconds since it showed the beginning of 1970."""
    return (datetime.now() - datetime(1970, 1, 1)).total_seconds()  # noqa: DTZ001, DTZ005 - as templates tell it


class Templates:
    """
    Renders conversations in a pool of workers. Any thread may call; it blocks until its answer has come.

    Workers start when they are needed. The order of threads that wait for a worker is not defined.

    Args:
        clock: Seconds that never go back.
        command: Command line of a worker.
        workers: Most workers at a time.
    """

    def __init__(self, clock: Callable[[], float], command: Sequence[str] = _COMMAND, workers: int = WORKERS) -> None:
        self._clock = clock
        self._command = command
        self._lock = threading.Lock()
        self._free = threading.Semaphore(workers)
        self._idle: list[tuple[Renderer, float]] = []
        """Idle workers, each with the time since when; the last is used next."""
        self._busy: set[Renderer] = set()
        self._strikes: OrderedDict[bytes, list[float]] = OrderedDict()
        self._shapes: OrderedDict[bytes, TemplateShape] = OrderedDict()
        self._logged: set[bytes] = set()
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        with self._lock:
            return [worker.pid for worker in (*self._busy, *(worker for worker, _ in self._idle))]

    def render(
        self,
        template: str,
        messages: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
        now: float | None = None,
    ) -> str:
        """
        Return a conversation as text.

        Args:
            template: Source of the template.
            messages: The conversation, as templates expect it.
            options: Other variables of the template, `tools` among them.
            now: What the template is told that the time is, as `local_now` has it; None for the time now.

        Raises:
            SidecarError: INVALID_ARGUMENT if the template refuses it, fails, or takes too much time or memory;
                MACHINE_EXHAUSTED or MACHINE_FAULT if the worker cannot be started.
        """
        digest = _digest(template)
        now = local_now() if now is None else now
        answer = self._answer(digest, {"template": template, "messages": messages, "options": options, "now": now})
        if answer is None:
            raise self._killed(digest)
        if "text" in answer:
            return str(answer["text"])
        if "refused" in answer:
            raise invalid("chat", f"is refused by the model's chat template: {answer['refused'][:_MESSAGE]}")
        raise invalid("chat", f"cannot be rendered by the model's chat template ({answer['raised']})")

    def shape(self, template: str, options: Mapping[str, Any]) -> TemplateShape:
        """
        Return the shape of a template. A worker finds it by trying; then it is remembered.

        A template that takes too much time or memory on the way has the usual shape, and is refused when it renders.

        Args:
            template: Source of the template.
            options: Variables that each conversation gets, such as the special tokens.

        Raises:
            SidecarError: As `render` does.
        """
        digest = _digest(template)
        key = digest + json.dumps(options, sort_keys=True).encode()
        with self._lock:
            if key in self._shapes:
                self._shapes.move_to_end(key)
                return self._shapes[key]
        answer = self._answer(digest, {"probe": template, "options": options})
        shape = TemplateShape.from_json(answer["shape"]) if answer and "shape" in answer else TemplateShape()
        with self._lock:
            self._shapes[key] = shape
            while len(self._shapes) > _REMEMBERED:
                self._shapes.popitem(last=False)
        return shape

    def log_losses(self, template: str) -> None:
        """Log that a template leaves out parts of conversations, once for each template."""
        digest = _digest(template)
        with self._lock:
            if digest in self._logged:
                return
            self._logged.add(digest)
        log.warning("template_leaves_out", template=digest.hex()[:16])

    def trim(self) -> None:
        """End the workers that were idle for IDLE_SECONDS, but not the last. To be called regularly; never blocks."""
        with self._lock:
            spare = len(self._idle) + len(self._busy) - 1
            latest = self._clock() - IDLE_SECONDS
            stale = [entry for entry in self._idle[: max(0, spare)] if entry[1] <= latest]
            self._idle = [entry for entry in self._idle if entry not in stale]
        for worker, _ in stale:
            threading.Thread(target=worker.close, name="trim", daemon=True).start()

    def close(self) -> None:
        """End the workers, also in the middle of their work. Later calls of `render` are refused."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for worker in (*self._busy, *(worker for worker, _ in idle)):
                worker.kill()
        for worker, _ in idle:
            worker.close()

    def _answer(self, digest: bytes, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return a worker's answer about a template that is not banned; None if the worker died."""
        line = json.dumps(wanted).encode() + b"\n"
        with self._free:
            with self._lock:
                self._refuse_if_banned(digest)
            answer = self._ask(line)
        if answer is None and not self._closed:  # or it is `close` that has killed it
            log.warning("template_worker_killed", template=digest.hex()[:16])
        if answer and "errno" in answer:
            raise _unstarted(OSError(int(answer["errno"]), "in the worker"))
        return answer

    def _ask(self, line: bytes) -> dict[str, Any] | None:
        worker = self._take()
        answer = None
        try:
            answer = worker.ask(line)
        finally:
            self._give_back(worker, alive=answer is not None)
        return answer

    def _take(self) -> Renderer:
        """Return a worker that is now busy: the idle worker that was used last, or a new worker."""
        with self._lock:
            if self._closed:
                raise invalid("chat", "cannot be rendered: the engine is shutting down")
            worker = self._idle.pop()[0] if self._idle else None
        if worker is None:
            try:
                worker = Renderer(self._command)
            except OSError as error:
                raise _unstarted(error) from error
        with self._lock:
            self._busy.add(worker)
            if self._closed:  # `close` was called during the start, and did not see this worker
                worker.kill()
        return worker

    def _give_back(self, worker: Renderer, *, alive: bool) -> None:
        """Make a worker idle, or end it if it died or the pool is closed."""
        with self._lock:
            self._busy.discard(worker)
            stays = alive and not self._closed
            if stays:
                self._idle.append((worker, self._clock()))
        if not stays:
            worker.close()

    def _killed(self, digest: bytes) -> SidecarError:
        """Count a strike of a template and return the error of the request."""
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


def _digest(template: str) -> bytes:
    return hashlib.sha256(template.encode("utf-8", "surrogatepass")).digest()


def _unstarted(error: OSError) -> SidecarError:
    cannot = "the process that renders chat templates cannot be started"
    return machine_fault(error, cannot) or SidecarError(Reason.MACHINE_FAULT, f"{cannot}: {error.strerror}")
