"""Ollama's generate: requests become calls to the daemon, and its events become answers. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from daemon.http.errors import invalid
from daemon.http.generation import Answer, Ask
from daemon.http.ollama.figures import Clock, scores
from daemon.http.ollama.generate_types import GeneratePiece, GenerateRequest
from daemon.http.ollama.names import daemon_name
from daemon.http.ollama.sampling import generation
from mlx_sidecar import Delta, Finished, GenerateEvent, Message, Prompt


def ask(request: GenerateRequest) -> Ask:
    """
    Return the call that a request asks for.

    Raises:
        Problem: If parameters contradict each other.
    """
    if request.raw:
        for name in ("system", "think"):
            if getattr(request, name):
                raise invalid(name, "is for prompts that the chat template renders; leave it out, or `raw`")
    return Ask(daemon_name(request.model), _prompt(request), generation(request))


def _prompt(request: GenerateRequest) -> Prompt:
    if request.raw:
        return request.prompt or ""
    system = [Message("system", request.system)] if request.system else []
    return [*system, Message("user", request.prompt or "")]


class GenerateAnswer:
    """
    The pieces of an answer, or the whole of it.

    Args:
        model: Name of the model, as the request has it.
        clock: Times of the answer.
    """

    def __init__(self, model: str, clock: Clock) -> None:
        self._model = model
        self._clock = clock

    def pieces(self, event: GenerateEvent) -> Iterator[GeneratePiece]:
        """Yield what a client gets of an event."""
        match event:
            case Delta() if event.reasoning or event.text or event.logprobs:
                reasoning = {"thinking": event.reasoning} if event.reasoning else {}
                yield self._piece(event.text, {"done": False, **reasoning, **scores(event.logprobs)})
            case Finished():
                yield self._piece("", self._clock.end(event))

    def whole(self, answer: Answer) -> GeneratePiece:
        """Return a whole answer."""
        reasoning = {"thinking": answer.reasoning} if answer.reasoning else {}
        return self._piece(answer.text, {**reasoning, **self._clock.end(answer.finished), **scores(answer.logprobs)})

    def empty(self) -> GeneratePiece:
        """Return a piece that has nothing in it."""
        return self._piece("", {"done": False})

    def loaded(self, reason: str) -> GeneratePiece:
        """Return the answer to a request without a prompt."""
        return self._piece("", {"done": True, "done_reason": reason})

    def _piece(self, text: str, fields: dict[str, Any]) -> GeneratePiece:
        return GeneratePiece.model_construct(**self._clock.head(self._model), response=text, **fields)
