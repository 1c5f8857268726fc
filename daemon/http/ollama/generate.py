"""Ollama's generate: requests become calls to the daemon, and its events become answers. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from daemon.http.errors import invalid
from daemon.http.generation import Answer, Ask
from daemon.http.ollama.figures import Figures, scores
from daemon.http.ollama.generate_types import GeneratePiece, GenerateRequest
from daemon.http.ollama.names import daemon_name
from daemon.http.ollama.sampling import generation
from mlx_sidecar import Delta, Finished, GenerateEvent, Message, Prompt, Started

_NO_SYSTEM = {"chat.messages[0]": "prompt", "chat.messages[0].content": "prompt"}
_SYSTEM = {
    "chat.messages[0]": "system",
    "chat.messages[0].content": "system",
    "chat.messages[1]": "prompt",
    "chat.messages[1].content": "prompt",
}
"""Parameters that the turns of a prompt come from."""


def ask(request: GenerateRequest) -> Ask:
    """
    Return the call that a request asks for.

    Raises:
        Problem: If parameters contradict each other.
    """
    options = generation(request)
    if request.raw:
        if options.pop("enable_thinking", False) or "reasoning_effort" in options:
            raise invalid("think", "is for prompts that the chat template renders; leave it out, or `raw`")
        if request.system:
            raise invalid("system", "is for prompts that the chat template renders; leave it out, or `raw`")
    return Ask(daemon_name(request.model), _prompt(request), options, places=_SYSTEM if request.system else _NO_SYSTEM)


def _prompt(request: GenerateRequest) -> Prompt:
    if request.raw:
        return request.prompt or ""
    system = [Message("system", request.system)] if request.system else []
    return [*system, Message("user", request.prompt or "")]


class GenerateAnswer:
    """
    The pieces of an answer, or the whole of it.

    Args:
        figures: What it has besides words.
    """

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def pieces(self, event: GenerateEvent) -> Iterator[GeneratePiece]:
        """Yield what a client gets of an event."""
        match event:
            case Started():
                self._figures.warnings = event.warnings
            case Delta() if event.reasoning or event.text or event.logprobs:
                reasoning = {"thinking": event.reasoning} if event.reasoning else {}
                yield self._piece(event.text, {"done": False, **reasoning, **scores(event.logprobs)})
            case Finished():
                yield self._piece("", self._figures.end(event))

    def whole(self, answer: Answer) -> GeneratePiece:
        """Return a whole answer."""
        self._figures.warnings = answer.started.warnings
        reasoning = {"thinking": answer.reasoning} if answer.reasoning else {}
        return self._piece(answer.text, {**reasoning, **self._figures.end(answer.finished), **scores(answer.logprobs)})

    def empty(self) -> GeneratePiece:
        """Return a piece that has nothing in it."""
        return self._piece("", {"done": False})

    def loaded(self, reason: str) -> GeneratePiece:
        """Return the answer to a request without a prompt."""
        return self._piece("", {"done": True, "done_reason": reason})

    def _piece(self, text: str, fields: dict[str, Any]) -> GeneratePiece:
        return GeneratePiece.model_construct(**self._figures.head(), response=text, **fields)
