"""A daemon under load: a slow reader, a full queue and silent connections hold up no other call."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

import pytest

import mlx_sidecar
from mlx_sidecar import Delta
from tests.support.daemons import RunningDaemon, wait_until

FAKE = [sys.executable, "-m", "tests.support.serve_fake"]

Start = Callable[..., RunningDaemon]


def test_slow_reader_gets_fewer_and_larger_deltas(start_daemon: Start) -> None:
    """Ten thousand deltas at once, read late: all text, in order, in few messages."""
    daemon = start_daemon(FAKE)
    with daemon.client() as client, client.generate("burst", "word") as stream:
        wait_until(lambda: client.stats().engine.queued == 0, "the burst is over")
        deltas = [event for event in stream if isinstance(event, Delta)]
    assert sum(len(delta.token_ids) for delta in deltas) == 10_000
    assert len(deltas) < 10_000


def test_request_queue_is_bounded(start_daemon: Start) -> None:
    """One more than max_queue is refused with a time to try again, and Stats counts it."""
    daemon = start_daemon(FAKE, max_queue="2")
    with daemon.client() as client:
        waiting = [client.generate("hold-waiting", "wait") for _ in range(2)]
        wait_until(lambda: client.stats().engine.queued == 2, "two wait")
        with pytest.raises(mlx_sidecar.QueueFull) as refused:
            client.complete("ok", "one too many")
        assert refused.value.retry_after
        assert client.stats().engine.rejected == 1
        for stream in waiting:
            stream.close()
        wait_until(lambda: client.stats().engine.queued == 0, "no request waits")
        assert client.complete("ok", "room again").text


def test_silent_connections_do_not_block_others(start_daemon: Start) -> None:
    """Raw connections and half a preface do not keep others from being served."""
    daemon = start_daemon(FAKE)
    with daemon.client() as client:
        client.stats()
        raw = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        for one in raw:
            one.connect(str(daemon.socket))
            one.send(b"PRI * HTT")
        assert client.complete("ok", "hello").text
        for one in raw:
            one.close()
