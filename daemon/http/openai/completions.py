"""OpenAI's completions of plain prompts: requests become calls to the daemon, and its events become answers. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from daemon.http.errors import invalid
from daemon.http.generation import Answer, Ask
from daemon.http.openai.completion_types import CompletionChoice, CompletionRequest, PlainPrompt, TextCompletion
from daemon.http.openai.sampling import sampling, usage
from mlx_sidecar import Delta, Finished, GenerateEvent, Started, Usage


def asks(request: CompletionRequest) -> list[Ask]:
    """
    Return a call for each prompt of a request.

    Raises:
        Problem: If parameters contradict each other.
    """
    if request.stream and len(request.prompt) > 1:
        raise invalid("prompt", "is one prompt in a request with `stream`")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "is only for requests with `stream`")
    if request.echo and any(prompt.text is None for prompt in request.prompt):
        raise invalid("echo", "is only for prompts of text: token ids have no text here")
    options = sampling(request)
    return [Ask(request.model, _given(prompt), options) for prompt in request.prompt]


def _given(prompt: PlainPrompt) -> str | list[int]:
    return prompt.text if prompt.text is not None else prompt.tokens or []


def echoed(request: CompletionRequest, index: int) -> str:
    """Return what an answer begins with."""
    return request.prompt[index].text or "" if request.echo else ""


def completion(request: CompletionRequest, answers: Sequence[Answer], now: float | None = None) -> TextCompletion:
    """Return the answers to all prompts of a request, in their order."""
    first = answers[0].started
    return TextCompletion(
        id=answer_id(first),
        object="text_completion",
        created=int(time.time() if now is None else now),
        model=first.model,
        choices=[
            CompletionChoice(
                index=index,
                text=echoed(request, index) + answer.text,
                logprobs=None,
                finish_reason=answer.finished.reason,
            )
            for index, answer in enumerate(answers)
        ],
        usage=usage(_sum([answer.finished.usage for answer in answers])),
    )


def answer_id(started: Started) -> str:
    """Return the id of an answer. It has the request's id of the daemon's log."""
    return f"cmpl-{started.request_id}"


def _sum(counted: Sequence[Usage]) -> Usage:
    return Usage(
        sum(one.prompt_tokens for one in counted),
        sum(one.cached_tokens for one in counted),
        sum(one.completion_tokens for one in counted),
    )


class CompletionStream:
    """
    The chunks of a streamed answer.

    Args:
        echo: What the answer begins with.
        include_usage: Whether a last chunk has the usage.
        now: Seconds since 1970; None for the time of the first event.
    """

    def __init__(self, *, echo: str, include_usage: bool, now: float | None = None) -> None:
        self._echo = echo
        self._include_usage = include_usage
        self._now = now
        self._id = self._model = ""

    def chunks(self, event: GenerateEvent) -> Iterator[TextCompletion]:
        """Yield what a client gets of an event."""
        match event:
            case Started():
                self._id, self._model = answer_id(event), event.model
                self._now = time.time() if self._now is None else self._now
                if self._echo:
                    yield self._chunk(self._echo)
            case Delta(text=text) if text:
                yield self._chunk(text)
            case Finished():
                yield self._chunk("", event.reason)
                if self._include_usage:
                    chunk = self._empty([])
                    chunk.usage = usage(event.usage)
                    yield chunk

    def _chunk(self, text: str, reason: str | None = None) -> TextCompletion:
        return self._empty([CompletionChoice(index=0, text=text, logprobs=None, finish_reason=reason)])

    def _empty(self, choices: list[CompletionChoice]) -> TextCompletion:
        return TextCompletion(
            id=self._id,
            object="text_completion",
            created=int(self._now or 0),
            model=self._model,
            choices=choices,
        )
