"""
The turns of a group: the first rank leads, the others follow the tape.

    rank 0   Loop -> FirstRank -> Engine        commands come from the parent, outcomes from `answers.py`
                        | tape
    rank 1            follow() -> Engine        the same calls, in the same order

After each turn a rank sends the digest of what it decided. The first rank lets no event leave before all ranks have
agreed to the turn before. A token that is read in a turn was computed from those of earlier turns. So a difference
ends the group before a token leaves that was computed from it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from daemon.engine.group.answers import FirstAnswers, RankAnswers
from daemon.engine.group.connection import Connection
from daemon.engine.group.digest import DigestingWire
from daemon.engine.group.tape import Diverged, Player, Recorder
from daemon.engine.loop import Steps
from daemon.shared.frames import FrameError
from daemon.v1 import ipc_pb2 as ipc


class Agreement:
    """
    Compares what the ranks decided, on the first rank.

    Args:
        others: Connections to the other ranks.
    """

    def __init__(self, others: Sequence[Connection]) -> None:
        self._others = others
        self._changed = threading.Condition()
        self._digests: list[dict[int, int]] = [{} for _ in others]
        self._own: dict[int, int] = {}
        self.turn = 0

    def arrived(self, rank: int, digest: ipc.GroupDigest) -> None:
        """Take the digest of another rank; any thread."""
        with self._changed:
            self._digests[rank - 1][digest.turn] = digest.digest
            self._changed.notify()

    def ended(self, digest: int) -> None:
        """Note what this rank decided in the current turn."""
        self._own[self.turn] = digest

    def confirm(self, back: int = 1) -> None:
        """
        Wait until all ranks have agreed to the turn that was so many turns before the current one.

        Raises:
            Diverged: If one did not.
        """
        for turn in [turn for turn in self._own if turn <= self.turn - back]:
            own = self._own.pop(turn)
            for other, digests in zip(self._others, self._digests, strict=True):
                with self._changed:
                    while turn not in digests:
                        self._changed.wait()
                    theirs = digests.pop(turn)
                if theirs != own:
                    raise Diverged(f"{other.name} decided otherwise than rank 0 in turn {turn}")


class FirstRank:
    """
    The engine of the first rank: what the loop does with it, all ranks do.

    Args:
        engine: This rank's engine.
        tape: Told to the others.
        answers: Has the results of work on other threads.
        agreement: Compares the ranks.
        wire: Adds up this rank's decisions.
    """

    def __init__(
        self, engine: Steps, tape: Recorder, answers: FirstAnswers, agreement: Agreement, wire: DigestingWire
    ) -> None:
        self._engine = engine
        self._tape = tape
        self._answers = answers
        self._agreement = agreement
        self._wire = wire

    def handle(self, command: ipc.Command) -> None:
        """Begin or end a call, on all ranks."""
        self._told(ipc.GroupFrame(command=command), lambda: self._engine.handle(command))

    def act(self, outcome: ipc.GroupOutcome) -> None:
        """Act on the end of work, on all ranks."""
        self._told(ipc.GroupFrame(outcome=outcome), lambda: self._answers.act(outcome))

    @property
    def pause(self) -> float:
        """Seconds for which a step can wait."""
        pause = 0.0

        def ask() -> None:
            nonlocal pause
            pause = self._engine.pause

        self._told(ipc.GroupFrame(pause=True), ask)
        return pause

    @property
    def busy(self) -> bool:
        """Whether there is work."""
        return self._engine.busy

    def step(self) -> None:
        """Do one turn, on all ranks."""
        self._agreement.turn += 1
        self._agreement.confirm(2)  # or this rank could run ahead without end; the turn before may still be under way
        self._told(ipc.GroupFrame(turn=self._agreement.turn), self._engine.step)
        self._agreement.ended(self._wire.digest)

    def _told(self, frame: ipc.GroupFrame, work: Callable[[], None]) -> None:
        self._tape.write(frame)
        self._tape.begin()
        try:
            work()
        finally:
            self._tape.end()


def listen(rank: int, other: Connection, answers: FirstAnswers, agreement: Agreement) -> None:
    """Take what another rank sends, until it ends; runs on a thread of the first rank."""
    try:
        while True:
            frame = other.receive()
            if frame.HasField("digest"):
                agreement.arrived(rank, frame.digest)
            elif frame.HasField("ready"):
                answers.reported(rank, frame.ready)
    except FrameError as error:
        other.broke(error)


def follow(engine: Steps, tape: Player, first: Connection, answers: RankAnswers, wire: DigestingWire) -> None:
    """
    Do what the tape says, until the first rank ends.

    Raises:
        Diverged: If this rank read a clock where the first did not.
        FrameError: If the first rank sent what is no frame.
    """
    while True:
        frame = tape.next()
        tape.begin()
        kind = frame.WhichOneof("body")
        if kind == "turn":
            engine.step()
            digest = ipc.GroupDigest(turn=frame.turn, digest=wire.digest)
            first.send(ipc.GroupFrame(digest=digest))
        elif kind == "command":
            engine.handle(frame.command)
        elif kind == "pause":
            _ = engine.pause
        elif kind == "outcome":
            answers.act(frame.outcome)
        else:
            raise Diverged(f"this rank reads no {kind} where the first did")
        tape.end()
