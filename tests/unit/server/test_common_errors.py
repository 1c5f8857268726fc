"""Calls that end together with one error: each gets its own status, and none harms another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from google.rpc import error_details_pb2

from daemon.server.supervision.engine_call import EngineCall
from daemon.shared.errors import Reason, SidecarError
from daemon.v1 import ipc_pb2 as ipc
from tests.unit.server.intercepted import FakeContext, detail, serve


class SlowContext(FakeContext):
    """A context that takes a turn to send a status, as gRPC's does."""

    async def abort(self, code: Any, details: str, trailing_metadata: Any = ()) -> None:
        """Send the status."""
        await asyncio.sleep(0)
        await super().abort(code, details, trailing_metadata)


def events_of(call: EngineCall) -> Callable[..., AsyncIterator[ipc.Event]]:
    """Return a handler that answers with the events of a call."""

    async def behaviour(_request: Any, _context: Any) -> AsyncIterator[ipc.Event]:
        async for event in call.events():
            yield event

    return behaviour


async def test_calls_that_fail_together_each_get_a_status() -> None:
    """An engine that dies gives all its calls one error; the end of one call clears the frames of its own error."""
    calls = [EngineCall(ipc.Command(), lambda _: None) for _ in range(3)]
    contexts = [SlowContext() for _ in calls]
    error = SidecarError(Reason.ENGINE_RESTARTED, "the engine died", retry_after=1)
    for call in calls:
        call.fail(error)
    await asyncio.gather(*(serve(events_of(call), context) for call, context in zip(calls, contexts, strict=True)))
    for context in contexts:
        assert context.rich().message == "the engine died"
        assert detail(context.rich(), error_details_pb2.RetryInfo).retry_delay.seconds == 1
