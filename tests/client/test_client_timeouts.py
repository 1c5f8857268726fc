"""Timeouts that callers give: numbers, no limit, and what is none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mlx_sidecar import AsyncClient, Client, DeadlineExceeded, InvalidArgument
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.client.scripted import Script, hello

NO_LIMIT = [None, math.inf, 1e30, 10**25]


@pytest.mark.parametrize("timeout", NO_LIMIT)
def test_endless_timeout_is_no_limit(client: Client, script: Script, timeout: Any) -> None:
    """gRPC takes a deadline that is too far away for one that has passed."""
    script.answer(hello())
    assert client.complete("m", "Hi", timeout=timeout).text == "Hello there"


async def test_endless_timeout_is_no_limit_for_async_calls(aio_daemon: Path, script: Script) -> None:
    """As for the other client."""
    script.answer(hello())
    async with AsyncClient(aio_daemon) as client:
        for endless in NO_LIMIT:
            assert (await client.complete("m", "Hi", timeout=endless)).text == "Hello there"


@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_client_with_an_endless_timeout_is_made(make: Any) -> None:
    """Its calls have no limit; connecting has its own."""
    assert make("/nowhere/s.sock", timeout=math.inf)


def test_stats_of_a_client_with_an_endless_timeout_arrive(client: Client, script: Script) -> None:
    """A call that returns no stream has the timeout of its client."""
    script.answer([pb.StatsResponse()])
    with Client(client.socket, timeout=math.inf) as patient:
        assert patient.stats().models == ()


def test_timeout_that_has_passed_is_a_deadline(client: Client, script: Script) -> None:
    """A program that counts down what is left of its time may come to less than nothing."""
    script.answer(hello())
    with pytest.raises(DeadlineExceeded):
        client.complete("m", "Hi", timeout=-1.0)


@pytest.mark.parametrize("make", [Client, AsyncClient])
@pytest.mark.parametrize("timeout", ["5", None, [1.0]])
def test_client_refuses_a_timeout_of_another_type(make: Any, timeout: Any) -> None:
    """At once, and not in the first call."""
    with pytest.raises(TypeError, match=r"timeout .*seconds.* of type"):
        make("/nowhere/s.sock", timeout=timeout)


def test_call_refuses_a_timeout_of_another_type(client: Client, script: Script) -> None:
    """The text names the parameter."""
    with pytest.raises(TypeError, match=r"timeout .*seconds.* of type str"):
        client.complete("m", "Hi", timeout="5")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="timeout") as refused:
        client.complete("m", "Hi", timeout=math.nan)
    assert refused.value.field == "timeout"
    assert not script.requests
