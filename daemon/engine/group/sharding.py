"""Cuts models for the ranks of a group: mlx-lm does it, after a check that the model can be cut so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar
from zlib import crc32

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from daemon.cache.identity import ModelKey, ModelSource
from daemon.cache.mlx.load_errors import load_errors
from daemon.engine.group.digest import RANK
from daemon.kv.mlx.layout import Layout
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.failures import error_of, failure_of
from daemon.shared.group_values import PIPELINE, TENSOR
from daemon.shared.readings import about_to_wait
from daemon.v1 import ipc_pb2 as ipc

T = TypeVar("T")

_HEADS = ("num_attention_heads", "num_key_value_heads")


class Sharding:
    """
    Leaves each rank its part of a model: of each layer (tensor), or some of the layers (pipeline).

    In a pipeline all ranks must have layers of the same kinds. If all layers are of one kind, their numbers may differ:
    each rank then bills the KV of the one with the most. So all evict and restore alike.

    Args:
        group: MLX's group of the ranks.
        models: How models are cut, by name; one that is not named is cut as `auto`.
        trouble: Called with what failed at this rank, if the others may not have failed.
    """

    def __init__(self, group: mx.distributed.Group, models: Mapping[str, str], trouble: Callable[[str], None]) -> None:
        self._group = group
        self._models = models
        self._trouble = trouble
        self._cuts: dict[ModelKey, str] = {}

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
        self._cuts[source.key] = PIPELINE if no_tensor or how == PIPELINE else TENSOR
        if self._cuts[source.key] == TENSOR:
            model.shard(self._group)
            return
        if no_pipeline := self._no_pipeline(model):
            raise _unsupported(source, no_pipeline if how == PIPELINE else f"{no_tensor}, and {no_pipeline}")
        model.model.pipeline(self._group)
        kinds = [type(cache).__name__ for cache in make_prompt_cache(model)]
        if not self._same("+".join(kinds)):
            self._one_kind(source, kinds[0] if len(set(kinds)) == 1 else "")

    def most(self, value: int) -> int:
        """Return the largest value of all ranks. All ask at the same place."""
        about_to_wait()
        largest: Any = mx.distributed.all_max(mx.array(value, mx.int64), group=self._group)
        return int(largest.item())

    def together(self, source: ModelSource, work: Callable[[], T]) -> T:
        """
        Do what each rank does by itself, and return this rank's result. The ranks meet afterwards.

        Raises:
            SidecarError: On all ranks, that of the first rank that failed.
        """
        failed: SidecarError | None = None
        try:
            with load_errors(source):
                result = work()
        except SidecarError as error:
            failed = error
        if first := self.most(0 if failed is None else self._group.size() - self._group.rank()):
            rank = self._group.size() - first
            raise self._shown(failed if rank == self._group.rank() else None, rank)
        return result

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Tell what fails in a block in which the ranks meet."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, SidecarError):
                self._trouble(type(error).__name__)
            elif RANK not in error.metadata:
                self._trouble(error.message)
            raise

    def _shown(self, error: SidecarError | None, rank: int) -> SidecarError:
        """Return the error of a rank, which shows it to the others."""
        body = b""
        if error is not None:
            failure = failure_of(error)
            failure.message = f"rank {rank}: {error.message}" if rank else error.message
            failure.metadata[RANK] = str(rank)
            body = failure.SerializeToString()
        body = body.ljust(self.most(len(body)), b"\0")
        shown: Any = mx.distributed.all_max(mx.array(list(body), mx.int32), group=self._group)
        return error_of(ipc.Failure.FromString(bytes(shown.tolist())))

    def alike(self, source: ModelSource, layout: Layout) -> Layout:
        """
        Compare how the ranks keep the KV of their layers, and return how all bill it: as the rank with the most layers.

        Its signature names the cut: parts of one cut are nothing to another one, or to the whole model.

        Raises:
            SidecarError: MODEL_UNSUPPORTED on all ranks, if their layers are of different kinds.
        """
        if not self._same(layout.signature):
            self._one_kind(source, layout.kind)
            layout = layout.billed_as(self.most(len(layout.shapes)))
        return replace(layout, signature=f"{self._cuts[source.key]} {self._group.size()}: {layout.signature}")

    def _same(self, text: str) -> bool:
        """Return whether a text is the same on all ranks, which ask at the same place."""
        own = crc32(text.encode())
        return not self.most(own) + self.most(-own)

    def _one_kind(self, source: ModelSource, kind: str) -> None:
        """Refuse ranks with different numbers of layers, unless all layers are of one kind; empty if they are not."""
        if not self._same(kind) or not kind:
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
        return f"{ranks} ranks are more than its {layers} layers" if layers < ranks else ""


def _unsupported(source: ModelSource, why: str) -> SidecarError:
    return SidecarError(
        Reason.MODEL_UNSUPPORTED, f"{source.name} cannot run on several machines: {why}; take it out of group.models"
    )
