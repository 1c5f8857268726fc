"""Ollama's embeddings: texts become vectors; a text that is too long is cut, as this API promises."""

from __future__ import annotations

from time import monotonic

from daemon.http.ollama.embed_types import Embedded, EmbeddedPrompt, EmbeddingsRequest, EmbedRequest
from daemon.http.ollama.figures import nanoseconds
from daemon.http.ollama.names import daemon_name
from daemon.http.ollama.residence import resident
from mlx_sidecar import AsyncClient, ContextLengthExceeded, Embeddings, EmbedOptions


async def vectors(client: AsyncClient, request: EmbedRequest) -> Embedded:
    """
    Return the vectors of the texts of a request.

    Raises:
        SidecarError: If the call failed.
    """
    begun, model = monotonic(), daemon_name(request.model)
    options = EmbedOptions(dimensions=request.dimensions, pooling=request.pooling)
    async with resident(client, model, request.keep_alive) as loading:
        found = await _embedded(client, model, request.input, request.truncate is not False, options)
    return Embedded(
        model=request.model,
        embeddings=[list(vector) for vector in found.vectors],
        total_duration=nanoseconds(monotonic() - begun),
        load_duration=nanoseconds(loading),
        prompt_eval_count=found.usage.prompt_tokens,
    )


async def vector(client: AsyncClient, request: EmbeddingsRequest) -> EmbeddedPrompt:
    """Return the vector of the text of a request, as `vectors` does."""
    model = daemon_name(request.model)
    async with resident(client, model, request.keep_alive):
        found = await _embedded(client, model, [request.prompt], True, EmbedOptions(pooling=request.pooling))
    return EmbeddedPrompt(embedding=list(found.vectors[0]))


async def _embedded(
    client: AsyncClient, model: str, texts: list[str], truncate: bool, options: EmbedOptions
) -> Embeddings:
    """Return the vectors of texts. Those that the daemon names as too long are cut, and all are tried again."""
    while True:
        try:
            return await client.embed(model, texts, **options)
        except ContextLengthExceeded as error:
            shorter = cut(texts, error) if truncate else None
            if shorter is None:
                raise
            texts = shorter


def cut(texts: list[str], error: ContextLengthExceeded) -> list[str] | None:
    """
    Return texts of which those that are too long are shorter; None if the error names none, or one cannot be cut.

    They are cut by their share of characters: tokens are the model's matter. They become shorter each time, until they
    fit.
    """
    try:
        most = int(error.metadata["context_length"])
        named = [one.partition(":") for one in error.metadata["long_texts"].split()]
        tokens = {int(index): int(count) for index, _, count in named}
    except (KeyError, ValueError):
        return None
    shorter = list(texts)
    for index, count in tokens.items():
        shorter[index] = texts[index][: min(len(texts[index]) * most // count, len(texts[index]) - 1)]
    return shorter if tokens and all(shorter[index] for index in tokens) else None
