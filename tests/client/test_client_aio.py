"""The asynchronous client has the surface of the other one, and behaves like it under asyncio."""

from __future__ import annotations

import asyncio
import inspect
import socket as sockets
from pathlib import Path
from typing import Any

import pytest

from mlx_sidecar import (
    AsyncClient,
    AsyncGenerateStream,
    AsyncLoadStream,
    Cancelled,
    Client,
    ConnectionLost,
    DaemonNotRunning,
    DeadlineExceeded,
    Delta,
    EngineRestarted,
    Finished,
    GenerateStream,
    InvalidArgument,
    LoadStream,
    Miss,
    PrefillProgress,
    ProtocolError,
    SidecarError,
    Started,
)
from mlx_sidecar._exceptions import REASONS
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.client.scripted import HANG, PATIENCE, Fail, Script, delta, finished, hello, started


async def cancelled(script: Script) -> bool:
    """Wait until the daemon has seen its call end."""
    return await asyncio.to_thread(script.cancelled.wait, PATIENCE)


@pytest.mark.parametrize(
    ("blocking", "asynchronous"),
    [(Client, AsyncClient), (LoadStream, AsyncLoadStream), (GenerateStream, AsyncGenerateStream)],
)
def test_both_clients_have_the_same_surface(blocking: type[Any], asynchronous: type[Any]) -> None:
    """The same methods with the same parameters, apart from `aclose`."""

    def surface(kind: type[Any]) -> dict[str, list[Any]]:
        methods = {
            name: list(inspect.signature(member).parameters.values())
            for name, member in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }
        return {name.replace("aclose", "close"): parameters for name, parameters in methods.items()}

    assert surface(blocking) == surface(asynchronous)


def test_both_clients_are_made_alike() -> None:
    """With the same parameters and defaults."""
    assert inspect.signature(Client) == inspect.signature(AsyncClient)


async def test_async_events_and_result_match_the_daemon(aio_daemon: Path, script: Script) -> None:
    """In order, and the result has all of it."""
    script.answer(hello())
    async with AsyncClient(aio_daemon) as client:
        stream = client.generate("m", [1, 2], seed=3)
        events = [event async for event in stream]
        completion = await stream.result()
    assert [type(event) for event in events] == [Started, PrefillProgress, Delta, Delta, Delta, Finished]
    assert (completion.text, completion.reason) == ("Hello there", "stop")
    (request,) = script.requests
    assert (list(request.tokens.ids), request.sampling.seed) == ([1, 2], 3)


async def test_async_keep_and_miss_reach_the_other_side(aio_daemon: Path, script: Script) -> None:
    script.answer([started(request_id="r", miss=pb.Miss(reason=pb.MISS_REASON_EVICTED, token=48)), finished(1)])
    async with AsyncClient(aio_daemon) as client:
        completion = await client.complete("m", [1, 2], keep=3600)

    assert completion.miss == Miss("evicted", 48, 0, None, None, None, ())
    assert script.requests[0].cache.keep.ToSeconds() == 3600


async def test_async_text_alone_can_be_read(aio_daemon: Path, script: Script) -> None:
    """Empty pieces are not yielded."""
    script.answer(hello())
    async with AsyncClient(aio_daemon) as client:
        assert [text async for text in client.generate("m", "Hi").text()] == ["Hello", " there"]


async def test_async_samples_come_apart(aio_daemon: Path, script: Script) -> None:
    """And `complete` refuses several, as the other client does."""
    one = pb.GenerateResponse(seq=1, delta=pb.Delta(text="one", index=1))
    script.answer([started(request_id="r1"), one, finished(2, index=1, seed=9), finished(3, index=0, seed=8)])
    async with AsyncClient(aio_daemon) as client:
        samples = await client.complete_samples("m", "Hi", samples=2, temperature=1)
        assert [(sample.text, sample.seed) for sample in samples] == [("", 8), ("one", 9)]
        assert [text async for text in client.generate("m", "Hi", samples=2).text(1)] == ["one"]
        with pytest.raises(InvalidArgument):
            await client.complete("m", "Hi", samples=2)


async def test_every_sync_call_has_an_async_twin(aio_daemon: Path, script: Script) -> None:
    """One of each."""
    ready = pb.GetOrLoadResponse(ready=pb.ModelInfo(model="m", outcome=pb.LOAD_OUTCOME_LOADED))
    progress = pb.GetOrLoadResponse(progress=pb.LoadProgress(stage=pb.LOAD_STAGE_LOADING, bytes_done=1))
    dropped = pb.InvalidateResponse(blocks=3)
    stats = pb.StatsResponse(engine=pb.EngineStats(state=pb.ENGINE_STATE_READY))
    script.answer([progress, ready], [ready], hello(), [dropped], [dropped], [dropped], [stats])
    async with AsyncClient(aio_daemon) as client:
        stream = client.get_or_load("m", ttl=5)
        assert [event.stage async for event in stream] == ["loading"]
        assert (await stream.result()).outcome == "loaded"
        assert (await client.load("m", pin=True)).model == "m"
        assert (await client.complete("m", "Hi")).text == "Hello there"
        assert (await client.invalidate_model("m")).blocks == 3
        assert (await client.invalidate_prefix("m", "Once")).blocks == 3
        assert (await client.invalidate_all()).blocks == 3
        assert (await client.stats()).engine.state == "ready"
    assert [type(request).__name__ for request in script.requests] == [
        *["GetOrLoadRequest"] * 2,
        "GenerateRequest",
        *["InvalidateRequest"] * 3,
        "StatsRequest",
    ]


@pytest.mark.parametrize("reason", REASONS)
async def test_each_reason_has_its_exception(aio_daemon: Path, script: Script, reason: str) -> None:
    """The same as for the other client."""
    script.answer([started(), Fail(REASONS[reason].code, reason, metadata={"error_id": "e1"})])
    async with AsyncClient(aio_daemon) as client:
        with pytest.raises(SidecarError) as caught:
            await client.complete("m", "Hi")
    assert type(caught.value) is REASONS[reason]
    assert (caught.value.reason, caught.value.error_id) == (reason, "e1")


async def test_a_unary_failure_is_typed(aio_daemon: Path, script: Script) -> None:
    """Unary calls are decoded like streams."""
    script.answer([Fail("INTERNAL", "INTERNAL")])
    async with AsyncClient(aio_daemon) as client:
        with pytest.raises(REASONS["INTERNAL"]):
            await client.stats()


async def test_crash_before_first_message_is_retried(aio_daemon: Path, script: Script) -> None:
    """And none after it."""
    crash = Fail("UNAVAILABLE", "ENGINE_RESTARTED")
    script.answer([crash], hello(), [started(), crash])
    async with AsyncClient(aio_daemon) as client:
        assert (await client.complete("m", "Hi")).text == "Hello there"
        with pytest.raises(EngineRestarted):
            await client.complete("m", "Hi")
    assert len(script.requests) == 3


async def test_a_deadline_that_passes_is_typed(aio_daemon: Path, script: Script) -> None:
    """`timeout` is the call's deadline."""
    script.answer([HANG])
    async with AsyncClient(aio_daemon) as client:
        with pytest.raises(DeadlineExceeded):
            await client.complete("m", "Hi", timeout=0.05)
    assert await cancelled(script)


async def test_call_cancelled_by_daemon_spares_the_task(aio_daemon: Path, script: Script) -> None:
    """grpc.aio raises asyncio's own exception here, which would end the caller's task without a trace."""
    script.answer([Fail("CANCELLED")])
    async with AsyncClient(aio_daemon) as client:
        with pytest.raises(Cancelled):
            await client.complete("m", "Hi")
        with pytest.raises(Cancelled):
            await client.stats()


async def test_truncated_answer_is_no_completion(aio_daemon: Path, script: Script) -> None:
    """However it is read."""
    script.answer([started()])
    async with AsyncClient(aio_daemon) as client:
        with pytest.raises(ProtocolError):
            await client.complete("m", "Hi")


async def test_leaving_the_block_cancels_the_call(aio_daemon: Path, script: Script) -> None:
    """What the stream would have resulted in is not known."""
    script.answer([started(), HANG])
    async with AsyncClient(aio_daemon) as client:
        async with client.generate("m", "Hi") as stream:
            assert isinstance(await anext(stream), Started)
        assert await cancelled(script)
        assert [event async for event in stream] == []
        with pytest.raises(Cancelled):
            await stream.result()


async def test_an_abandoned_stream_cancels_the_call(aio_daemon: Path, script: Script) -> None:
    """Nobody refers to the stream after `break`."""
    script.answer([started(), HANG])
    async with AsyncClient(aio_daemon) as client:
        async for _ in client.generate("m", "Hi"):
            break
        assert await cancelled(script)


async def test_abandoned_text_iterator_cancels_the_call(aio_daemon: Path, script: Script) -> None:
    """The same for text."""
    script.answer([started(), delta(1, "Hello"), HANG])
    async with AsyncClient(aio_daemon) as client:
        async for text in client.generate("m", "Hi").text():
            assert text == "Hello"
            break
        assert await cancelled(script)


async def test_cancelling_the_task_cancels_the_call(aio_daemon: Path, script: Script) -> None:
    """The task ends as cancelled, not with an exception of ours."""
    script.answer([started(), HANG])
    async with AsyncClient(aio_daemon) as client:
        stream = client.generate("m", "Hi")
        await anext(stream)
        task = asyncio.create_task(stream.result())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await cancelled(script)


async def test_closing_a_stream_wakes_its_reader(aio_daemon: Path, script: Script) -> None:
    """The reader's task goes on; it was not the one that was cancelled."""
    script.answer([started(), HANG])
    async with AsyncClient(aio_daemon) as client:
        stream = client.generate("m", "Hi")
        await anext(stream)
        reader = asyncio.create_task(stream.result())
        await asyncio.sleep(0)
        await stream.aclose()
        await stream.aclose()
        with pytest.raises(Cancelled):
            await reader
        assert await cancelled(script)


async def test_closing_the_client_cancels_its_streams(aio_daemon: Path, script: Script) -> None:
    """And no call can be made afterwards."""
    script.answer([started(), HANG])
    client = AsyncClient(aio_daemon)
    stream = client.generate("m", "Hi")
    await anext(stream)
    await client.aclose()
    await client.aclose()
    with pytest.raises(Cancelled):
        await stream.result()
    with pytest.raises(RuntimeError, match="closed"):
        await client.stats()
    assert repr(client).endswith("closed>")


async def test_closing_the_async_client_wakes_waiting_tasks(aio_daemon: Path, script: Script) -> None:
    """Their tasks go on; they were not the ones that were cancelled."""
    script.answer([HANG])
    async with AsyncClient(aio_daemon) as client:
        waiter = asyncio.create_task(client.stats())
        assert await asyncio.to_thread(script.asked.wait, PATIENCE)
    with pytest.raises(Cancelled):
        await waiter


async def test_stream_closed_while_connecting_is_not_sent(socket: Path) -> None:
    """Its reader learns of it as soon as the connection is there, or is known not to be."""
    async with AsyncClient(socket, timeout=0.05) as client:
        stream = client.generate("m", "Hi")
        reader = asyncio.create_task(stream.result())
        await asyncio.sleep(0)
        await stream.aclose()
        with pytest.raises(DaemonNotRunning):
            await reader
        with pytest.raises(Cancelled):
            await stream.result()


async def test_many_streams_run_at_once(aio_daemon: Path, script: Script) -> None:
    """Over one channel."""
    script.answer(hello())
    async with AsyncClient(aio_daemon) as client:
        completions = await asyncio.gather(*(client.complete("m", "Hi") for _ in range(16)))
    assert {completion.text for completion in completions} == {"Hello there"}


async def test_a_large_answer_arrives(aio_daemon: Path, script: Script) -> None:
    """gRPC's own limit is 4 MiB."""
    script.answer([started(), delta(1, "x" * 5_000_000), finished(2)])
    async with AsyncClient(aio_daemon) as client:
        assert len((await client.complete("m", "Hi")).text) == 5_000_000


async def test_no_socket_means_that_no_daemon_runs(socket: Path) -> None:
    """The message names the socket and says what to do."""
    async with AsyncClient(socket, timeout=0.05) as client:
        with pytest.raises(DaemonNotRunning, match="start it with: mlx-sidecar serve") as caught:
            await client.stats()
    assert str(socket) in str(caught.value)


async def test_silent_daemon_is_not_reported_as_absent(socket: Path) -> None:
    """One that is stopped, or very busy."""
    with sockets.socket(sockets.AF_UNIX) as listener:
        listener.bind(str(socket))
        listener.listen()
        async with AsyncClient(socket, timeout=0.1) as client:
            with pytest.raises(ConnectionLost, match="it does not answer in time; try again"):
                await anext(client.generate("m", "Hi"))


def test_async_client_needs_no_event_loop_until_used(socket: Path) -> None:
    """It can be made at import time; its stream says what became of it."""
    client = AsyncClient(socket)
    assert repr(client) == f"<mlx_sidecar.AsyncClient socket='{socket}' idle>"
    assert repr(client.generate("m", "Hi")) == "<mlx_sidecar.AsyncGenerateStream not sent>"


async def test_a_client_that_is_not_closed_warns(aio_daemon: Path, script: Script) -> None:
    """As the other one does."""
    script.answer([pb.StatsResponse()])
    clients = [AsyncClient(aio_daemon)]
    await clients[0].stats()
    with pytest.warns(ResourceWarning, match="unclosed <mlx_sidecar.AsyncClient"):
        clients.clear()
