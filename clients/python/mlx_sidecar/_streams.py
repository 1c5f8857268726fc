"""Streams of the synchronous client: iterators of events with a final result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

import grpc

from mlx_sidecar._exceptions import Cancelled, SidecarError
from mlx_sidecar._model_info import ModelInfo
from mlx_sidecar._results import Completion, Delta, GenerateEvent, LoadProgress
from mlx_sidecar._transcript import GenerateTranscript, Transcript

EventT = TypeVar("EventT")
ResultT = TypeVar("ResultT")
StreamT = TypeVar("StreamT", bound="Stream[Any, Any]")


class Stream(Generic[EventT, ResultT]):
    """
    A running call that yields events and has a result.

    It is cancelled when it is closed, when its `with` block ends, when Ctrl-C interrupts a read, and when it is
    garbage-collected.
    """

    def __init__(
        self,
        call: Any,
        transcript: Transcript[EventT, ResultT],
        failure: Callable[[grpc.RpcError], SidecarError],
    ) -> None:
        self._call = call
        self._transcript = transcript
        self._failure = failure
        self._done = False
        self._error: SidecarError | None = None

    def __iter__(self) -> Iterator[EventT]:
        return self

    def __next__(self) -> EventT:
        """
        Wait for the next event.

        Raises:
            SidecarError: If the call failed; see its subclasses.
        """
        while not self._done:
            try:
                message = next(self._call)
            except StopIteration:
                self._done = True
                self._transcript.result()
            except grpc.RpcError as error:
                self._done = True
                self._error = self._failure(error)
                raise self._error from error
            except BaseException:  # Ctrl-C: an interactive session keeps its traceback, and with that the stream
                self.close()
                raise
            else:
                if (event := self._transcript.add(message)) is not None:
                    return event
        raise StopIteration

    def result(self) -> ResultT:
        """
        Read the stream to its end and return its result, which includes the events read before.

        Raises:
            Cancelled: If the stream was closed before its end.
            SidecarError: If the call failed; see its subclasses.
        """
        for _ in self:
            pass
        if self._error is not None:
            raise self._error
        return self._transcript.result()

    def close(self) -> None:
        """Cancel the call if it still runs. Closing twice is no error."""
        if not self._done:
            self._done = True
            self._error = Cancelled("the stream was closed before its end")
            self._call.cancel()

    def __enter__(self: StreamT) -> StreamT:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_error"):
            self.close()

    def __repr__(self) -> str:
        return f"<mlx_sidecar.{type(self).__name__} {'ended' if self._done else 'running'}>"


class LoadStream(Stream[LoadProgress, ModelInfo]):
    """A running load; iterates `LoadProgress`, its result is a `ModelInfo`."""


class GenerateStream(Stream[GenerateEvent, Completion]):
    """A running generation; iterates `GenerateEvent`s, its result is a `Completion`, of several samples the first."""

    _transcript: GenerateTranscript

    def results(self) -> tuple[Completion, ...]:
        """
        Read the stream to its end and return the completion of each sample, in the order of their indexes.

        Raises:
            Cancelled: If the stream was closed before its end.
            SidecarError: If the call failed; see its subclasses.
        """
        self.result()
        return self._transcript.results()

    def text(self, index: int = 0) -> Iterator[str]:
        """
        Iterate over the text alone. The call is cancelled when this iterator is closed or abandoned.

        Args:
            index: The sample whose text it is; `results` has those of the others afterwards.

        Raises:
            SidecarError: If the call failed; see its subclasses.
        """
        try:
            for event in self:
                if isinstance(event, Delta) and event.text and event.index == index:
                    yield event.text
        finally:
            self.close()
