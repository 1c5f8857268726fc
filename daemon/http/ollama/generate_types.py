"""Ollama's generate: the types of requests and of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from daemon.http.ollama.chat_types import IMAGES
from daemon.http.ollama.shared_types import CONTEXT_IS_KEPT, Generation, Piece
from daemon.http.parameters import Refusal


class GenerateRequest(Generation):
    """The body of `POST /api/generate`."""

    prompt: str | None = Field(
        None, description="what the model answers; without one it is loaded, or unloaded with `keep_alive` 0"
    )
    system: str | None = Field(None, description="text of a system turn before it; not with `raw`")
    raw: bool | None = Field(None, description="true continues the prompt as it is, without the chat template")

    refused: ClassVar[Mapping[str, Refusal]] = {
        **CONTEXT_IS_KEPT,
        "context": Refusal("send the conversation to /api/chat; its prefix is in the cache", ([],)),
        "template": Refusal("the model's own is used; send a rendered prompt with `raw`", ("",)),
        "suffix": Refusal("models continue a prompt", ("",)),
        "images": IMAGES,
        "width": Refusal("models answer with text", (0,)),
        "height": Refusal("models answer with text", (0,)),
        "steps": Refusal("models answer with text", (0,)),
    }


class GeneratePiece(Piece):
    """A piece of an answer of `POST /api/generate`, or a whole one."""

    response: str
    thinking: str
