"""OpenAI's completions of plain prompts: requests become calls to the daemon, and its events become answers. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from daemon.http.errors import invalid
from daemon.http.generation import Answer, Ask
from daemon.http.openai.completion_types import (
    DEFAULT_TOKENS,
    CompletionChoice,
    CompletionRequest,
    PlainPrompt,
    TextCompletion,
)
from daemon.http.openai.logprobs import Offsets, PlainScores, plain_scores
from daemon.http.openai.sampling import sampling, total, usage
from mlx_sidecar import Delta, Finished, GenerateEvent, GenerateOptions, Started, TokenLogprob, Usage


def asks(request: CompletionRequest) -> list[Ask]:
    """
    Return a call for each prompt of a request.

    Raises:
        Problem: If parameters contradict each other.
    """
    if request.stream and len(request.prompt) > 1:
        raise invalid("prompt", "is one prompt in a request with `stream`")
    if request.stream and request.echo and request.logprobs is not None:
        raise invalid("echo", "cannot be had with `logprobs` in a request with `stream`")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "is only for requests with `stream`")
    options = _options(request)
    return [Ask(request.model, _given(prompt), options) for prompt in request.prompt]


def _options(request: CompletionRequest) -> GenerateOptions:
    scores_prompt = bool(request.echo) and request.logprobs is not None
    if request.max_tokens == 0:
        if not scores_prompt:
            raise invalid("max_tokens", "is 0 only with `echo` and `logprobs`")
        if request.n not in (None, 1):
            raise invalid("n", "is for answers, and `max_tokens` 0 leaves none; leave it out")
        return GenerateOptions(max_tokens=0, prompt_logprobs=request.logprobs, salt=request.cache_salt or "")
    options = sampling(request)
    if request.max_tokens is None:  # null, which asks for nothing
        options["max_tokens"] = DEFAULT_TOKENS
    if request.logprobs is not None:
        options["top_logprobs"] = request.logprobs
    if scores_prompt:
        options["prompt_logprobs"] = request.logprobs
    return options


def _given(prompt: PlainPrompt) -> str | list[int]:
    return prompt.text if prompt.text is not None else prompt.tokens or []


@dataclass(frozen=True, slots=True)
class Echo:
    """
    What an answer begins with.

    Attributes:
        text: The prompt's text; empty without `echo`.
        first: The text of its first token; None for what the texts of the others leave.
    """

    text: str = ""
    first: str | None = None


NO_ECHO = Echo()


def completion(
    request: CompletionRequest,
    answers: Sequence[Sequence[Answer]],
    echoes: Sequence[Echo],
    now: float | None = None,
) -> TextCompletion:
    """Return the answers to all prompts of a request, in their order; of each prompt its echo and its samples."""
    first = answers[0][0].started
    several = [(echo, answer) for echo, samples in zip(echoes, answers, strict=True) for answer in samples]
    return TextCompletion(
        id=answer_id(first),
        object="text_completion",
        created=int(time.time() if now is None else now),
        model=first.model,
        choices=[_choice(request, index, echo, answer) for index, (echo, answer) in enumerate(several)],
        usage=usage(_sum([total([answer.finished.usage for answer in samples]) for samples in answers])),
    )


def _choice(request: CompletionRequest, index: int, echo: Echo, answer: Answer) -> CompletionChoice:
    scores = _scores(request, echo, answer) if request.logprobs is not None else None
    text = echo.text + answer.text
    return CompletionChoice(index=index, text=text, logprobs=scores, finish_reason=answer.finished.reason)


def _scores(request: CompletionRequest, echo: Echo, answer: Answer) -> PlainScores:
    prompt, first = answer.prompt_logprobs if request.echo else (), echo.first
    if first is None:
        first = echo.text[: max(0, len(echo.text) - sum(len(token.text) for token in prompt))]
    offsets, top = Offsets(echo.text + answer.text), bool(request.logprobs)
    return plain_scores([*prompt, *answer.logprobs], offsets, first=first if request.echo else None, top=top)


def answer_id(started: Started) -> str:
    """Return the id of an answer. It has the request's id of the daemon's log."""
    return f"cmpl-{started.request_id}"


def _sum(counted: Sequence[Usage]) -> Usage:
    return Usage(
        sum(each.prompt_tokens for each in counted),
        sum(each.cached_tokens for each in counted),
        sum(each.completion_tokens for each in counted),
        reasoning_tokens=sum(each.reasoning_tokens for each in counted),
    )


class CompletionStream:
    """
    The chunks of a streamed answer.

    Args:
        request: The request, with one prompt.
        echo: What each answer begins with.
        now: Seconds since 1970; None for the time of the first event.
    """

    def __init__(self, request: CompletionRequest, echo: Echo = NO_ECHO, now: float | None = None) -> None:
        self._request = request
        self._echo = echo.text
        self._include_usage = request.stream_options is not None and request.stream_options.include_usage is True
        self._now = now
        self._id = self._model = ""
        self._ends: list[Finished] = []
        self._offsets = [Offsets() for _ in range(request.n or 1)]

    def chunks(self, event: GenerateEvent) -> Iterator[TextCompletion]:
        """Yield what a client gets of an event."""
        match event:
            case Started():
                self._id, self._model = answer_id(event), event.model
                self._now = time.time() if self._now is None else self._now
                if self._echo:
                    for index in range(self._request.n or 1):
                        yield self._chunk(index, self._echo)
            case Delta(text=text, logprobs=logprobs) if text or logprobs:
                yield self._chunk(event.index, text, logprobs=logprobs)
            case Finished():
                self._ends.append(event)
                yield self._chunk(event.index, "", event.reason)
                if self._include_usage and len(self._ends) == (self._request.n or 1):
                    chunk = self._empty([])
                    chunk.usage = usage(total([end.usage for end in self._ends]))
                    yield chunk

    def _chunk(
        self, index: int, text: str, reason: str | None = None, logprobs: Sequence[TokenLogprob] = ()
    ) -> TextCompletion:
        top = bool(self._request.logprobs)
        if self._request.logprobs is not None:
            self._offsets[index].add(text)
        scores = plain_scores(logprobs, self._offsets[index], first=None, top=top) if logprobs else None
        return self._empty([CompletionChoice(index=index, text=text, logprobs=scores, finish_reason=reason)])

    def _empty(self, choices: list[CompletionChoice]) -> TextCompletion:
        return TextCompletion(
            id=self._id,
            object="text_completion",
            created=int(self._now or 0),
            model=self._model,
            choices=choices,
        )
