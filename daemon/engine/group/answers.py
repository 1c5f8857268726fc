"""
Results of work off the MLX thread, such as lookups and tokenising, as all ranks of a group act on them: together.

Each rank does the work itself, with its own files. When it is done everywhere, the first rank says so, and all ranks
act on it at the same place of the tape. If it failed at one rank it has failed. If results differ that must not, such
as the content of a model, it has failed as well. Where each rank has a result of its own, such as what lies on its
disk, all act on what they have in common.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from daemon.cache.identity import ModelSource
from daemon.engine.background.answers import Act, Answers, Fail, WorkTicket
from daemon.engine.group.connection import Connection
from daemon.engine.group.digest import RANK
from daemon.engine.group.disk import Local
from daemon.engine.prompt.embedding import PreparedTexts
from daemon.engine.prompt.preparation import PreparedRequest
from daemon.kv.disk.agreement import DifferError, merged
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.failures import error_of, failure_of
from daemon.shared.log_fields import cause
from daemon.v1 import ipc_pb2 as ipc


@dataclass(slots=True)
class _Work:
    """
    Work that has not been acted on.

    Attributes:
        fail: Takes its error.
        over: Whether no call waits for it any more.
        act: Acts on its result; None before it has one.
        local: Its result, if each rank has its own.
    """

    fail: Fail
    over: Callable[[], bool]
    act: Act | None = None
    local: Local[Any] | None = None


class RankAnswers(Answers):
    """
    The part that all ranks share: work is numbered in the order in which it begins, which is the same everywhere.

    What each rank tells of work says what it is. So ranks that begin other work find out, and do not take its result.

    Args:
        report: Takes how work ended at this rank; any thread.
    """

    def __init__(self, report: Callable[[ipc.GroupOutcome], None]) -> None:
        self._report = report
        self._tickets = count(1)
        self._work: dict[int, _Work] = {}
        self._lock = threading.Lock()

    def ticket(self, work: str, fail: Fail, over: Callable[[], bool]) -> WorkTicket:
        """Number work that begins now, and forget that of calls that have ended."""
        ticket = WorkTicket(next(self._tickets), work)
        with self._lock:
            for number in [number for number, each in self._work.items() if each.over()]:
                del self._work[number]
            self._work[ticket.number] = _Work(fail, over)
        return ticket

    @property
    def open(self) -> list[int]:
        """The work that no rank has acted on."""
        with self._lock:
            return list(self._work)

    def done(self, ticket: WorkTicket, act: Act, result: object) -> None:
        """Note a result."""
        local = result if isinstance(result, Local) else None
        number, name = ticket
        with self._lock:
            if number in self._work:
                self._work[number].act = act
                self._work[number].local = local
        value = b"" if local is None else local.told
        self._report(ipc.GroupOutcome(ticket=number, work=name, fingerprint=fingerprint(result), value=value))

    def failed(self, ticket: WorkTicket, fail: Fail, error: SidecarError) -> None:
        """Note an error."""
        self._report(ipc.GroupOutcome(ticket=ticket.number, work=ticket.work, failure=failure_of(error)))

    def act(self, outcome: ipc.GroupOutcome) -> None:
        """Act on the end of work, on the MLX thread. Its result is here: this rank has reported it."""
        with self._lock:
            work = self._work.pop(outcome.ticket, None)
        if work is None:
            return  # its call has ended
        if outcome.HasField("failure"):
            work.fail(error_of(outcome.failure))
        elif work.act is not None:
            if work.local is not None:
                work.local.settle(outcome.value)
            work.act()


class FirstAnswers(RankAnswers):
    """
    The answers of the first rank, which decides when work is done everywhere.

    Args:
        others: Connections to the other ranks.
        settled: Called with the end of work once all ranks have reported it; any thread.
        differs: Called with the reason when ranks did other work; must end the process.
    """

    def __init__(
        self,
        others: Sequence[Connection],
        settled: Callable[[ipc.GroupOutcome], None],
        differs: Callable[[str], None],
    ) -> None:
        super().__init__(lambda outcome: self.reported(0, outcome))
        self._others = others
        self._settled = settled
        self._differs = differs
        self._reports: dict[int, dict[int, ipc.GroupOutcome]] = {}

    @property
    def half(self) -> list[int]:
        """The work that some ranks have reported, and not all."""
        with self._lock:
            return list(self._reports)

    def ticket(self, work: str, fail: Fail, over: Callable[[], bool]) -> WorkTicket:
        """Number work, and forget reports of calls that have ended: a rank may have left their work out."""
        ticket = super().ticket(work, fail, over)
        with self._lock:  # those of work to come stay: another rank may be quicker
            for number in [each for each in self._reports if each < ticket.number and each not in self._work]:
                del self._reports[number]
        return ticket

    def reported(self, rank: int, outcome: ipc.GroupOutcome) -> None:
        """Take how work has ended at a rank; any thread."""
        with self._lock:
            reports = self._reports.setdefault(outcome.ticket, {})
            reports[rank] = outcome
            if len(reports) <= len(self._others):
                return
            del self._reports[outcome.ticket]
        for rank, report in sorted(reports.items()):
            if report.work != reports[0].work:
                name = self._others[rank - 1].name
                self._differs(f"{name} did other work than rank 0: {report.work!r}, not {reports[0].work!r}")
                return
        self._settled(self._verdict(reports))

    def _verdict(self, reports: dict[int, ipc.GroupOutcome]) -> ipc.GroupOutcome:
        ticket = reports[0].ticket
        for rank, outcome in sorted(reports.items()):
            if outcome.HasField("failure"):
                verdict = ipc.GroupOutcome(ticket=ticket, failure=outcome.failure)
                verdict.failure.metadata[RANK] = str(rank)
                if rank:
                    verdict.failure.message = f"{self._others[rank - 1].name}: {outcome.failure.message}"
                return verdict
        for rank, outcome in sorted(reports.items()):
            if outcome.fingerprint != reports[0].fingerprint:
                return ipc.GroupOutcome(ticket=ticket, failure=failure_of(_differs(self._others[rank - 1].name, rank)))
        values = [outcome.value for _, outcome in sorted(reports.items())]
        if not any(values):
            return ipc.GroupOutcome(ticket=ticket)
        try:
            return ipc.GroupOutcome(ticket=ticket, value=merged(values))
        except Exception as error:  # of what a rank told: the work has failed, or it would be awaited for ever
            text = str(error) if isinstance(error, DifferError) else f"a rank told what cannot be read: {cause(error)}"
            return ipc.GroupOutcome(ticket=ticket, failure=failure_of(_fault(text)))


def _fault(text: str) -> SidecarError:
    return SidecarError(Reason.MACHINE_FAULT, text, metadata={RANK: "0"})


def _differs(name: str, rank: int) -> SidecarError:
    return SidecarError(
        Reason.MODEL_CORRUPT,
        f"{name} has other files of this model than rank 0; fetch the same revision on each machine",
        metadata={RANK: str(rank)},
    )


def fingerprint(result: object) -> bytes:
    """
    Return a digest of what ranks must agree on: the content of a model, and the ids of a prompt.

    Small files are no part of a content, and decide as well: which sampling a model recommends, and which ids end an
    answer.
    """
    if isinstance(result, PreparedRequest):
        decides = sorted(result.source.default_sampling.items()), sorted(result.tokenizer.eos_ids)
        parts = repr((result.source.key, result.prompt.tokens, result.prompt.max_tokens, *decides))
    elif isinstance(result, PreparedTexts):
        parts = repr((result.source.key, result.texts, result.shared, sorted(result.message_ends)))
    elif isinstance(result, ModelSource):
        parts = repr(result.key)
    else:
        return b""
    return hashlib.sha256(parts.encode()).digest()
