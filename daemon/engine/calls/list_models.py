"""A ListModels call: the models of this machine, from their files and from the model cache. No weights are read."""

from __future__ import annotations

from collections.abc import Mapping

from daemon.cache.entry import Entry
from daemon.cache.listing import ELSEWHERE, HUB_CACHE, IS_EMBEDDED, MOST_MODELS, ROOT, DiskModel
from daemon.cache.mlx.loader import LoadedModel, supported
from daemon.engine.calls.driver import Call, Services
from mlx_sidecar.v1 import sidecar_pb2 as pb

_PLACES = {
    HUB_CACHE: pb.MODEL_PLACE_HUB_CACHE,
    ROOT: pb.MODEL_PLACE_ROOT,
    IS_EMBEDDED: pb.MODEL_PLACE_EMBEDDED,
    ELSEWHERE: pb.MODEL_PLACE_UNSPECIFIED,
}


def list_models(services: Services, call_id: int, request: pb.ListModelsRequest) -> Call:
    """Serve a ListModels call: one answer, whatever the disks do."""
    entries = {name: entry for entry in services.models.entries() for name in entry.names if not entry.draining}
    more = [entry.model.source.path for name, entry in entries.items() if name.startswith("/")]
    found, unread = yield from services.places.listed(more)
    limits = services.models.limits
    fits = min(limits.budget_bytes or limits.memory_bytes, limits.memory_bytes or limits.budget_bytes)
    models = {model.model: model for model in sorted(found, key=lambda model: model.place == ELSEWHERE, reverse=True)}
    for name, entry in entries.items():
        models.setdefault(name, _in_memory(name, entry))
    names = sorted(models, key=str.lower)
    aliases = services.places.aliases
    answer = pb.ListModelsResponse(
        models=[_message(models[name], entries.get(name), aliases, fits) for name in names[:MOST_MODELS]],
        unread=[pb.UnreadPlace(path=_text(str(place.path)), reason=_text(place.reason)) for place in unread],
        fits_bytes=fits,
        truncated=len(names) > MOST_MODELS,
        aliases=aliases,
    )
    services.outbox.listed(call_id, answer)


def _in_memory(name: str, entry: Entry[LoadedModel]) -> DiskModel:
    """Describe a model in memory with files that could not be read."""
    source = entry.model.source
    return DiskModel(
        name,
        source.path,
        ELSEWHERE,
        size_bytes=entry.nbytes,
        revision=source.revision,
        architecture=source.architecture,
        context_length=source.context_length,
    )


def _message(
    model: DiskModel, entry: Entry[LoadedModel] | None, aliases: Mapping[str, str], fits: int
) -> pb.ListedModel:
    problem = model.problem
    if not problem and model.architecture and not supported(model.architecture):
        problem = f"this mlx-lm does not support its model_type, {model.architecture}"
    return pb.ListedModel(
        model=_text(model.model),
        aliases=sorted(alias for alias, target in aliases.items() if target == model.model),
        place=_PLACES[model.place],
        loaded=entry is not None,
        complete=model.complete,
        size_bytes=model.size_bytes,
        disk_bytes=model.disk_bytes,
        fits=model.size_bytes <= fits,
        architecture=model.architecture,
        context_length=model.context_length,
        quantization_bits=model.quantization_bits,
        revision=model.revision,
        can=pb.ModelAbilities(
            chat=model.chat, tools=model.tools, reasoning=model.reasoning, embeddings=model.embeddings
        ),
        problem=_text(problem),
        path=_text(str(model.path)),
        last_used_unix_seconds=int(model.last_used),
    )


def _text(name: str) -> str:
    """Return a name as text: names of files need not be."""
    return name.encode("utf-8", "replace").decode()
