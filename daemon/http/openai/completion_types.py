"""OpenAI's completions of plain prompts: the types of requests and of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field

from daemon.http.openai.chat_types import StreamOptions
from daemon.http.openai.logprobs import PlainScores
from daemon.http.openai.shared_types import GENERATION_HARMLESS, Sampled, Usage
from daemon.http.parameters import Items, Parameters, Refusal

MOST_PROMPTS = 128
"""Most prompts of one request."""
DEFAULT_TOKENS = 16
"""Most tokens of an answer without a limit, as OpenAI's."""


def _prompts(value: Any) -> Any:
    """Return prompts in the one form of their four: a list of objects with text or with tokens."""
    several = isinstance(value, list) and len(value) > 0 and not _is_token(value[0])
    return [_prompt(one) for one in (value if several else [value])]


def _prompt(value: Any) -> Any:
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list) and all(map(_is_token, value)):
        return {"tokens": value}
    raise ValueError("must be text, token ids, or a list of such prompts")


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class PlainPrompt(Parameters):
    """A prompt: text, or token ids."""

    text: str | None = None
    tokens: Items[int] | None = None


class CompletionRequest(Sampled):
    """The body of `POST /v1/completions`."""

    prompt: Annotated[Items[PlainPrompt], BeforeValidator(_prompts)] = Field(
        min_length=1,
        max_length=MOST_PROMPTS,
        description=f"text, token ids, or a list of up to {MOST_PROMPTS} of either, without `stream`",
    )
    max_tokens: int | None = Field(
        DEFAULT_TOKENS,
        ge=0,
        description="default 16, as OpenAI's; lowered to what the context holds; 0 only with `echo` and `logprobs`",
    )
    echo: bool | None = Field(None, description="the answer begins with the prompt, also where that is token ids")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="log-probabilities of tokens, and of so many of the likeliest; with `echo` the prompt's",
    )
    stream_options: StreamOptions | None = Field(None, description="only with `stream`")

    harmless: ClassVar[Mapping[str, str]] = GENERATION_HARMLESS
    refused: ClassVar[Mapping[str, Refusal]] = {
        "best_of": Refusal("use `n`, and choose", (1,)),
        "suffix": Refusal("models continue a prompt", ("",)),
    }


class CompletionChoice(BaseModel):
    """An answer, or a piece of it."""

    index: int
    text: str
    logprobs: PlainScores | None = None
    finish_reason: str | None = None


class TextCompletion(BaseModel):
    """The answers, or a piece of one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
