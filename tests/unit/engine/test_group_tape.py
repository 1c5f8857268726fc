"""The tape of a group: another rank reads what the first one read, and notices if it would read anything else."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import count

import pytest

from daemon.engine.group.answers import FirstAnswers, RankAnswers
from daemon.engine.group.connection import Connection
from daemon.engine.group.digest import DigestingWire, NoWire
from daemon.engine.group.lockstep import Lockstep
from daemon.engine.group.tape import Diverged, Player, Recorder
from daemon.engine.group.turns import Agreement, FirstRank, HeldWire, follow, listen
from daemon.engine.outbox import Outbox
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.frames import FrameError
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.daemons import wait_until

Pair = tuple[Connection, Connection, list[str]]


@pytest.fixture(name="pair")
def _pair() -> Iterator[Pair]:
    """Return the ends of a connection between two ranks, and the reasons for which either was given up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        two, _ = listener.accept()
    up, down = os.urandom(32), os.urandom(32)
    ended: list[str] = []
    given = [ipc.GroupConnection(fd=end.detach(), up=up, down=down, name="a rank") for end in (one, two)]
    ends = (
        Connection(given[0], leads=True, ended=ended.append),
        Connection(given[1], leads=False, ended=ended.append),
    )
    yield (*ends, ended)
    for end in ends:
        end.close()


class Line(NoWire):
    """A wire that keeps what is sent in a list."""

    def __init__(self, sent: list[ipc.Event]) -> None:
        self._sent = sent

    def send(self, event: ipc.Event) -> None:
        """Keep an event."""
        self._sent.append(event)


class Deciding:
    """
    An engine that decides by a clock.

    Args:
        read: Its clock.
        times: How often it reads it in a turn.
    """

    def __init__(self, read: object, wire: DigestingWire, times: int = 1) -> None:
        self.read = read
        self.times = times
        self.decided: list[object] = []
        self.pause = 1.0
        self.busy = True
        self._wire = wire

    def handle(self, command: ipc.Command) -> None:
        """Decide by a command."""
        self.decided.append(command.call_id)

    def step(self) -> None:
        """Decide by the clock, and send what was decided."""
        for _ in range(self.times):
            value = self.read()  # type: ignore[operator]
            self.decided.append(value)
        failure = ipc.Failure(reason=str(self.decided[-1]))
        self._wire.send(ipc.Event(call_id=1, failure=failure))
        self._wire.flush()


class Two:
    """Two ranks: the first on the test's thread, the other on a thread of its own."""

    def __init__(self, pair: Pair, times: int = 1) -> None:
        first, other, self.ended = pair
        self.ticks = iter(range(100))
        self.settled: list[ipc.GroupOutcome] = []
        self.tape = Recorder([first])
        self.answers = FirstAnswers([first], self.settled.append)
        self.agreement = agreement = Agreement([first], self.ended.append)
        self.sent: list[ipc.Event] = []
        wire = DigestingWire(HeldWire(Line(self.sent), agreement), self.ended.append)
        self.engine = Deciding(self.tape.reader(lambda: float(next(self.ticks))), wire)
        self.rank = FirstRank(self.engine, self.tape, self.answers, agreement, wire)
        self.other_answers = RankAnswers(lambda outcome: other.send(ipc.GroupFrame(ready=outcome)))
        self.failed: list[Exception] = []
        self.ready = threading.Event()
        self.lockstep = Lockstep(lambda: self.tape.place, [first], time.monotonic, self.ended.append)
        threading.Thread(target=listen, args=(1, first, self.answers, agreement, self.lockstep), daemon=True).start()
        self.thread = threading.Thread(target=self._follow, args=(other, times), daemon=True)
        self.thread.start()
        self.ready.wait()

    def _follow(self, other: Connection, times: int) -> None:
        tape = self.other_tape = Player(other)
        wire = DigestingWire(NoWire(), self.ended.append)
        self.other = Deciding(tape.reader(lambda: -1.0), wire, times)
        self.ready.set()
        try:
            follow(self.other, tape, other, self.other_answers, wire)
        except (Diverged, FrameError) as error:
            self.failed.append(error)


def test_ranks_decide_by_the_clock_of_the_first(pair: Pair) -> None:
    """The other rank's own clock, which says -1, decides nothing."""
    two = Two(pair)
    two.rank.handle(ipc.Command(call_id=41))
    for _ in range(3):
        two.rank.step()
    two.rank.handle(ipc.Command(call_id=42))
    wait_until(lambda: len(two.other.decided) == 5, "the other rank has followed")
    pair[0].close()
    two.thread.join()
    assert two.engine.decided == two.other.decided == [41, 0.0, 1.0, 2.0, 42]


def test_ranks_tell_the_same_places(pair: Pair) -> None:
    """By them, ranks that have parted are told from those that compute."""
    two = Two(pair)
    places = set()
    for _ in range(3):
        two.rank.step()
        wait_until(lambda: two.other_tape.place == two.tape.place, "the other rank has come as far")
        places.add(two.tape.place)
    assert len(places) == 3


def test_rank_that_asks_for_more_is_at_another_place(pair: Pair) -> None:
    """It waits for a reading, and the first rank for a pass that the other one has left."""
    two = Two(pair)
    two.tape.begin()
    two.tape.write(ipc.GroupFrame(turn=1))
    two.tape.flush()
    wait_until(lambda: two.other_tape.place > two.tape.place, "the other rank asks")
    two.tape.end()


def test_rank_that_decides_otherwise_ends_the_group(pair: Pair) -> None:
    """With the number of the turn."""
    two = Two(pair)
    two.other.read = lambda: 99.0  # a reading that is not the first rank's
    two.tape.begin = lambda: None  # type: ignore[method-assign] # nothing is told, so that both ranks read as often
    two.rank.step()
    wait_until(lambda: bool(two.ended), "the difference is seen")
    assert two.ended == ["a rank decided otherwise than rank 0 in turn 1"]


def test_events_wait_for_the_turn_before(pair: Pair) -> None:
    """A token that was computed after a difference never leaves. The MLX thread goes on meanwhile."""
    sent: list[ipc.Event] = []
    agreement = Agreement([pair[0]], pair[2].append)
    wire = HeldWire(Line(sent), agreement)
    for turn in (1, 2, 3):
        agreement.turn = turn
        wire.send(ipc.Event(call_id=turn))
        wire.flush()
        agreement.arrived(0, ipc.GroupDigest(turn=turn, digest=7))
    assert [event.call_id for event in sent] == [1]
    agreement.arrived(1, ipc.GroupDigest(turn=1, digest=7))
    assert [event.call_id for event in sent] == [1, 2]
    agreement.arrived(1, ipc.GroupDigest(turn=2, digest=7))
    assert [event.call_id for event in sent] == [1, 2, 3]


def test_rank_that_reads_more_than_the_first_ends(pair: Pair) -> None:
    """Its second reading meets the next turn on the tape."""
    two = Two(pair, times=2)
    two.rank.step()
    two.tape.write(ipc.GroupFrame(turn=2))
    two.tape.flush()
    two.thread.join()
    assert "read where the first did not" in str(two.failed[0])


def test_what_was_told_is_sent_after_a_moment(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank may wait for a pass within a turn, and the others begin it only when they have read on."""
    monkeypatch.setattr("daemon.engine.group.tape._LOOKS", 1)  # a turn outlasts the looks after its beginning
    tape = Recorder([pair[0]])
    tape.start()
    tape.begin()
    tape.write(ipc.GroupFrame(turn=1))
    assert pair[1].receive().turn == 1
    for value in (5.0, 6.0):
        tape.told(value)
        assert list(pair[1].receive().readings.values) == [value]
    tape.end()  # so that its thread rests


def test_turn_that_another_follows_is_told_with_it(pair: Pair) -> None:
    """Each message wakes the other rank. It needs the rest of a turn for the next one alone."""
    two, messages = Two(pair), list[int]()
    send_all = pair[0].send_all

    def counted(bodies: Sequence[bytes]) -> None:
        messages.append(len(bodies))
        send_all(bodies)

    pair[0].send_all = counted  # type: ignore[method-assign]
    two.engine.pause = two.other.pause = 0.0
    two.rank.step()
    two.rank.step()
    assert messages == []
    two.engine.pause = two.other.pause = 1.0
    two.rank.step()  # waits until the first turn is agreed to
    assert len(messages) == 2
    wait_until(lambda: two.agreement.confirmed == 3, "all ranks have agreed")
    assert two.engine.decided == two.other.decided


def test_pause_is_asked_once_a_turn(pair: Pair) -> None:
    """The window in which requests gather moves on when it is asked, so all ranks ask as often."""
    asked: dict[int, int] = {}

    class Asked(Deciding):
        """An engine that counts how often it is asked for its pause."""

        @property
        def pause(self) -> float:
            """Count."""
            asked[id(self)] = asked.get(id(self), 0) + 1
            return 1.0

        @pause.setter
        def pause(self, value: float) -> None:
            """Keep nothing."""

    two = Two(pair)
    two.engine.__class__ = two.other.__class__ = Asked
    assert two.rank.pause == 0.0
    for _ in range(2):
        two.rank.step()
        assert two.rank.pause == two.rank.pause == 1.0
    wait_until(lambda: two.agreement.confirmed == 2, "all ranks have agreed")
    assert asked == {id(two.engine): 2, id(two.other): 2}


def test_figures_are_made_for_a_reader_alone() -> None:
    """Other ranks have none, and a snapshot takes milliseconds in which all of them wait."""
    made = count()

    def figures() -> pb.StatsResponse:
        next(made)
        return pb.StatsResponse()

    Outbox(DigestingWire(NoWire(), print), figures).publish()
    assert next(made) == 0


def test_tape_runs_before_a_turn_is_told(pair: Pair) -> None:
    """Else what sends late could take the turn for over, and rest while this rank waits for the others."""
    two, runs = Two(pair), list[bool]()
    write = two.tape.write

    def noted(frame: ipc.GroupFrame) -> None:
        runs.append(two.tape._runs)
        write(frame)

    two.tape.write = noted  # type: ignore[method-assign]
    two.rank.step()
    assert runs == [True]


def test_other_threads_read_their_own_clock(pair: Pair) -> None:
    """Readings of threads come at no fixed place, so that they are not on the tape."""
    tape = Recorder([pair[0]])
    tape.begin()
    seen: list[float] = []
    thread = threading.Thread(target=lambda: seen.append(tape.told(5.0)))
    thread.start()
    thread.join()
    pair[0].send(ipc.GroupFrame(turn=7))
    assert seen == [5.0]
    assert pair[1].receive().turn == 7


def test_statistics_are_read_aside(pair: Pair) -> None:
    """A rank that answers no Stats calls reads no clock for them."""
    tape = Recorder([pair[0]])
    tape.begin()
    assert tape.aside(lambda: tape.told(5.0))() == 5.0
    assert tape.told(6.0) == 6.0
    tape.end()
    tape.flush()
    assert list(pair[1].receive().readings.values) == [6.0]


def work(answers: RankAnswers, acted: list[object]) -> int:
    """Begin work whose end goes into a list."""
    return answers.ticket(acted.append, lambda: False)


def test_ranks_act_when_all_have_a_result(pair: Pair) -> None:
    """A result of the first rank alone settles nothing."""
    two = Two(pair)
    acted: list[object] = []
    one, other = work(two.answers, acted), work(two.other_answers, acted)
    two.answers.done(one, lambda: acted.append("first"), None)
    assert two.settled == []
    two.other_answers.done(other, lambda: acted.append("other"), None)
    wait_until(lambda: bool(two.settled), "all ranks have reported")
    two.rank.act(two.settled[0])
    wait_until(lambda: len(acted) == 2, "both ranks have acted")
    pair[0].close()
    two.thread.join()
    assert sorted(map(str, acted)) == ["first", "other"]


def test_failure_of_one_rank_fails_the_work_everywhere(pair: Pair) -> None:
    """With that rank's error, under its name."""
    two = Two(pair)
    acted: list[SidecarError] = []
    one, other = two.answers.ticket(acted.append, lambda: False), two.other_answers.ticket(acted.append, lambda: False)
    two.answers.done(one, lambda: None, None)
    two.other_answers.failed(other, acted.append, SidecarError(Reason.MODEL_NOT_FOUND, "it is not there"))
    wait_until(lambda: bool(two.settled), "all ranks have reported")
    two.rank.act(two.settled[0])
    wait_until(lambda: len(acted) == 2, "both ranks have acted")
    pair[0].close()
    two.thread.join()
    assert [error.message for error in acted] == ["a rank: it is not there"] * 2


def test_work_of_a_call_that_ended_is_forgotten(pair: Pair) -> None:
    """Its result holds a prompt, which would stay in memory."""
    answers = RankAnswers(lambda _: None)
    over = [False]
    ticket = answers.ticket(lambda _: None, lambda: over[0])
    over[0] = True
    answers.ticket(lambda _: None, lambda: False)
    answers.act(ipc.GroupOutcome(ticket=ticket))
    assert answers.open == [2]


def test_closed_connection_gives_the_rank_up(pair: Pair) -> None:
    """The reason has the other side's name."""
    pair[1].close()
    with pytest.raises(FrameError):
        pair[0].receive()
    assert pair[2] == ["a rank closed the connection"]


def test_reason_of_the_other_side_is_passed_on(pair: Pair) -> None:
    """It is what the caller of the first rank reads."""
    pair[1].say("its memory is full")
    with pytest.raises(FrameError):
        pair[0].receive()
    assert pair[2] == ["a rank ended: its memory is full"]


@pytest.mark.parametrize(
    ("reason", "rank", "ends"),
    [
        (Reason.INTERNAL, "", True),
        (Reason.MACHINE_EXHAUSTED, "", True),
        (Reason.MACHINE_FAULT, "", True),
        (Reason.MACHINE_FAULT, "1", False),
        (Reason.MODEL_CORRUPT, "", False),
    ],
)
def test_error_that_one_rank_alone_has_ends_it(reason: Reason, rank: str, ends: bool) -> None:
    """The others wait for its part of a pass, and would for minutes. What all ranks have heard of is harmless."""
    ended: list[str] = []
    failure = ipc.Failure(reason=reason, message="no memory", metadata={"rank": rank} if rank else {})
    DigestingWire(NoWire(), ended.append).send(ipc.Event(call_id=1, failure=failure))
    assert bool(ended) == ends
