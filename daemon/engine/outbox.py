"""Sends the engine's events to the parent, each call's last event after the figures that it changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Protocol

from daemon.engine.execution.events import (
    Delta,
    Event,
    Finished,
    FinishReason,
    PrefillProgress,
    PromptLogprobs,
    Started,
)
from daemon.engine.output.detokenizer import Token
from daemon.engine.output.tool_calls import ToolCall
from daemon.engine.prompt.places import Place
from daemon.kv.miss import Miss
from daemon.shared.durations import duration
from daemon.shared.errors import SidecarError
from daemon.shared.failures import failure_of
from daemon.shared.last_events import ends_call
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb


class Wire(Protocol):
    """Takes events to the parent."""

    @property
    def behind(self) -> bool:
        """Whether events that were written wait because the parent does not read."""

    def send(self, event: ipc.Event) -> None:
        """Queue an event; any thread."""

    def flush(self) -> None:
        """Write what was queued; never blocks, any thread."""


class Outbox:
    """
    Sends events. Figures go out before an event that ends a call, so a client that saw the end also sees its effect.

    The deltas of a step are written together, by `flush`. Any other event is written at once, after the queued deltas.

    Args:
        wire: Takes events to the parent.
        figures: Returns fresh statistics; `attach` replaces it.
    """

    def __init__(self, wire: Wire, figures: Callable[[], pb.StatsResponse] = pb.StatsResponse) -> None:
        self._wire = wire
        self._figures = figures

    def attach(self, figures: Callable[[], pb.StatsResponse]) -> None:
        """Take fresh statistics from here on from `figures`, which was built after the outbox."""
        self._figures = figures

    def flush(self) -> None:
        """Write the deltas that were sent."""
        self._wire.flush()

    def accepted(self, call_id: int, prompt_tokens: int) -> None:
        """Tell the size of a prompt."""
        self._write(ipc.Event(call_id=call_id, accepted=ipc.Accepted(prompt_tokens=prompt_tokens)))

    def load(self, call_id: int, event: pb.GetOrLoadResponse) -> None:
        """Send an event of a GetOrLoad call."""
        self._write(ipc.Event(call_id=call_id, load=event))

    def generate(self, call_id: int, event: Event) -> None:
        """Send an event of a Generate call; `Finished` ends the call, unless there are more."""
        if isinstance(event, Finished):
            self._wire.send(self._snapshot())
        more = isinstance(event, Finished) and event.more
        self._wire.send(ipc.Event(call_id=call_id, generate=_response(event), more=more))
        if not isinstance(event, Delta):
            self.flush()

    def invalidated(self, call_id: int, answer: pb.InvalidateResponse) -> None:
        """Answer an Invalidate call."""
        self._write(ipc.Event(call_id=call_id, invalidate=answer))

    def embed(self, call_id: int, event: pb.EmbedResponse) -> None:
        """Send an event of an Embed call."""
        self._write(ipc.Event(call_id=call_id, embed=event))

    def tokenized(self, call_id: int, answer: pb.TokenizeResponse) -> None:
        """Answer a Tokenize call."""
        self._write(ipc.Event(call_id=call_id, tokenize=answer))

    def listed(self, call_id: int, answer: pb.ListModelsResponse) -> None:
        """Answer a ListModels call."""
        self._write(ipc.Event(call_id=call_id, list_models=answer))

    def fail(self, call_id: int, error: SidecarError) -> None:
        """End a call with an error."""
        self._write(ipc.Event(call_id=call_id, failure=failure_of(error)))

    def publish(self) -> None:
        """Send fresh figures, unless older figures wait to be read: a night of unread figures would fill the memory."""
        if not self._wire.behind:
            self._write(self._snapshot())

    def _snapshot(self) -> ipc.Event:
        return ipc.Event(snapshot=self._figures())

    def _write(self, event: ipc.Event) -> None:
        if ends_call(event):
            self._wire.send(self._snapshot())
        self._wire.send(event)
        self.flush()


_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
}


def _response(event: Event) -> pb.GenerateResponse:
    """Return an event of a Generate call as the API's message."""
    match event:
        case Delta():
            return pb.GenerateResponse(delta=_delta(event))
        case Started():
            return pb.GenerateResponse(started=_started(event))
        case PrefillProgress(done, total):
            return pb.GenerateResponse(prefill=pb.PrefillProgress(done=done, total=total))
        case PromptLogprobs(start, tokens):
            scored = pb.PromptLogprobs(start=start, logprobs=map(_logprob, tokens))
            return pb.GenerateResponse(prompt_logprobs=scored)
        case Finished():
            return pb.GenerateResponse(finished=_finished(event))


def _started(event: Started) -> pb.Started:
    return pb.Started(
        request_id=event.request_id,
        model=event.model,
        prompt_tokens=event.prompt_tokens,
        cached_tokens=event.cached_tokens,
        warnings=event.warnings,
        disk_tokens=event.disk_tokens,
        miss=None if event.miss is None else _miss(event.miss, event.place),
    )


def _miss(miss: Miss, place: Place | None) -> pb.Miss:
    return pb.Miss(
        reason=f"MISS_REASON_{miss.reason.name}",
        token=miss.token,
        resume_token=miss.resume_token,
        message=None if place is None else place.message,
        character=None if place is None else place.character,
        seen=None if miss.seen is None else duration(miss.seen),
        differs=[f"NAMESPACE_PART_{part.upper()}" for part in miss.differs],
    )


def _delta(event: Delta) -> pb.Delta:
    piece = event.piece
    message = pb.Delta(
        text=piece.text,
        token_ids=[token.id for token in piece.tokens],
        reasoning=piece.reasoning,
        tool_calls=[_tool_call(call) for call in piece.calls],
        tool_call_deltas=[pb.ToolCallDelta(**asdict(part)) for part in piece.call_pieces],
        index=event.index,
    )
    if event.logprobs:
        message.logprobs.extend(_logprob(token) for token in piece.tokens)
    return message


def _tool_call(call: ToolCall) -> pb.GeneratedToolCall:
    return pb.GeneratedToolCall(index=call.index, id=call.id, name=call.name, arguments_json=call.arguments_json)


def _logprob(token: Token) -> pb.TokenLogprob:
    top = [pb.TopLogprob(token_id=other.id, logprob=other.logprob, text=other.text) for other in token.top]
    return pb.TokenLogprob(token_id=token.id, logprob=token.logprob or 0.0, top=top, text=token.text)


def _finished(event: Finished) -> pb.Finished:
    return pb.Finished(
        reason=_REASONS[event.reason],
        stop_match=event.stop_match,
        usage=pb.Usage(**asdict(event.usage)),
        timings=pb.Timings(**{name: duration(seconds) for name, seconds in asdict(event.timings).items()}),
        index=event.index,
        seed=event.seed,
    )
