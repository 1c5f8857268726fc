"""Ollama's models: what this machine has, what is in memory, and one model in detail. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from daemon.http.ollama.figures import timestamp
from daemon.http.ollama.model_types import Details, Loaded, LoadedModels, Model, Models, Progress, Shown
from mlx_sidecar import ListedModel, LoadProgress, ModelInfo, ModelList, ModelStats, Stats

NEVER = "2318-01-01T00:00:00.000000Z"
"""When a model expires that does not: what Ollama has for a model that stays."""


def listing(found: ModelList) -> Models:
    """Return the models that can be used, each also under its short names, as Ollama lists a copy."""
    return Models(
        models=[
            _model(name, model)
            for model in found.models
            if model.complete and not model.problem
            for name in (*model.aliases, model.model)
        ]
    )


def _model(name: str, model: ListedModel) -> Model:
    return Model(
        name=name,
        model=name,
        modified_at=timestamp(model.last_used_unix_seconds),
        size=model.disk_bytes,
        digest=digest(model.model, model.revision),
        details=_details(model.architecture, model.quantization_bits),
    )


def digest(model: str, revision: str) -> str:
    """
    Return a name of 64 digits that clients compare and shorten.

    It is of name and commit: a digest of the weights would be made by reading all of them.
    """
    return hashlib.sha256(f"{model}@{revision}".encode()).hexdigest()


def _details(architecture: str, bits: int) -> Details:
    return Details(
        parent_model="",
        format="safetensors",
        family=architecture,
        families=[architecture],
        parameter_size="",
        quantization_level=f"{bits}-bit" if bits else "",
    )


def loaded(stats: Stats, now: float) -> LoadedModels:
    """Return the models in memory at a time in seconds since 1970."""
    return LoadedModels(models=[_loaded(model, now) for model in stats.models if model.state != "loading"])


def _loaded(model: ModelStats, now: float) -> Loaded:
    info = model.info
    return Loaded(
        name=info.model,
        model=info.model,
        size=info.size_bytes,
        digest=digest(info.model, info.revision),
        details=_details(info.architecture, 0),
        expires_at=NEVER if model.expires_in is None else timestamp(now + model.expires_in),
        size_vram=info.size_bytes,
        context_length=info.context_length,
    )


def shown(name: str, found: ModelList, info: ModelInfo) -> Shown:
    """
    Return a model in detail.

    Args:
        name: The model's name, without a tag.
        found: The models of this machine.
        info: Its description.
    """
    listed = next((model for model in found.models if name in (model.model, *model.aliases)), None)
    bits = listed.quantization_bits if listed else 0
    return Shown(
        modelfile="",
        parameters="\n".join(_parameters(info)),
        template="",
        license="",
        details=_details(info.architecture, bits),
        model_info=_figures(info),
        capabilities=list(_capabilities(listed)),
        modified_at=timestamp(listed.last_used_unix_seconds if listed else 0),
    )


def _capabilities(model: ListedModel | None) -> Iterator[str]:
    """Yield what a model is for, in Ollama's words. One that is on no list is a directory, known by its figures."""
    if model is not None and model.can.embeddings:
        yield "embedding"
        return
    yield "completion"
    if model is not None and model.can.tools:
        yield "tools"
    if model is not None and model.can.reasoning:
        yield "thinking"


def _figures(info: ModelInfo) -> dict[str, Any]:
    kind = info.architecture
    return {
        "general.architecture": kind,
        "general.basename": info.model.rpartition("/")[2],
        f"{kind}.context_length": info.context_length,
        f"{kind}.block_count": info.num_layers,
        f"{kind}.vocab_size": info.vocab_size,
    }


def _parameters(info: ModelInfo) -> Iterator[str]:
    """Yield the options that a model recommends, as lines of a Modelfile."""
    names = {"repetition_penalty": "repeat_penalty"}
    for option in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
        if (value := getattr(info.default_sampling, option)) is not None:
            yield f"{names.get(option, option):<30} {value:g}"


def progress(name: str, event: LoadProgress) -> Progress:
    """Return a step of a pull. Clients show a bar for what has a digest and a total."""
    step = Progress.model_construct(status=f"{event.stage} {name}")
    if event.bytes_total:
        step = Progress(
            status=f"{event.stage} {name}",
            digest=f"sha256:{digest(name, '')}",
            total=event.bytes_total,
            completed=min(event.bytes_done, event.bytes_total),
        )
    return step
