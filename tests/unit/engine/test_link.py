"""Events that several threads send are written once each, and each thread's in its order."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from daemon.engine.frame_writer import FrameWriter
from daemon.engine.loop import Link, Loop
from daemon.engine.outbox import Outbox
from daemon.shared.frames import read_frame
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb

THREADS, EVENTS = 3, 2000


@pytest.fixture(name="written")
def _written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return what is written, in order."""
    written: list[bytes] = []
    monkeypatch.setattr(FrameWriter, "write", lambda _, frames: written.append(frames))
    return written


@pytest.fixture(name="hurry", autouse=True)
def _hurry() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.fixture(name="link")
def _link() -> Iterator[Link]:
    """Return a link that was not started: its thread would end this process when the parent is gone."""
    ours, theirs = socket.socketpair()
    link = Link(ours, Loop(time.monotonic), lambda: 0)
    yield link
    link._writer.close()
    link._event_loop.close()
    ours.close()
    theirs.close()


async def events_in(frames: bytes) -> list[ipc.Event]:
    """Return the events of some frames."""
    reader = asyncio.StreamReader()
    reader.feed_data(frames)
    reader.feed_eof()
    events = []
    while (event := await read_frame(reader, ipc.Event)) is not None:
        events.append(event)
    return events


def test_no_engine_event_is_lost_doubled_or_reordered(link: Link, written: list[bytes]) -> None:
    """Pool threads tell of downloads while the MLX thread sends deltas."""

    def send(call: int) -> None:
        for number in range(EVENTS):
            link.send(ipc.Event(call_id=call, accepted=ipc.Accepted(prompt_tokens=number)))
            if number % 3:
                link.flush()
        link.flush()

    threads = [threading.Thread(target=send, args=[call]) for call in range(1, THREADS + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    came: dict[int, list[int]] = {}
    for event in asyncio.run(events_in(b"".join(written))):
        came.setdefault(event.call_id, []).append(event.accepted.prompt_tokens)
    assert came == {call: list(range(EVENTS)) for call in range(1, THREADS + 1)}


def test_engine_events_are_written_together_on_flush(link: Link, written: list[bytes]) -> None:
    for number in range(3):
        link.send(ipc.Event(call_id=number))
    assert not written
    link.flush()
    link.flush()
    (frames,) = written
    assert [event.call_id for event in asyncio.run(events_in(frames))] == [0, 1, 2]


def test_stats_are_skipped_while_older_ones_are_unread(link: Link, written: list[bytes]) -> None:
    """A parent that is stopped over night would find those of each second; what calls are told is never left out."""
    outbox = Outbox(link, pb.StatsResponse)
    link._writer._empty.clear()
    for _ in range(100):
        outbox.publish()
    assert not written
    outbox.accepted(1, 7)
    assert [event.WhichOneof("body") for event in asyncio.run(events_in(b"".join(written)))] == ["accepted"]
    link._writer._empty.set()
    outbox.publish()
    assert len(written) == 2
