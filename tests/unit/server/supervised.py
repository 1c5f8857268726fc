"""Helpers for tests of the supervisor and the router, with fake engines."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from daemon.server.supervision.call_router import CallRouter
from daemon.server.supervision.engine_call import EngineCall
from daemon.server.supervision.supervisor import MOST_BETWEEN_CHECKS, State, Supervisor
from daemon.shared.errors import SidecarError
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support import fake_engine
from tests.support.builders import Clock

PATIENCE = 20.0
"""Seconds after which a test that waits for something has failed."""


class Watched(Supervisor):
    """A supervisor of a fake engine, with its router, that notes its states and can be waited for."""

    def __init__(self, *options: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.states: list[State] = []
        self._changed = asyncio.Event()
        self.router = CallRouter(clock)
        super().__init__([sys.executable, fake_engine.__file__, *options], clock, self.router, self._note)

    def _note(self, state: State) -> None:
        self.states.append(state)
        self._changed.set()

    async def until(self, state: State, times: int = 1) -> None:
        """Wait until a state was entered so often."""
        async with asyncio.timeout(PATIENCE):
            while self.states.count(state) < times:
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def supervising(*options: str, clock: Callable[[], float] = time.monotonic) -> AsyncIterator[Watched]:
    """Keep a fake engine running for the length of a block."""
    supervisor = Watched(*options, clock=clock)
    supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.stop(PATIENCE)


def generate(model: str, text: str = "one two three", **fields: Any) -> ipc.Command:
    """Return a Generate command."""
    return ipc.Command(generate=pb.GenerateRequest(model=model, text=text, **fields))


def opened(supervisor: Watched, model: str, text: str = "one two three") -> EngineCall:
    """Open a Generate call."""
    return supervisor.router.open(generate(model, text))


async def events(call: EngineCall) -> list[ipc.Event]:
    """Return all events of a call."""
    async with asyncio.timeout(PATIENCE):
        return [event async for event in call.events()]


async def error_of(call: EngineCall) -> SidecarError:
    """Return the error that ends a call."""
    with pytest.raises(SidecarError) as caught:
        await events(call)
    return caught.value


async def until_delta(call: EngineCall) -> None:
    """Read a call until its first delta."""
    async with asyncio.timeout(PATIENCE):
        async for event in call.events():
            if event.generate.HasField("delta"):
                return


def passing(supervisor: Supervisor, clock: Clock, seconds: float) -> None:
    """Let time pass in which the parent runs: bit by bit, and it looks at its clock each time."""
    for _ in range(math.ceil(seconds / MOST_BETWEEN_CHECKS)):
        clock.pass_(MOST_BETWEEN_CHECKS)
        supervisor._seen()


def text(of: list[ipc.Event]) -> str:
    """Return the text of a call's deltas."""
    return "".join(event.generate.delta.text for event in of)
