"""Ollama's embeddings: the types of requests and of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field

from daemon.http.ollama.shared_types import Request
from daemon.http.parameters import Items


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Pooled(Request):
    """What both forms of a request for vectors have."""

    pooling: Literal["last_token", "mean", "cls"] | None = Field(
        None, description="how hidden states become a vector, for a model whose files do not say it"
    )

    harmless: ClassVar[Mapping[str, str]] = {"options": "they are about answers, and about how llama.cpp runs"}


class EmbedRequest(Pooled):
    """The body of `POST /api/embed`."""

    input: Annotated[Items[str], BeforeValidator(_several)] = Field(description="text, or up to 256 of them")
    truncate: bool | None = Field(
        None, description="unless false, a text that is longer than the model takes is cut at its end"
    )
    dimensions: int | None = Field(None, description="numbers of a vector, if the model knows fewer; unset is its own")


class EmbeddingsRequest(Pooled):
    """The body of `POST /api/embeddings`, the older form for one text."""

    prompt: str = Field(description="the text; one that is longer than the model takes is cut at its end")


class Embedded(BaseModel):
    """The vectors of texts. Durations are nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class EmbeddedPrompt(BaseModel):
    """The vector of a text."""

    embedding: list[float]
