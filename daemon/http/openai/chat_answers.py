"""OpenAI's answers to chats: the events of a generation become a message, whole or as chunks of a stream. Pure."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence

from daemon.http.generation import Answer
from daemon.http.openai.chat_types import (
    AnsweredCall,
    AnsweredFunction,
    AnsweredMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChunkChoice,
)
from daemon.http.openai.logprobs import chat_scores
from daemon.http.openai.sampling import total, usage
from mlx_sidecar import Delta, Finished, GeneratedToolCall, GenerateEvent, Started, ToolCallDelta


def completion(answers: Sequence[Answer], now: float | None = None) -> ChatCompletion:
    """Return a whole answer; `answers` are its samples."""
    started = answers[0].started
    return ChatCompletion(
        id=answer_id(started),
        object="chat.completion",
        created=int(time.time() if now is None else now),
        model=started.model,
        choices=[_whole_choice(answer) for answer in answers],
        usage=usage(total([answer.finished.usage for answer in answers])),
    )


def _whole_choice(answer: Answer) -> ChatChoice:
    message = AnsweredMessage(role="assistant", content=answer.text or None, refusal=None)
    if not answer.text and not answer.calls:
        message.content = ""
    if answer.reasoning:
        message.reasoning_content = answer.reasoning
    if answer.calls:
        message.tool_calls = [_whole_call(call) for call in answer.calls]
    scores = chat_scores(answer.logprobs) if answer.logprobs else None
    end = answer.finished
    return ChatChoice(index=end.index, message=message, logprobs=scores, finish_reason=end.reason)


def answer_id(started: Started) -> str:
    """Return the id of an answer. It has the request's id of the daemon's log."""
    return f"chatcmpl-{started.request_id}"


def _whole_call(call: GeneratedToolCall) -> AnsweredCall:
    function = AnsweredFunction(name=call.name, arguments=call.arguments_json)
    return AnsweredCall(index=call.index, id=call.id, type="function", function=function)


class ChatStream:
    """
    The chunks of a streamed answer.

    Args:
        samples: Answers that were asked for.
        include_usage: Whether a last chunk has the usage.
        now: Seconds since 1970; None for the time of the first event.
    """

    def __init__(self, *, samples: int = 1, include_usage: bool, now: float | None = None) -> None:
        self._samples = samples
        self._include_usage = include_usage
        self._now = now
        self._id = self._model = ""
        self._ends: list[Finished] = []
        self._void: Counter[int] = Counter()
        """Calls of each sample that were begun and turned out to be none. The daemon uses their indexes again."""

    def chunks(self, event: GenerateEvent) -> Iterator[ChatChunk]:
        """Yield what a client gets of an event."""
        match event:
            case Started():
                self._id, self._model = answer_id(event), event.model
                self._now = time.time() if self._now is None else self._now
                for index in range(self._samples):
                    yield self._chunk(index, AnsweredMessage(role="assistant", content=""))
            case Delta():
                yield from self._delta(event)
            case Finished():
                self._ends.append(event)
                yield self._chunk(event.index, AnsweredMessage.model_construct(set()), event.reason)
                if self._include_usage and len(self._ends) == self._samples:
                    yield self._last()

    def _delta(self, delta: Delta) -> Iterator[ChatChunk]:
        pieces = list(self._pieces(delta))
        if delta.logprobs and not pieces:
            pieces = [AnsweredMessage(content="")]  # tokens of reasoning or of a call that is not whole yet
        for number, piece in enumerate(pieces):
            chunk = self._chunk(delta.index, piece)
            if delta.logprobs and number == 0:
                chunk.choices[0].logprobs = chat_scores(delta.logprobs)
            yield chunk

    def _pieces(self, delta: Delta) -> Iterator[AnsweredMessage]:
        """Yield the parts of a delta, each on its own: reasoning, text, pieces of calls, as they come in an answer."""
        if delta.reasoning:
            yield AnsweredMessage(reasoning_content=delta.reasoning)
        if delta.text:
            yield AnsweredMessage(content=delta.text)
        for call in delta.tool_call_deltas:
            if call.withdrawn:
                # OpenAI's streams cannot take back what they sent. The call stays cut short, under its own index.
                self._void[delta.index] += 1
            else:
                yield AnsweredMessage(tool_calls=[_piece_of(call, self._void[delta.index])])

    def _chunk(self, index: int, delta: AnsweredMessage, reason: str | None = None) -> ChatChunk:
        choice = ChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=reason)
        chunk = self._empty([choice])
        if self._include_usage:
            chunk.usage = None  # as OpenAI's: null in each chunk but the last
        return chunk

    def _last(self) -> ChatChunk:
        chunk = self._empty([])
        chunk.usage = usage(total([end.usage for end in self._ends]))
        return chunk

    def _empty(self, choices: list[ChunkChoice]) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=int(self._now or 0),
            model=self._model,
            choices=choices,
        )


def _piece_of(call: ToolCallDelta, void: int) -> AnsweredCall:
    """Return a piece of a call; id, type and name are in its first piece alone."""
    index = call.index + void
    if not call.id:
        return AnsweredCall(index=index, function=AnsweredFunction(arguments=call.arguments_json))
    function = AnsweredFunction(name=call.name, arguments=call.arguments_json)
    return AnsweredCall(index=index, id=call.id, type="function", function=function)
