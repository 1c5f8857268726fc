"""Collects the messages of a stream into events and a final result, for both clients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from mlx_sidecar._decode import decode
from mlx_sidecar._exceptions import ProtocolError
from mlx_sidecar._logprobs import PromptLogprobs, TokenLogprob
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
)
from mlx_sidecar.v1 import sidecar_pb2 as pb

EventT_co = TypeVar("EventT_co", covariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)

_KINDS: dict[str | None, Callable[..., GenerateEvent]] = {
    "started": Started,
    "prefill": PrefillProgress,
    "prompt_logprobs": PromptLogprobs,
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
    """
    The transcript of a Generate.

    Args:
        samples: Answers that the request asks for.
    """

    def __init__(self, samples: int = 1) -> None:
        self._started: Started | None = None
        self._prompt_logprobs: list[TokenLogprob] = []
        self._count = samples or 1
        self._samples: dict[int, _Sample] = {}

    def add(self, message: pb.GenerateResponse) -> GenerateEvent | None:
        """Return the event, and add it to the completion; None for a kind of event that this client does not know."""
        name = message.WhichOneof("event")
        if (kind := _KINDS.get(name)) is None:
            return None
        event = decode(kind, getattr(message, str(name)))
        match event:
            case Started():
                self._started = event
            case PromptLogprobs(_, logprobs):
                self._prompt_logprobs += logprobs
            case Delta():
                self._sample(event.index).add(event)
            case Finished():
                self._sample(event.index).finished = event
        return event

    def _sample(self, index: int) -> _Sample:
        if index >= self._count:
            raise ProtocolError(f"the generation has a sample {index}, which was not asked for")
        return self._samples.setdefault(index, _Sample())

    def result(self) -> Completion:
        """Return the completion, of several samples the first; see `Transcript.result`."""
        return self.results()[0]

    def results(self) -> tuple[Completion, ...]:
        """Return the completion of each sample, see `Transcript.result`."""
        return tuple(self._completion(self._sample(index)) for index in range(self._count))

    def _completion(self, sample: _Sample) -> Completion:
        started, finished = self._started, sample.finished
        if started is None or finished is None:
            raise ProtocolError("the generation ended without `started` or without `finished`")
        return Completion(
            text="".join(sample.texts),
            token_ids=tuple(sample.token_ids),
            logprobs=tuple(sample.logprobs),
            reason=finished.reason,
            stop_match=finished.stop_match,
            usage=finished.usage,
            timings=finished.timings,
            request_id=started.request_id,
            model=started.model,
            reasoning="".join(sample.reasoning),
            tool_calls=tuple(sample.calls),
            index=finished.index,
            seed=finished.seed,
            prompt_logprobs=tuple(self._prompt_logprobs),
            miss=started.miss,
            disk_tokens=started.disk_tokens,
            warnings=started.warnings,
        )


@dataclass(slots=True)
class _Sample:
    """What came of one sample so far."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.reasoning.append(delta.reasoning)
        self.calls += [ToolCall(call.id, call.name, call.arguments_json) for call in delta.tool_calls]
