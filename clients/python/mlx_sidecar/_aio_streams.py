"""Streams of the asynchronous client: asynchronous iterators of events with a final result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

import grpc

from mlx_sidecar._exceptions import Cancelled, SidecarError
from mlx_sidecar._model_info import ModelInfo
from mlx_sidecar._results import Completion, Delta, GenerateEvent, LoadProgress
from mlx_sidecar._transcript import GenerateTranscript, Transcript

EventT = TypeVar("EventT")
ResultT = TypeVar("ResultT")
StreamT = TypeVar("StreamT", bound="AsyncStream[Any, Any]")


class AsyncStream(Generic[EventT, ResultT]):
    """
    A call that yields events and has a result.

    It is sent when the stream is entered or first read. It is cancelled when it is closed, when its
    `async with` block ends, when the task that reads it is cancelled, and when it is garbage-collected.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[Any]],
        transcript: Transcript[EventT, ResultT],
        failure: Callable[[grpc.RpcError], SidecarError],
    ) -> None:
        self._start = start
        self._transcript = transcript
        self._failure = failure
        self._call: Any = None
        self._messages: AsyncIterator[Any] | None = None
        self._done = False
        self._error: SidecarError | None = None

    def __aiter__(self) -> AsyncIterator[EventT]:
        return self

    async def __anext__(self) -> EventT:
        """
        Wait for the next event.

        Raises:
            SidecarError: If the call failed; see its subclasses.
        """
        while not self._done:
            messages = await self._open()
            try:
                message = await anext(messages)
            except StopAsyncIteration:
                self._done = True
                self._transcript.result()
            except grpc.RpcError as error:
                raise self._fail(self._failure(error)) from error
            except asyncio.CancelledError:
                if task_is_cancelled():
                    self._fail(Cancelled("the task that read the stream was cancelled"))
                    raise
                # grpc.aio also raises this if the call was cancelled, by either side, and not the task.
                raise self._fail(Cancelled("the call was cancelled")) from None
            else:
                if (event := self._transcript.add(message)) is not None:
                    return event
        raise StopAsyncIteration

    async def result(self) -> ResultT:
        """
        Read the stream to its end and return its result, which includes the events read before.

        Raises:
            Cancelled: If the stream was closed before its end.
            SidecarError: If the call failed; see its subclasses.
        """
        async for _ in self:
            pass
        if self._error is not None:
            raise self._error
        return self._transcript.result()

    async def aclose(self) -> None:
        """Cancel the call if it still runs. Closing twice is no error."""
        if not self._done:
            self._fail(Cancelled("the stream was closed before its end"))

    async def _open(self) -> AsyncIterator[Any]:
        if self._messages is None:
            self._loop = asyncio.get_running_loop()
            self._call = await self._start()
            self._messages = aiter(self._call)
            if self._done:
                # The stream was closed while it waited for the connection.
                self._call.cancel()
        return self._messages

    def _fail(self, error: SidecarError) -> SidecarError:
        self._done = True
        self._error = error
        if self._call is not None:
            self._call.cancel()
        return error

    async def __aenter__(self: StreamT) -> StreamT:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # grpc.aio keeps an unread call alive. Garbage collection can run in any thread, hence the thread-safe call.
        if getattr(self, "_call", None) is not None and not self._done and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._call.cancel)

    def __repr__(self) -> str:
        state = "ended" if self._done else "running" if self._call is not None else "not sent"
        return f"<mlx_sidecar.{type(self).__name__} {state}>"


def task_is_cancelled() -> bool:
    """Tell whether asyncio cancels the running task; if not, a CancelledError in it is only grpc.aio's."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class AsyncLoadStream(AsyncStream[LoadProgress, ModelInfo]):
    """A load; iterates `LoadProgress`, its result is a `ModelInfo`."""


class AsyncGenerateStream(AsyncStream[GenerateEvent, Completion]):
    """A generation; iterates `GenerateEvent`s, its result is a `Completion`, of several samples the first."""

    _transcript: GenerateTranscript

    async def results(self) -> tuple[Completion, ...]:
        """
        Read the stream to its end and return the completion of each sample, in the order of their indexes.

        Raises:
            Cancelled: If the stream was closed before its end.
            SidecarError: If the call failed; see its subclasses.
        """
        await self.result()
        return self._transcript.results()

    async def text(self, index: int = 0) -> AsyncIterator[str]:
        """
        Iterate over the text alone. The call is cancelled when this iterator is closed or abandoned.

        Args:
            index: The sample whose text it is; `results` has those of the others afterwards.

        Raises:
            SidecarError: If the call failed; see its subclasses.
        """
        try:
            async for event in self:
                if isinstance(event, Delta) and event.text and event.index == index:
                    yield event.text
        finally:
            await self.aclose()
