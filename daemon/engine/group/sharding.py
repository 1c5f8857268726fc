"""Cuts models for the ranks of a group: mlx-lm does it, after a check that the model can be cut so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from daemon.cache.identity import ModelSource
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.group_values import PIPELINE, TENSOR
from daemon.shared.readings import about_to_wait

_HEADS = ("num_attention_heads", "num_key_value_heads")


class Sharding:
    """
    Leaves each rank its part of a model: of each layer (tensor), or some of the layers (pipeline).

    In a pipeline all ranks must have layers of the same number and kinds. Then each has as many bytes of KV for a
    token, and evicts and restores as the others do.

    Args:
        group: MLX's group of the ranks.
        models: How models are cut, by name; one that is not named is cut as `auto`.
    """

    def __init__(self, group: mx.distributed.Group, models: Mapping[str, str]) -> None:
        self._group = group
        self._models = models

    def cut(self, source: ModelSource, model: Any) -> None:
        """
        Replace the layers of a module with lazy arrays by those of this rank.

        Raises:
            SidecarError: MODEL_UNSUPPORTED if mlx-lm cannot cut the model, or not into so many parts.
        """
        if source.adapter_weights is not None:
            raise _unsupported(source, "an adapter cannot be cut; merge it into the model")
        how = self._models.get(source.name, "auto")
        no_tensor = self._no_tensor(source, model)
        if how == TENSOR and no_tensor:
            raise _unsupported(source, no_tensor)
        if not no_tensor and how != PIPELINE:
            model.shard(self._group)
            return
        if no_pipeline := self._no_pipeline(model):
            raise _unsupported(source, no_pipeline if how == PIPELINE else f"{no_tensor}, and {no_pipeline}")
        model.model.pipeline(self._group)
        self.alike(source, "+".join(type(cache).__name__ for cache in make_prompt_cache(model)))

    def most(self, value: int) -> int:
        """Return the largest value of all ranks. All ask at the same place."""
        about_to_wait()
        largest: Any = mx.distributed.all_max(mx.array(value, mx.int64), group=self._group)
        return int(largest.item())

    def alike(self, source: ModelSource, layout: str) -> None:
        """
        Compare how the ranks keep the KV of their layers.

        Raises:
            SidecarError: MODEL_UNSUPPORTED on all ranks, if it differs.
        """
        own = crc32(layout.encode())
        if self.most(own) + self.most(-own):
            raise _unsupported(source, "the ranks would have layers of different kinds")

    def _no_tensor(self, source: ModelSource, model: Any) -> str:
        """Return why parts of each layer cannot be had; empty if they can."""
        ranks = self._group.size()
        if not hasattr(model, "shard"):
            return "mlx-lm cannot cut the layers of this family into parts"
        text = source.config.get("text_config", source.config)
        for name in _HEADS:
            heads = text.get(name)
            if isinstance(heads, int) and heads % ranks:
                return f"its {name}, {heads}, cannot be divided by {ranks} ranks"
        return ""

    def _no_pipeline(self, model: Any) -> str:
        """Return why a pipeline of layers cannot be had; empty if it can."""
        ranks = self._group.size()
        body: Any = getattr(model, "model", None)
        if not hasattr(body, "pipeline"):
            return "mlx-lm has no pipeline for this family"
        layers = len(body.layers)
        return f"its {layers} layers cannot be divided by {ranks} ranks" if layers % ranks else ""


def _unsupported(source: ModelSource, why: str) -> SidecarError:
    return SidecarError(
        Reason.MODEL_UNSUPPORTED, f"{source.name} cannot run on several machines: {why}; take it out of group.models"
    )
