"""OpenAI's embeddings: requests become calls to the daemon, and vectors become answers. Pure."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence

from daemon.http.openai.embedding_types import EmbeddingList, EmbeddingRequest, EmbeddingUsage, Vector
from mlx_sidecar import Embeddings, EmbedOptions


def options(request: EmbeddingRequest) -> EmbedOptions:
    """Return the options that a request asks for."""
    found = EmbedOptions(dimensions=request.dimensions, salt=request.cache_salt or "")
    if request.pooling is not None:
        found["pooling"] = request.pooling
    return found


def answer(request: EmbeddingRequest, found: Embeddings) -> EmbeddingList:
    """Return the vectors as a request wants them."""
    tokens = found.usage.prompt_tokens
    return EmbeddingList(
        object="list",
        data=[
            Vector(object="embedding", index=index, embedding=_encoded(vector, request.encoding_format == "base64"))
            for index, vector in enumerate(found.vectors)
        ],
        model=found.model,
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
    )


def _encoded(vector: Sequence[float], as_base64: bool) -> list[float] | str:
    if not as_base64:
        return list(vector)
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
