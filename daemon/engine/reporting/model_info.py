"""Descriptions of models and loads, as API messages."""

from __future__ import annotations

from dataclasses import replace

from daemon.cache.identity import ModelSource
from daemon.cache.load import LoadOutcome, Progress, Stage
from daemon.cache.mlx.loader import LoadedModel
from daemon.kv.mlx.layout import Layout
from mlx_sidecar.v1 import sidecar_pb2 as pb

_STAGES = {
    Stage.QUEUED: pb.LOAD_STAGE_QUEUED,
    Stage.DOWNLOADING: pb.LOAD_STAGE_DOWNLOADING,
    Stage.LOADING: pb.LOAD_STAGE_LOADING,
    Stage.WARMING_UP: pb.LOAD_STAGE_WARMING_UP,
}
_OUTCOMES = {
    LoadOutcome.HIT: pb.LOAD_OUTCOME_HIT,
    LoadOutcome.LOADED: pb.LOAD_OUTCOME_LOADED,
    LoadOutcome.UNCACHED: pb.LOAD_OUTCOME_UNCACHED,
}


def estimated(source: ModelSource) -> pb.ModelInfo:
    """Describe a model from its files alone."""
    info = pb.ModelInfo(
        model=source.name,
        fingerprint=str(source.key),
        architecture=source.architecture,
        size_bytes=source.size_bytes,
        num_layers=source.num_layers,
        context_length=source.context_length,
        vocab_size=source.vocab_size,
        kv_bytes_per_token=source.estimated_kv_bytes_per_token,
        outcome=pb.LOAD_OUTCOME_ESTIMATED,
    )
    add_own(info, source)
    return info


def add_own(info: pb.ModelInfo, source: ModelSource) -> None:
    """Add what copies of the same weights may differ in: the commit of the Hub, and the sampling that it recommends."""
    info.revision = source.revision
    info.ClearField("default_sampling")
    if source.default_sampling:
        for name, value in source.default_sampling.items():
            setattr(info.default_sampling, name, value)


def planned(name: str, size_bytes: int) -> pb.ModelInfo:
    """Describe a model that is not on this machine; of such a model only the size is known, in bytes."""
    return pb.ModelInfo(model=name, size_bytes=size_bytes, outcome=pb.LOAD_OUTCOME_ESTIMATED)


def loaded(
    model: LoadedModel, name: str, context_length: int | None = None, outcome: LoadOutcome | None = None
) -> pb.ModelInfo:
    """Describe a model in memory under the name that a request used, with the context length that was chosen for it."""
    info = estimated(replace(model.source, context_override=context_length))
    info.model = name
    info.size_bytes = model.nbytes
    info.vocab_size = model.vocab_size
    info.kv_bytes_per_token = model.layout.bytes_per_token
    info.prefix_reuse = _reuse(model.layout)
    info.warnings.extend([model.layout.warning] if model.layout.warning else [])
    info.outcome = _OUTCOMES[outcome] if outcome else pb.LOAD_OUTCOME_UNSPECIFIED
    return info


def progress(value: Progress) -> pb.GetOrLoadResponse:
    """Return the event that tells how far a load is."""
    return pb.GetOrLoadResponse(
        progress=pb.LoadProgress(
            stage=_STAGES[value.stage],
            bytes_done=value.bytes_done,
            bytes_total=value.bytes_total,
            evicting=value.evicting,
        )
    )


def _reuse(layout: Layout) -> pb.PrefixReuse:
    if not layout.reusable:
        return pb.PREFIX_REUSE_NONE
    return pb.PREFIX_REUSE_BLOCKS if layout.parts.resumes_anywhere else pb.PREFIX_REUSE_CHECKPOINTS
