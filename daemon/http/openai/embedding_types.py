"""OpenAI's embeddings: the types of requests and of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field

from daemon.http.parameters import Items, Parameters

MOST_TEXTS = 256
"""Most texts of one request."""


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class EmbeddingRequest(Parameters):
    """The body of `POST /v1/embeddings`."""

    model: str = Field(min_length=1, description='Hub id, absolute directory, or "embedded"')
    input: Annotated[Items[str], BeforeValidator(_texts)] = Field(
        min_length=1, max_length=MOST_TEXTS, description=f"text, or up to {MOST_TEXTS} of them; no token ids"
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="`float` (default), or `base64` of 32-bit numbers, lowest byte first"
    )
    dimensions: int | None = Field(None, ge=1, description="numbers of a vector: the first of the model's")
    pooling: Literal["last_token", "mean", "cls"] | None = Field(
        None, description="how hidden states become a vector, for a model whose files do not say it"
    )
    cache_salt: str | None = Field(None, description="prefixes are shared only between requests of one salt")

    harmless: ClassVar[Mapping[str, str]] = {"user": "requests of one user are not kept apart"}


class Vector(BaseModel):
    """The vector of a text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens counted."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors of all texts."""

    object: Literal["list"] = "list"
    data: list[Vector]
    model: str
    usage: EmbeddingUsage
