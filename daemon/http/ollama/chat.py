"""Ollama's chat: requests become calls to the daemon, and its events become answers. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from daemon.http.generation import Answer, Ask
from daemon.http.ollama.chat_types import AnsweredCall, AnsweredFunction, AnsweredMessage, ChatPiece, ChatRequest, Tool
from daemon.http.ollama.conversation import turns
from daemon.http.ollama.figures import Figures, scores
from daemon.http.ollama.names import daemon_name
from daemon.http.ollama.sampling import generation
from mlx_sidecar import Delta, Finished, GeneratedToolCall, GenerateEvent, Started
from mlx_sidecar import Message as Turn
from mlx_sidecar import Tool as Offered


def ask(request: ChatRequest) -> Ask:
    """
    Return the call that a request asks for.

    Raises:
        Problem: If a parameter has no effect without another.
    """
    options = generation(request)
    if request.tools:
        options["tools"] = [_offered(tool) for tool in request.tools]
    prompt = turns(request.messages or ())
    if prompt and _goes_on(prompt[-1]):
        options["continue_final_message"] = True
    return Ask(daemon_name(request.model), prompt, options)


def _goes_on(last: Turn) -> bool:
    """Whether an answer goes on with the last turn: as Ollama has it, with a text of the assistant's."""
    return last.role == "assistant" and bool(last.content) and not last.tool_calls


def _offered(tool: Tool) -> Offered:
    return Offered(tool.function.name, tool.function.description or "", tool.function.parameters or "")


class ChatAnswer:
    """
    The pieces of an answer, or the whole of it.

    Args:
        figures: What it has besides words.
    """

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def pieces(self, event: GenerateEvent) -> Iterator[ChatPiece]:
        """Yield what a client gets of an event."""
        match event:
            case Started():
                self._figures.warnings = event.warnings
            case Delta():
                yield from self._parts(event)
            case Finished():
                yield self._piece({"content": ""}, self._figures.end(event))

    def whole(self, answer: Answer) -> ChatPiece:
        """Return a whole answer."""
        self._figures.warnings = answer.started.warnings
        parts: dict[str, Any] = {"content": answer.text}
        if answer.reasoning:
            parts["thinking"] = answer.reasoning
        if answer.calls:
            parts["tool_calls"] = _calls(answer.calls)
        return self._piece(parts, {**self._figures.end(answer.finished), **scores(answer.logprobs)})

    def empty(self) -> ChatPiece:
        """Return a piece that has nothing in it."""
        return self._piece({"content": ""}, {"done": False})

    def loaded(self, reason: str) -> ChatPiece:
        """Return the answer to a request without a conversation."""
        return self._piece({"content": ""}, {"done": True, "done_reason": reason})

    def _parts(self, delta: Delta) -> Iterator[ChatPiece]:
        """Yield the parts of a delta in the order in which they come in an answer."""
        parts: list[dict[str, Any]] = []
        if delta.reasoning:
            parts.append({"content": "", "thinking": delta.reasoning})
        if delta.text:
            parts.append({"content": delta.text})
        if delta.tool_calls:
            parts.append({"content": "", "tool_calls": _calls(delta.tool_calls)})
        if delta.logprobs and not parts:
            parts.append({"content": ""})  # tokens of a call that is not whole yet
        for number, part in enumerate(parts):
            yield self._piece(part, {"done": False, **(scores(delta.logprobs) if number == 0 else {})})

    def _piece(self, message: dict[str, Any], fields: dict[str, Any]) -> ChatPiece:
        answered = AnsweredMessage.model_construct(role="assistant", **message)
        return ChatPiece.model_construct(**self._figures.head(), message=answered, **fields)


def _calls(calls: Sequence[GeneratedToolCall]) -> list[AnsweredCall]:
    return [
        AnsweredCall(
            id=call.id,
            function=AnsweredFunction(index=call.index, name=call.name, arguments=json.loads(call.arguments_json)),
        )
        for call in calls
    ]
