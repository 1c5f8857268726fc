"""The tape of a group: another rank reads what the first one read, and notices if it would read anything else."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import count

from daemon.engine.group.digest import DigestingWire, NoWire
from daemon.engine.group.tape import Recorder
from daemon.engine.group.turns import Agreement, HeldWire
from daemon.engine.outbox import Outbox
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.daemons import wait_until
from tests.unit.engine.two_ranks import Deciding, Line, Pair, Two


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


def test_what_was_told_is_sent_after_a_moment(pair: Pair) -> None:
    """The first rank may wait for a pass within a turn, and the others begin it only when they have read on."""
    tape = Recorder([pair[0]])
    tape.start()
    tape.begin()
    tape.write(ipc.GroupFrame(turn=1))
    assert pair[1].receive().turn == 1
    for value in (5.0, 6.0):
        tape.agreed(value)
        assert list(pair[1].receive().readings.values) == [value]


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


def test_other_threads_read_their_own_clock(pair: Pair) -> None:
    """Readings of threads come at no fixed place, so that they are not on the tape."""
    tape = Recorder([pair[0]])
    tape.begin()
    seen: list[float] = []
    thread = threading.Thread(target=lambda: seen.append(tape.agreed(5.0)))
    thread.start()
    thread.join()
    pair[0].send(ipc.GroupFrame(turn=7))
    assert seen == [5.0]
    assert pair[1].receive().turn == 7


def test_statistics_are_read_aside(pair: Pair) -> None:
    """A rank that answers no Stats calls reads no clock for them."""
    tape = Recorder([pair[0]])
    tape.begin()
    assert tape.aside(lambda: tape.agreed(5.0))() == 5.0
    assert tape.agreed(6.0) == 6.0
    tape.end()
    tape.flush()
    assert list(pair[1].receive().readings.values) == [6.0]
