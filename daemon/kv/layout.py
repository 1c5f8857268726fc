"""The layout of a model's KV cache: which layers can be cached as blocks, and how to build and restore them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import structlog
from mlx_lm.models.cache import make_prompt_cache

from daemon.kv.adapters import kv_cache, rotating
from daemon.kv.block import BLOCK_TOKENS
from daemon.kv.extents import Extent, Run
from daemon.kv.passes import in_pieces

ROOM_STEP = 256
"""Tokens by which mlx-lm grows a KV cache; capacities are multiples of it."""


Shape = kv_cache.Shape | rotating.Shape

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Layout:
    """
    How one model keeps its KV.

    Attributes:
        signature: Class, shape and dtype of every layer's cache; part of the namespace.
        groups: Layers that share extents, by equal signature; empty if nothing can be reused.
        bytes_per_token: KV bytes of one token, all layers.
        shapes: Those of every layer's cache; empty if nothing can be reused.
    """

    signature: str
    groups: tuple[tuple[int, ...], ...]
    bytes_per_token: int
    shapes: tuple[Shape, ...]

    @property
    def windowed(self) -> bool:
        """Whether some layer forgets old tokens, so that blocks must be stored before they leave its window."""
        return any(isinstance(shape, rotating.Shape) for shape in self.shapes)

    @property
    def reusable(self) -> bool:
        """Whether prefixes can be reused in blocks."""
        return bool(self.groups)

    @property
    def block_bytes(self) -> int:
        """KV bytes of one block, all layers."""
        return self.bytes_per_token * BLOCK_TOKENS

    def new_cache(self, model: Any, tokens: int) -> list[Any]:
        """Return an empty cache with room for `tokens` tokens where the class allows it."""
        caches: list[Any] = make_prompt_cache(model)
        for cache, shape in zip(caches, self.shapes, strict=False):
            if isinstance(shape, kv_cache.Shape):
                kv_cache.reserve(cache, shape, capacity_for(tokens))
        return caches

    def restored_cache(self, model: Any, groups: Sequence[Sequence[Run]], tokens: int) -> list[Any]:
        """
        Return a cache that holds the KV of `groups`' runs, with room for `tokens` tokens in all.

        Raises:
            RuntimeError: If the layers do not all hold the same number of tokens.
            ValueError: If there is nothing to restore, or it does not fit.
        """
        caches: list[Any] = make_prompt_cache(model)
        for layers, runs in zip(self.groups, groups, strict=True):
            group = [caches[layer] for layer in layers]
            if _is_plain(self.shapes[layers[0]]):
                kv_cache.restore(group, runs, capacity_for(tokens))
            else:
                rotating.restore(group, runs)
        lengths = {cache.offset for cache in caches}
        if len(lengths) != 1:
            raise RuntimeError(f"restored layers hold different numbers of tokens: {sorted(lengths)}")
        return caches

    def pack(self, caches: Sequence[Any], start: int, stop: int) -> list[Extent]:
        """
        Copy blocks `start` to `stop` out of a live cache: one evaluated extent for each group.

        Raises:
            NotHeldError: If the cache does not hold them (any more).
        """
        groups = [[caches[layer] for layer in layers] for layers in self.groups]
        adapters = [kv_cache if _is_plain(self.shapes[layers[0]]) else rotating for layers in self.groups]
        return [adapter.pack(group, start, stop) for adapter, group in zip(adapters, groups, strict=True)]


def capacity_for(tokens: int) -> int:
    """Return the capacity that a cache for `tokens` tokens gets."""
    return -(-tokens // ROOM_STEP) * ROOM_STEP


def probe(model: Any) -> Layout:
    """Do all of `probing` at once."""
    work = probing(model)
    while True:
        try:
            next(work)
        except StopIteration as end:
            layout: Layout = end.value
            return layout


def probing(model: Any) -> Generator[None, None, Layout]:
    """
    Run a few tokens through a model, a layer for each `next`, and return the layout of the cache that it leaves.

    Reuse is offered only if it is proven on this model: what a restored cache computes must equal what the cache did
    that it was packed from. That keeps a cache class or a model that changed under us from ever giving wrong answers.
    """
    layout = yield from _describe(model)
    if not layout.reusable or (yield from _reuse_is_exact(model, layout)):
        return layout
    log.warning("a restored KV cache computes something else; prefixes of this model are not reused")
    return replace(layout, groups=(), shapes=())


def _describe(model: Any) -> Generator[None, None, Layout]:
    caches = make_prompt_cache(model)
    yield from in_pieces(model, mx.array([[0]]), caches)
    found = [_shape(cache) for cache in caches]
    shapes = tuple(shape for shape in found if shape is not None)
    if len(shapes) < len(caches):
        names = "+".join(type(cache).__name__ for cache in caches)
        return Layout(names, (), _opaque_bytes_per_token(caches), ())
    groups = tuple(
        tuple(layer for layer, shape in enumerate(shapes) if shape == unique) for unique in dict.fromkeys(shapes)
    )
    bytes_per_token = sum(shape.bytes_per_token for shape in shapes)
    return Layout(";".join(map(str, shapes)), groups, bytes_per_token, shapes)


def _shape(cache: Any) -> Shape | None:
    """Return the shape of a cache that one token was fed to; None if no adapter understands it exactly."""
    if getattr(cache, "offset", 0) != 1:
        return None
    if type(cache) is kv_cache.CACHE_CLASS:
        return kv_cache.Shape.of(cache)
    if type(cache) is rotating.CACHE_CLASS and rotating.understood(cache):
        return rotating.Shape.of(cache)
    return None


def _is_plain(shape: Shape) -> bool:
    return isinstance(shape, kv_cache.Shape)


def _reuse_is_exact(model: Any, layout: Layout) -> Generator[None, None, bool]:
    """Compare the logits after two blocks, with the cache that computed them and with a restored copy of it."""
    tokens = mx.array([list(range(1, 2 * BLOCK_TOKENS + 2))])
    cold = layout.new_cache(model, tokens.shape[1])
    for block in (tokens[:, :BLOCK_TOKENS], tokens[:, BLOCK_TOKENS:-1]):
        yield from in_pieces(model, block, cold)
    try:
        runs = [[Run(extent.payload, 0, extent.blocks)] for extent in layout.pack(cold, 0, 2)]
        warm = layout.restored_cache(model, runs, tokens.shape[1])
    except (RuntimeError, ValueError):
        log.exception("the KV cache of this model cannot be packed and restored")
        return False
    logits = []
    for caches in (cold, warm):
        after = yield from in_pieces(model, tokens[:, -1:], caches)
        logits.append(after[0, -1].astype(mx.float32))
    expected, got = logits
    close = mx.allclose(got, expected, rtol=1e-3, atol=1e-3, equal_nan=True)
    return bool(close.item()) and bool((mx.argmax(got) == mx.argmax(expected)).item())


def _opaque_bytes_per_token(caches: Sequence[Any]) -> int:
    """Return an upper bound: what one token took, growth in steps included."""
    return -(-sum(int(getattr(cache, "nbytes", 0)) for cache in caches) // ROOM_STEP)
