"""The layout of a model's KV cache: which of it can be cached, and how to build and restore it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from daemon.kv.extent_ledger import Run
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx.adapters import arrays, kv_cache, rotating
from daemon.kv.mlx.adapters.cache_list import leaves
from daemon.kv.mlx.layerwise import forward_layerwise
from daemon.kv.nodes import Checkpoint, Extent
from daemon.kv.spec import LayerGroup, PrefixSpec
from daemon.shared.slices import Sliced

ROOM_STEP = 256
"""Tokens by which mlx-lm grows a KV cache; capacities are multiples of it."""

Shape = kv_cache.Shape | rotating.Shape | arrays.Shape


@dataclass(frozen=True)
class Layout:
    """
    How one model keeps its KV. Caches are counted with those of a CacheList one by one.

    Attributes:
        signature: Class, shape and dtype of every cache; part of the namespace.
        bytes_per_token: KV bytes of one token, all layers; a window is counted as if it never forgot.
        shapes: Those of every cache; empty if nothing can be reused.
        groups: Caches of equal shape whose KV is kept in blocks; they share extents.
        states: Caches of recurrent layers, whose state is kept in checkpoints.
        warning: Why nothing is reused although all classes are known; empty if that is not so.
    """

    signature: str
    bytes_per_token: int
    shapes: tuple[Shape, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    states: tuple[int, ...] = ()
    warning: str = ""

    @property
    def reusable(self) -> bool:
        """Whether prefixes can be reused."""
        return bool(self.shapes)

    @cached_property
    def parts(self) -> PrefixSpec:
        """What a stored prefix consists of. Asked for with each token, made once."""
        return PrefixSpec(tuple(self._group(indices) for indices in self.groups), self.state_bytes)

    @cached_property
    def state_bytes(self) -> int:
        """Bytes of the state of recurrent layers, whatever the number of tokens."""
        return sum(shape.nbytes for shape in self.shapes if isinstance(shape, arrays.Shape))

    def live_bytes(self, tokens: int, chunk: int) -> int:
        """
        Return the bytes of a sequence's cache with room for so many tokens.

        Full attention grows with them in steps of 256; a window holds what it sees and the chunk that is computed; a
        recurrent state is always the same; a class that is not known counts as if it never forgot.

        Args:
            tokens: Tokens of the prompt and those reserved for the answer.
            chunk: Most tokens computed at a time.
        """
        room = capacity_for(tokens)
        if not self.shapes:
            return room * self.bytes_per_token
        held = self.state_bytes
        for shape in self.shapes:
            if isinstance(shape, rotating.Shape):
                held += min(room, shape.window + chunk) * shape.bytes_per_token
            elif isinstance(shape, kv_cache.Shape):
                held += room * shape.bytes_per_token
        return held

    def new_cache(self, model: Any, tokens: int) -> list[Any]:
        """Return an empty cache with room for `tokens` tokens where the class allows it."""
        caches: list[Any] = make_prompt_cache(model)
        for cache, shape in zip(leaves(caches), self.shapes, strict=False):
            if isinstance(shape, kv_cache.Shape):
                kv_cache.reserve(cache, shape, capacity_for(tokens))
        return caches

    def restored_cache(
        self, model: Any, groups: Sequence[Sequence[Run]], checkpoint: Checkpoint | None, prefix: int, tokens: int
    ) -> list[Any]:
        """
        Return a cache that holds `prefix` tokens, with room for `tokens` in all.

        Args:
            model: The model.
            groups: Where the KV of each layer group is.
            checkpoint: The state of recurrent layers; needed if there are any.
            prefix: Tokens of the match.
            tokens: Tokens that the cache shall have room for.

        Raises:
            RuntimeError: If the layers do not all hold the prefix.
            ValueError: If there is nothing to restore, or it does not fit.
        """
        caches: list[Any] = make_prompt_cache(model)
        flat = list(leaves(caches))
        for indices, runs in zip(self.groups, groups, strict=True):
            group = [flat[index] for index in indices]
            if isinstance(self.shapes[indices[0]], rotating.Shape):
                rotating.restore(group, runs, prefix)
            else:
                kv_cache.restore(group, runs, capacity_for(tokens))
        if self.states:
            if checkpoint is None:
                raise ValueError("recurrent layers cannot be restored without a checkpoint")
            arrays.restore([flat[index] for index in self.states], checkpoint)
        self.check_length(caches, prefix)
        return caches

    def check_length(self, caches: Sequence[Any], tokens: int) -> None:
        """
        Check that every layer that counts its tokens holds as many as it should.

        Raises:
            RuntimeError: If one does not.
        """
        flat = list(leaves(caches))
        lengths = {flat[index].offset for indices in self.groups for index in indices}
        if lengths - {tokens}:
            raise RuntimeError(f"layers hold {sorted(lengths)} tokens instead of {tokens}")

    def pack(self, caches: Sequence[Any], group: int, start: int, stop: int) -> Extent:
        """
        Copy blocks `start` to `stop` of a layer group out of a live cache into an evaluated extent.

        Raises:
            NotHeldError: If the cache does not hold them (any more).
        """
        flat = list(leaves(caches))
        chosen = [flat[index] for index in self.groups[group]]
        if isinstance(self.shapes[self.groups[group][0]], rotating.Shape):
            return rotating.pack(chosen, start, stop)
        return kv_cache.pack(chosen, start, stop)

    def state(self, caches: Sequence[Any], row: int | None = None) -> arrays.States:
        """Return the present state of the recurrent layers, of one row of a batch if so asked. No copy."""
        flat = list(leaves(caches))
        return arrays.states([flat[index] for index in self.states], row)

    def _group(self, indices: Sequence[int]) -> LayerGroup:
        shape = self.shapes[indices[0]]
        assert not isinstance(shape, arrays.Shape), "a recurrent layer has no blocks"
        window = shape.window if isinstance(shape, rotating.Shape) else None
        return LayerGroup(len(indices) * shape.bytes_per_token * BLOCK_TOKENS, window)


def capacity_for(tokens: int) -> int:
    """Return the capacity that a cache for `tokens` tokens gets."""
    return -(-tokens // ROOM_STEP) * ROOM_STEP


def describing(model: Any) -> Sliced[Layout]:
    """Run a token through a model, a layer for each `next`, and return the layout of the cache that it leaves."""
    caches = make_prompt_cache(model)
    yield from forward_layerwise(model, mx.array([[0]]), caches)
    flat = list(leaves(caches))
    found = [_shape(cache) for cache in flat]
    shapes = tuple(shape for shape in found if shape is not None)
    if len(shapes) < len(flat) or not shapes:
        names = "+".join(type(cache).__name__ for cache in flat)
        return Layout(names, _opaque_bytes_per_token(caches))
    blocks = [shape for shape in shapes if not isinstance(shape, arrays.Shape)]
    return Layout(
        signature=";".join(map(str, shapes)),
        bytes_per_token=sum(shape.bytes_per_token for shape in blocks),
        shapes=shapes,
        groups=tuple(
            tuple(index for index, shape in enumerate(shapes) if shape == unique) for unique in dict.fromkeys(blocks)
        ),
        states=tuple(index for index, shape in enumerate(shapes) if isinstance(shape, arrays.Shape)),
    )


def _shape(cache: Any) -> Shape | None:
    """Return the shape of a cache that one token was fed to; None if no adapter understands it exactly."""
    if type(cache) is arrays.CACHE_CLASS:
        return arrays.Shape.of(cache) if arrays.understood(cache) else None
    if getattr(cache, "offset", 0) != 1:
        return None
    if type(cache) is kv_cache.CACHE_CLASS:
        return kv_cache.Shape.of(cache)
    if type(cache) is rotating.CACHE_CLASS and rotating.understood(cache):
        return rotating.Shape.of(cache)
    return None


def _opaque_bytes_per_token(caches: Sequence[Any]) -> int:
    """Return an upper bound: what one token took, growth in steps included."""
    return -(-sum(int(getattr(cache, "nbytes", 0)) for cache in caches) // ROOM_STEP)
