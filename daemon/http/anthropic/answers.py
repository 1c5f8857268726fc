"""
Anthropic's answers: the events of a generation become a message, whole or as the events of a stream. Pure.

A stream has blocks one after the other, each of one kind. A piece of another kind ends the block that is open:

    thinking ──► its signature ──► text ──► call ──► call ──► text …

A call that turns out to be none is cut short where it is: a stream cannot take it back. Its text follows as text, and
the answer does not end with `tool_use`, unless another call is whole. A whole answer has the text alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from daemon.http.anthropic.answer_types import (
    BlockDelta,
    BlockStart,
    BlockStop,
    CacheCreation,
    Content,
    Ending,
    InputDelta,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    OutputDetails,
    Piece,
    SignatureDelta,
    StopReason,
    StreamEvent,
    TextContent,
    TextDelta,
    ThinkingContent,
    ThinkingDelta,
    ToolUseContent,
    Usage,
)
from daemon.http.anthropic.signatures import signature
from mlx_sidecar import Delta, Finished, GeneratedToolCall, GenerateEvent, Started, ToolCallDelta
from mlx_sidecar import Usage as Counted

HOUR_SECONDS = 3600.0
"""The longer of the two times for which a prompt is kept."""


class MessageStream:
    """
    The events of a streamed message.

    Args:
        kept: Seconds for which the prompt is kept; None if it has no mark.
        omitted: Whether the text of the thinking is left to the signature.
    """

    def __init__(self, *, kept: float | None = None, omitted: bool = False) -> None:
        self._kept = kept
        self._omitted = omitted
        self._index = -1
        self._open = ""
        """Type of the block that is open; empty if none is."""
        self._thought: list[str] = []

    def events(self, event: GenerateEvent) -> Iterator[StreamEvent]:
        """Yield what a client gets of an event."""
        match event:
            case Started():
                counted = Counted(event.prompt_tokens, event.cached_tokens, 0)
                yield MessageStart(message=_message(event, [], None, usage(counted, self._kept)))
            case Delta():
                yield from self._delta(event)
            case Finished():
                yield from self._close()
                yield MessageDelta(delta=_ending(event), usage=usage(event.usage, self._kept))
                yield MessageStop()

    def _delta(self, delta: Delta) -> Iterator[StreamEvent]:
        """Yield the parts of a delta. What goes on with the open call is before all else, as it came before."""
        for piece in delta.tool_call_deltas:
            if piece.id:
                break
            yield from self._call(piece)
        if delta.reasoning:
            self._thought.append(delta.reasoning)
            yield from self._into(ThinkingContent())
            if not self._omitted:
                yield self._piece(ThinkingDelta(thinking=delta.reasoning))
        if delta.text:
            yield from self._into(TextContent())
            yield self._piece(TextDelta(text=delta.text))
        yield from self._begun(delta.tool_call_deltas)

    def _begun(self, pieces: Sequence[ToolCallDelta]) -> Iterator[StreamEvent]:
        """Yield the pieces of calls from the first on that begins among them."""
        first = next((number for number, piece in enumerate(pieces) if piece.id), len(pieces))
        for piece in pieces[first:]:
            yield from self._call(piece)

    def _call(self, piece: ToolCallDelta) -> Iterator[StreamEvent]:
        if piece.withdrawn:
            yield from self._close()
            return
        if piece.id:
            yield from self._close()
            yield from self._into(ToolUseContent(id=piece.id, name=piece.name, input={}))
        if piece.arguments_json:
            yield self._piece(InputDelta(partial_json=piece.arguments_json))

    def _into(self, block: Content) -> Iterator[StreamEvent]:
        """Begin a block, unless one of its type is open."""
        if self._open != block.type:
            yield from self._close()
            self._open = block.type
            self._index += 1
            yield BlockStart(index=self._index, content_block=block)

    def _close(self) -> Iterator[StreamEvent]:
        if self._open == "thinking":
            text = "".join(self._thought)
            self._thought.clear()
            yield self._piece(SignatureDelta(signature=signature(text, omitted=self._omitted)))
        if self._open:
            yield BlockStop(index=self._index)
        self._open = ""

    def _piece(self, piece: Piece) -> BlockDelta:
        return BlockDelta(index=self._index, delta=piece)


def message(seen: Sequence[GenerateEvent], *, kept: float | None = None, omitted: bool = False) -> Message:
    """Return a whole message; see `MessageStream` for the arguments."""
    (started,) = [event for event in seen if isinstance(event, Started)]
    (finished,) = [event for event in seen if isinstance(event, Finished)]
    content: list[Content] = []
    for event in seen:
        for block in _blocks(event) if isinstance(event, Delta) else ():
            _append(content, block)
    for block in content:
        if isinstance(block, ThinkingContent):
            block.signature = signature(block.thinking, omitted=omitted)
            block.thinking = "" if omitted else block.thinking
    return _message(started, content, finished, usage(finished.usage, kept))


def _blocks(delta: Delta) -> Iterator[Content]:
    """Yield what a delta makes whole, in the order of a stream: a call that began before it is before all else."""
    begun = {piece.index for piece in delta.tool_call_deltas if piece.id}
    yield from (_used(call) for call in delta.tool_calls if call.index not in begun)
    if delta.reasoning:
        yield ThinkingContent(thinking=delta.reasoning)
    if delta.text:
        yield TextContent(text=delta.text)
    yield from (_used(call) for call in delta.tool_calls if call.index in begun)


def _used(call: GeneratedToolCall) -> ToolUseContent:
    return ToolUseContent(id=call.id, name=call.name, input=json.loads(call.arguments_json))


def _append(content: list[Content], block: Content) -> None:
    """Add a block; text and thinking go on with the last block if that is of their kind."""
    match content[-1] if content else None, block:
        case TextContent() as last, TextContent():
            last.text += block.text
        case ThinkingContent() as last, ThinkingContent():
            last.thinking += block.thinking
        case _:
            content.append(block)


def usage(counted: Counted, kept: float | None) -> Usage:
    """
    Return tokens as Anthropic counts them.

    Args:
        counted: As the daemon counts them.
        kept: Seconds for which the prompt is kept; what was computed of it counts as kept then. None if it is not.
    """
    computed = counted.prompt_tokens - counted.cached_tokens
    created = 0 if kept is None else computed
    long = kept == HOUR_SECONDS
    return Usage(
        input_tokens=computed - created,
        cache_creation_input_tokens=created,
        cache_read_input_tokens=counted.cached_tokens,
        cache_creation=CacheCreation(
            ephemeral_5m_input_tokens=0 if long else created, ephemeral_1h_input_tokens=created if long else 0
        ),
        output_tokens=counted.completion_tokens,
        output_tokens_details=OutputDetails(thinking_tokens=counted.reasoning_tokens),
    )


def _message(started: Started, content: list[Content], finished: Finished | None, counted: Usage) -> Message:
    ending = None if finished is None else _ending(finished)
    return Message(
        id=f"msg_{started.request_id}",
        model=started.model,
        content=content,
        stop_reason=ending.stop_reason if ending else None,
        stop_sequence=ending.stop_sequence if ending else None,
        usage=counted,
    )


def _ending(finished: Finished) -> Ending:
    reasons: dict[str, StopReason] = {"length": "max_tokens", "tool_calls": "tool_use"}
    if finished.stop_match:
        return Ending(stop_reason="stop_sequence", stop_sequence=finished.stop_match)
    return Ending(stop_reason=reasons.get(finished.reason, "end_turn"), stop_sequence=None)
