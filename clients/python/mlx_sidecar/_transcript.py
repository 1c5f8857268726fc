"""Collects the messages of a stream into events and a final result, for both clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from mlx_sidecar._decode import decode
from mlx_sidecar._exceptions import ProtocolError
from mlx_sidecar._messages import ToolCall
from mlx_sidecar._model_info import ModelInfo
from mlx_sidecar._results import (
    Completion,
    Delta,
    Finished,
    GenerateEvent,
    LoadProgress,
    PrefillProgress,
    Started,
    TokenLogprob,
)
from mlx_sidecar.v1 import sidecar_pb2 as pb

EventT_co = TypeVar("EventT_co", covariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)

_KINDS: dict[str | None, Callable[..., GenerateEvent]] = {
    "started": Started,
    "prefill": PrefillProgress,
    "delta": Delta,
    "finished": Finished,
}


class Transcript(Protocol[EventT_co, ResultT_co]):
    """Converts each message of a stream to an event, and all messages to a result."""

    def add(self, message: Any) -> EventT_co | None:
        """Add the next message, and return its event; None if the caller gets none."""

    def result(self) -> ResultT_co:
        """
        Return the result of a stream that has ended.

        Raises:
            ProtocolError: If its last message is missing.
        """


class LoadTranscript:
    """The transcript of a GetOrLoad."""

    def __init__(self) -> None:
        self._info: ModelInfo | None = None

    def add(self, message: pb.GetOrLoadResponse) -> LoadProgress | None:
        """Return progress, and store the model of `ready`."""
        match message.WhichOneof("event"):
            case "progress":
                return decode(LoadProgress, message.progress)
            case "ready":
                self._info = decode(ModelInfo, message.ready)
        return None

    def result(self) -> ModelInfo:
        """Return the model, see `Transcript.result`."""
        if self._info is None:
            raise ProtocolError("the load ended without `ready`")
        return self._info


class GenerateTranscript:
    """The transcript of a Generate."""

    def __init__(self) -> None:
        self._started: Started | None = None
        self._finished: Finished | None = None
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []

    def add(self, message: pb.GenerateResponse) -> GenerateEvent | None:
        """Return the event, and add it to the completion; None for a kind of event that this client does not know."""
        name = message.WhichOneof("event")
        if (kind := _KINDS.get(name)) is None:
            return None
        event = decode(kind, getattr(message, str(name)))
        match event:
            case Started():
                self._started = event
            case Delta(text, token_ids, logprobs, reasoning, calls):
                self._texts.append(text)
                self._token_ids += token_ids
                self._logprobs += logprobs
                self._reasoning.append(reasoning)
                self._calls += [ToolCall(call.id, call.name, call.arguments_json) for call in calls]
            case Finished():
                self._finished = event
        return event

    def result(self) -> Completion:
        """Return the completion, see `Transcript.result`."""
        if self._started is None or self._finished is None:
            raise ProtocolError("the generation ended without `started` or without `finished`")
        return Completion(
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            reason=self._finished.reason,
            stop_match=self._finished.stop_match,
            usage=self._finished.usage,
            timings=self._finished.timings,
            request_id=self._started.request_id,
            model=self._started.model,
            reasoning="".join(self._reasoning),
            tool_calls=tuple(self._calls),
            warnings=self._started.warnings,
        )
