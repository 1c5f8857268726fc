"""Cuts models for the ranks of a group: mlx-lm does it, after a check that the model can be cut so."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from daemon.cache.identity import ModelSource
from daemon.shared.errors import Reason, SidecarError

_HEADS = ("num_attention_heads", "num_key_value_heads")


class TensorSharding:
    """
    Each rank holds a part of each layer: some heads of attention, and some columns and rows of its matrices.

    Args:
        group: MLX's group of the ranks.
    """

    def __init__(self, group: mx.distributed.Group) -> None:
        self._group = group

    def __call__(self, source: ModelSource, model: Any) -> None:
        """
        Replace the layers of a module with lazy arrays by those of this rank.

        Raises:
            SidecarError: MODEL_UNSUPPORTED if mlx-lm cannot cut the model, or not into so many parts.
        """
        ranks = self._group.size()
        if source.adapter_weights is not None:
            raise _unsupported(source, "an adapter cannot be cut; merge it into the model")
        if not hasattr(model, "shard"):
            raise _unsupported(source, "mlx-lm cannot cut this family into parts")
        text = source.config.get("text_config", source.config)
        for name in _HEADS:
            heads = text.get(name)
            if isinstance(heads, int) and heads % ranks:
                raise _unsupported(source, f"its {name}, {heads}, cannot be divided by {ranks} ranks")
        model.shard(self._group)


def _unsupported(source: ModelSource, why: str) -> SidecarError:
    return SidecarError(
        Reason.MODEL_UNSUPPORTED, f"{source.name} cannot run on several machines: {why}; take it out of group.models"
    )
