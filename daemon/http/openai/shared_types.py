"""OpenAI's types that several of its endpoints use: how tokens are chosen, and how many there were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from daemon.http.parameters import Items, Named, Parameters

GENERATION_HARMLESS: Mapping[str, str] = {
    "user": "requests of one user are not kept apart; `cache_salt` does that for prefixes",
    "metadata": "it is for answers that are kept, and none is",
    "service_tier": "there is one tier",
}
"""Parameters of all generations without effect."""


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stop = Annotated[Items[str] | None, BeforeValidator(_several)]
"""Text, or a list of texts; text becomes a list, so that errors need not tell two forms apart."""


class Sampled(Parameters):
    """What all generations have."""

    model: str = Field(min_length=1, description='Hub id, absolute directory, or "embedded"')
    stream: bool | None = Field(None, description="the answer comes piece by piece, as server-sent events")
    max_tokens: int | None = Field(
        None, ge=1, description="most tokens of the answer, unset is 32,768; lowered to what the context holds"
    )
    temperature: float | None = Field(
        None,
        description="0 (greedy) to 100; unset is the model's own, as the other options are",
    )
    top_p: float | None = Field(None, description="above 0, up to 1; without effect at temperature 0")
    top_k: int | None = Field(
        None, description="as many of the most likely tokens; 0 or -1 keeps all; without effect at temperature 0"
    )
    min_p: float | None = Field(None, description="0 to 1; without effect at temperature 0")
    seed: int | None = Field(
        None, description="the same seed and request give the same answer; a greedy one needs none"
    )
    stop: Stop = Field(None, description="text, or several, before which the answer stops")
    presence_penalty: float | None = Field(None, description="-10 to 10")
    frequency_penalty: float | None = Field(None, description="-10 to 10")
    repetition_penalty: float | None = Field(None, description="above 0, up to 10")
    logit_bias: Named[float] | None = Field(None, description="by token id; -100 to 100")
    n: int | None = Field(None, ge=1, le=16, description="answers, 1 to 16; the prompt is computed once")
    cache_salt: str | None = Field(None, description="prefixes are shared only between requests of one salt")


class PromptDetails(BaseModel):
    """What the tokens of a prompt were."""

    cached_tokens: int


class CompletionDetails(BaseModel):
    """What the tokens of an answer were."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Tokens counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails
