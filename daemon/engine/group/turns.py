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
from collections import deque
from collections.abc import Callable, Sequence

from daemon.cache.callbacks import ignore
from daemon.engine.group.answers import FirstAnswers, RankAnswers
from daemon.engine.group.connection import Connection
from daemon.engine.group.digest import DigestingWire
from daemon.engine.group.lockstep import Lockstep
from daemon.engine.group.tape import Diverged, Player, Recorder
from daemon.engine.loop import Steps
from daemon.engine.outbox import Wire
from daemon.shared.frames import FrameError
from daemon.v1 import ipc_pb2 as ipc


class Agreement:
    """
    Compares what the ranks decided, on the first rank. Any thread.

    Args:
        others: Connections to the other ranks.
        differs: Called with the reason when a rank decided otherwise; must end the process.

    Attributes:
        turn: The current turn, or the last one.
        confirmed: The last turn that all ranks have agreed to.
        on_confirmed: Called when that has changed.
    """

    def __init__(self, others: Sequence[Connection], differs: Callable[[str], None]) -> None:
        self._others = others
        self._differs = differs
        self._changed = threading.Condition()
        self._digests: list[dict[int, int]] = [{} for _ in range(1 + len(others))]
        """What each rank decided, by turn."""
        self.turn = self.confirmed = 0
        self.on_confirmed: Callable[[], None] = ignore

    def arrived(self, rank: int, digest: ipc.GroupDigest) -> None:
        """Take what a rank decided in a turn."""
        with self._changed:
            self._digests[rank][digest.turn] = digest.digest
            before = self.confirmed
            while all(self.confirmed + 1 in digests for digests in self._digests):
                self._compare(self.confirmed + 1)
            moved = self.confirmed > before
        if moved:
            self.on_confirmed()

    def wait(self, back: int, first: Callable[[], None] = ignore) -> None:
        """
        Wait until all ranks have agreed to the turn that was so many turns before the current one.

        Args:
            back: How many.
            first: Called before, unless they have agreed already.
        """
        if self.confirmed >= self.turn - back:
            return
        first()
        with self._changed:
            self._changed.wait_for(lambda: self.confirmed >= self.turn - back)

    def _compare(self, turn: int) -> None:
        own, *theirs = (digests.pop(turn) for digests in self._digests)
        for other, digest in zip(self._others, theirs, strict=True):
            if digest != own:
                self._differs(f"{other.name} decided otherwise than rank 0 in turn {turn}")
        self.confirmed = turn
        self._changed.notify()


class HeldWire(Wire):
    """
    A wire that keeps events back until all ranks have agreed to the turn before that of the event.

    The MLX thread does not wait for that: the thread that hears of the last agreement sends them.

    Args:
        wire: Takes the events.
        agreement: Compares the ranks.
    """

    def __init__(self, wire: Wire, agreement: Agreement) -> None:
        self._wire = wire
        self._agreement = agreement
        self._lock = threading.Lock()
        self._unflushed: list[ipc.Event] = []
        self._held: deque[tuple[int, list[ipc.Event]]] = deque()
        """The turn that must be confirmed, and the events that wait for it; in order."""
        agreement.on_confirmed = self.release

    @property
    def behind(self) -> bool:
        """Whether events wait because the parent does not read them."""
        return self._wire.behind

    def send(self, event: ipc.Event) -> None:
        """Queue an event."""
        with self._lock:
            self._unflushed.append(event)

    def flush(self) -> None:
        """Let the queued events leave as soon as they may."""
        with self._lock:
            self._held.append((self._agreement.turn - 1, self._unflushed))
            self._unflushed = []
        self.release()

    def release(self) -> None:
        """Write the events that may leave now; any thread."""
        with self._lock:  # held while writing: events that another thread takes later must follow
            while self._held and self._held[0][0] <= self._agreement.confirmed:
                for event in self._held.popleft()[1]:
                    self._wire.send(event)
            self._wire.flush()


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
        self._pause = 0.0

    def handle(self, command: ipc.Command) -> None:
        """Begin or end a call, on all ranks."""
        self._on_all_ranks(ipc.GroupFrame(command=command), lambda: self._engine.handle(command))
        self._tape.flush()

    def act(self, outcome: ipc.GroupOutcome) -> None:
        """Act on the end of work, on all ranks."""
        self._on_all_ranks(ipc.GroupFrame(outcome=outcome), lambda: self._answers.act(outcome))
        self._tape.flush()

    @property
    def pause(self) -> float:
        """Seconds for which a step can wait."""
        return self._pause

    @property
    def busy(self) -> bool:
        """Whether there is work."""
        return self._engine.busy

    def step(self) -> None:
        """Do one turn, on all ranks."""
        self._agreement.turn += 1
        # Or this rank could run ahead without end. The turn before may still be under way.
        self._agreement.wait(2, self._tape.flush)
        turn = self._agreement.turn
        self._on_all_ranks(ipc.GroupFrame(turn=turn), self._turn)
        self._agreement.arrived(0, ipc.GroupDigest(turn=turn, digest=self._wire.digest))
        if self._pause:
            self._tape.flush()

    def _turn(self) -> None:
        self._engine.step()
        self._pause = self._engine.pause  # asked here, as each look moves the batching window on

    def _on_all_ranks(self, frame: ipc.GroupFrame, work: Callable[[], None]) -> None:
        """Tell the other ranks what this one does, and do it; its readings are told meanwhile."""
        self._tape.begin()
        try:
            self._tape.write(frame)
            work()
        finally:
            self._tape.end()


def listen(rank: int, other: Connection, answers: FirstAnswers, agreement: Agreement, lockstep: Lockstep) -> None:
    """Take what another rank sends, until it ends; runs on a thread of the first rank."""
    try:
        while True:
            frame = other.receive()
            if frame.HasField("digest"):
                agreement.arrived(rank, frame.digest)
            elif frame.HasField("ready"):
                answers.reported(rank, frame.ready)
            elif frame.HasField("trouble"):
                lockstep.trouble(other.name, frame.trouble)
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
            _ = engine.pause
            digest = ipc.GroupDigest(turn=frame.turn, digest=wire.digest)
            first.send(ipc.GroupFrame(digest=digest))
        elif kind == "command":
            engine.handle(frame.command)
        elif kind == "outcome":
            answers.act(frame.outcome)
        else:
            raise Diverged(f"this rank reads no {kind} where the first did")
        tape.end()
