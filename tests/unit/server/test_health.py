"""Health: each watch is told of all changes, whatever others do with theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest

from daemon.server.health import NOT_SERVING, SERVING, Health
from tests.unit.server.intercepted import FakeContext

NAME = "a.Service"


def watch(health: Health, service: str = NAME) -> AsyncIterator[int]:
    """Return the statuses that a watch of a service is told."""
    context: Any = FakeContext()

    async def statuses() -> AsyncIterator[int]:
        async for answer in health.Watch(HealthCheckRequest(service=service), context):
            yield answer.status

    return statuses()


async def soon(statuses: AsyncIterator[int]) -> int:
    """Return the next status of a watch."""
    async with asyncio.timeout(20):
        return await anext(statuses)


async def test_watch_is_told_of_each_change_once() -> None:
    """What is set again is no change; of a service that is set later, the first status is that it is unknown."""
    health = Health()
    health.set(NAME, serving=False)
    one = watch(health)
    assert await soon(one) == NOT_SERVING
    health.set(NAME, serving=False)
    health.set(NAME, serving=True)
    assert await soon(one) == SERVING
    other = watch(health, "another.Service")
    assert await soon(other) not in (SERVING, NOT_SERVING)
    health.set("another.Service", serving=True)
    assert await soon(other) == SERVING


async def test_watch_outlives_the_end_of_others() -> None:
    """Also if they are not read."""
    health = Health()
    health.set(NAME, serving=True)
    one, ended, unread = watch(health), watch(health), watch(health)
    assert [await soon(each) for each in (one, ended, unread)] == [SERVING] * 3
    waiting = asyncio.create_task(soon(ended))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    health.set(NAME, serving=False)
    assert await soon(one) == NOT_SERVING
    health.set(NAME, serving=True)
    assert await soon(one) == SERVING


async def test_drained_health_stays() -> None:
    """That of the process as well."""
    health = Health()
    health.set(NAME, serving=True)
    one, process = watch(health), watch(health, "")
    assert [await soon(one), await soon(process)] == [SERVING, SERVING]
    health.drain()
    health.set(NAME, serving=True)
    assert [await soon(one), await soon(process)] == [NOT_SERVING, NOT_SERVING]


async def test_check_of_an_unknown_service_is_not_found() -> None:
    """As the protocol of health checks has it."""
    context = FakeContext()
    unknown: Any = context
    with pytest.raises(grpc.aio.AbortError):
        await Health().Check(HealthCheckRequest(service=NAME), unknown)
    assert context.aborted is not None
    assert context.aborted[0] is grpc.StatusCode.NOT_FOUND
