"""The layout of one model's KV cache: which layers share extents, and how to build, restore and pack its caches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from daemon.kv.extent_ledger import Run
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx import checkpoints
from daemon.kv.mlx.adapters import ADAPTERS, BATCH_ADAPTERS, BLOCK_ADAPTERS, STATE_ADAPTERS
from daemon.kv.mlx.adapters.base import LayerShape
from daemon.kv.mlx.adapters.cache_list import leaves
from daemon.kv.mlx.adapters.kv_cache import KVShape
from daemon.kv.mlx.growth import ROOM_STEP, Growth, measuring
from daemon.kv.mlx.layerwise import forward_layerwise
from daemon.kv.mlx.shared_prefix import SharedPrefix
from daemon.kv.mlx.sharing import behind, reading
from daemon.kv.nodes import Checkpoint, Extent
from daemon.kv.spec import LayerGroup, PrefixSpec
from daemon.shared.slices import Sliced


@dataclass(frozen=True)
class Layout:
    """
    How one model keeps its KV. It knows no cache class: what a class needs is the task of its adapter.

    Layers are numbered by their caches, in order; the members of a `CacheList` count one by one.

    Attributes:
        signature: Class, shape and dtype of every cache; part of the namespace.
        bytes_per_token: KV bytes of one token, all layers; a window is counted as if it never forgot.
        shapes: Shape of every cache; empty if nothing can be reused.
        groups: Numbers of the caches of equal shape with KV in blocks; each group shares extents.
        states: Numbers of the caches of recurrent layers, with a state in checkpoints.
        billed: Shape of every cache, as far as memory goes; also where nothing can be reused. In a group these are the
            caches of the rank with the most layers.
        warning: Why nothing is reused although all classes are known; empty if that is not so.
    """

    signature: str
    bytes_per_token: int
    shapes: tuple[LayerShape, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    states: tuple[int, ...] = ()
    billed: tuple[Growth, ...] = ()
    warning: str = ""

    @property
    def reusable(self) -> bool:
        """Whether prefixes can be reused."""
        return bool(self.shapes)

    @property
    def kind(self) -> str:
        """The shape of all caches, if each is KV of full attention and all are alike; empty otherwise."""
        alike = len(self.groups) == 1 and len(set(self.shapes)) == 1 and self.shapes[0].window is None
        return str(self.shapes[0]) if alike else ""

    @property
    def bills_own(self) -> bool:
        """Whether the bytes that are billed are those of this rank's caches."""
        return not self.shapes or len(self.billed) == len(self.shapes)

    def billed_as(self, caches: int) -> Layout:
        """Return this layout, of one `kind`, with the bytes of so many caches."""
        shape = self.shapes[0]
        signature, nbytes = f"{caches} {shape}", caches * shape.bytes_per_token
        return replace(self, signature=signature, bytes_per_token=nbytes, billed=(shape,) * caches)

    @cached_property
    def parts(self) -> PrefixSpec:
        """What a stored prefix consists of. It is read for every token, so it is computed once."""
        return PrefixSpec(tuple(self._group(indices) for indices in self.groups), self.state_bytes)

    @cached_property
    def state_bytes(self) -> int:
        """Bytes of the states of all recurrent layers, independent of the number of tokens."""
        return sum(shape.state_bytes for shape in self.shapes)

    @cached_property
    def _kinds(self) -> Counter[Growth]:
        """How many caches there are of each shape that is billed. Most models have one or two shapes."""
        return Counter(self.billed)

    @cached_property
    def latent(self) -> bool:
        """Whether layers may keep latents, which a pass over several tokens expands: those of each row."""
        return any(
            isinstance(shape, KVShape) and shape.heads == 1 and shape.key_width > shape.value_width
            for shape in self.shapes
        )

    def layer_bytes(self, tokens: int, *, reserved: bool = False) -> int:
        """
        Return the bytes of the largest layer with room for `tokens` tokens.

        Args:
            tokens: The tokens.
            reserved: Whether all of the room was reserved, so that layers with full attention are never copied and do
                not count.
        """
        shapes = set(self._kinds)
        if reserved and self.reusable:
            shapes = {shape for shape in self.shapes if shape.window is not None or shape.state_bytes}
        return max((shape.live_bytes(_room(shape, tokens), 1) for shape in shapes), default=0)

    def live_bytes(self, tokens: int, chunk: int, held: int | None = None) -> int:
        """
        Return the bytes of a sequence's cache with room for `tokens` tokens.

        Full attention has room in whole steps of 256 tokens. A window holds the tokens that it sees and the chunk that
        is computed. While it sees all tokens, it grows by 256 from where the prompt ended. A recurrent state does not
        grow. What a class without an adapter takes was measured at two lengths.

        Args:
            tokens: Tokens of the prompt and those reserved for the answer.
            chunk: Most tokens computed at a time.
            held: Tokens of a prompt that is computed: a window has no room beyond them. None if tokens are generated.
        """
        if not self.billed:
            return capacity_for(tokens) * self.bytes_per_token
        return sum(count * shape.live_bytes(_room(shape, tokens, held), chunk) for shape, count in self._kinds.items())

    def undo_bytes(self, tokens: int) -> int:
        """Return the bytes of the states and windows of a sequence with room for `tokens` tokens."""
        windows = [shape for shape in self.shapes if shape.window is not None]
        return self.state_bytes + sum(shape.live_bytes(_room(shape, tokens), 1) for shape in windows)

    def full_bytes(self, tokens: int) -> int:
        """Return the bytes of so many tokens in the layers with full attention."""
        return self._as_billed(tokens * sum(shape.bytes_per_token for shape in self.shapes if shape.window is None))

    def new_cache(self, model: Any, tokens: int) -> list[Any]:
        """Return an empty cache with room for `tokens` tokens where the class allows it."""
        caches: list[Any] = make_prompt_cache(model)
        # There are no shapes if nothing can be reused; mlx-lm then grows the caches.
        for cache, shape in zip(leaves(caches), self.shapes, strict=False):
            if adapter := ADAPTERS.get(type(cache)):
                adapter.reserve(cache, shape, capacity_for(tokens))
        return caches

    def restored_cache(
        self,
        model: Any,
        groups: Sequence[Sequence[Run]],
        checkpoint: Checkpoint | None,
        prefix: int,
        tokens: int,
        shared: SharedPrefix | None = None,
    ) -> list[Any]:
        """
        Return a cache that holds `prefix` tokens, with room for `tokens` in all.

        Args:
            model: The model.
            groups: For each layer group, where its KV is stored.
            checkpoint: The states of the recurrent layers; needed if the model has any.
            prefix: Tokens of the match.
            tokens: Tokens that the cache shall have room for.
            shared: The beginning of the prefix that is in memory once, and is not copied; None if there is none.

        Raises:
            RuntimeError: If the layers do not all hold the prefix.
            ValueError: If there is nothing to restore, or it does not fit.
        """
        caches: list[Any] = make_prompt_cache(model)
        flat = list(leaves(caches))
        for indices, runs in zip(self.groups, groups, strict=True):
            if shared is not None and indices[0] in shared.layers:
                self._restore_tails(flat, indices, behind(runs, shared.stop), capacity_for(tokens - shared.stop))
                continue
            group = [flat[index] for index in indices]
            BLOCK_ADAPTERS[type(group[0])].restore(group, runs, prefix, capacity_for(tokens))
        if self.states:
            if checkpoint is None:
                raise ValueError("recurrent layers cannot be restored without a checkpoint")
            checkpoints.restore([flat[index] for index in self.states], checkpoint)
        if shared is not None:
            caches = reading(caches, shared, {index: flat[index] for index in shared.layers})
        self.check_length(caches, prefix)
        return caches

    def check_length(self, caches: Sequence[Any], tokens: int) -> None:
        """
        Check that every layer that counts its tokens holds `tokens` of them. A recurrent state does not count.

        Raises:
            RuntimeError: If a layer holds another number.
        """
        flat = list(leaves(caches))
        counting = [flat[index] for indices in self.groups for index in indices]
        lengths = {BLOCK_ADAPTERS[type(cache)].length(cache) for cache in counting}
        if lengths - {tokens}:
            raise RuntimeError(f"layers hold {sorted(lengths)} tokens instead of {tokens}")

    def compact(self, caches: Sequence[Any]) -> None:
        """Prepare caches that a pass wrote to for their evaluation: what they keep of it shall keep nothing else."""
        for cache in leaves(caches):
            if adapter := ADAPTERS.get(type(cache)):
                adapter.compact(cache)

    def shrink(self, caches: Sequence[Any], room: int | None = None) -> None:
        """
        Let caches, of a sequence or a batch, keep only what decode needs. Evaluated, one layer after the other.

        Args:
            caches: One for each layer.
            room: Tokens that may follow, where rows have left: what they had room for is given back.
        """
        for cache in caches:
            full = [leaf for leaf in leaves([cache]) if not leaf.empty()]
            for leaf in full:
                if adapter := ADAPTERS.get(type(leaf)):
                    adapter.shrink(leaf)
                if room is not None and (adapter := adapter or BATCH_ADAPTERS.get(type(leaf))):
                    adapter.fit(leaf, room)
            mx.eval([leaf.state for leaf in full])

    def pack(self, caches: Sequence[Any], group: int, start: int, stop: int) -> Extent:
        """
        Copy blocks `start` to `stop` of a layer group out of a live cache into an evaluated extent.

        Raises:
            NotHeldError: If the cache does not hold them, or no longer.
        """
        layers = self._layers(caches, group)
        return self._billed_extent(BLOCK_ADAPTERS[type(layers[0])].pack(layers, start, stop))

    def tail(self, caches: Sequence[Any], group: int, first: int, last: int) -> Extent:
        """
        Copy tokens `first` to `last` of a layer group, which end inside a block, into an extent of that block.

        Raises:
            NotHeldError: If the cache does not hold them, or no longer.
        """
        layers = self._layers(caches, group)
        return self._billed_extent(BLOCK_ADAPTERS[type(layers[0])].tail(layers, first, last))

    def state(self, caches: Sequence[Any], row: int | None = None) -> checkpoints.States:
        """Return the present states of the recurrent layers, of one row of a batch if `row` is given."""
        flat = list(leaves(caches))
        return checkpoints.states([flat[index] for index in self.states], row)

    def _layers(self, caches: Sequence[Any], group: int) -> list[Any]:
        flat = list(leaves(caches))
        return [flat[index] for index in self.groups[group]]

    def _restore_tails(self, flat: list[Any], indices: Sequence[int], runs: Sequence[Run], capacity: int) -> None:
        """Fill caches of full attention with what is behind a shared prefix, if anything is, and leave room."""
        tails = [flat[index] for index in indices]
        if runs:
            BLOCK_ADAPTERS[type(tails[0])].restore(tails, runs, 0, capacity)
            return
        for tail in tails:
            ADAPTERS[type(tail)].reserve(tail, self.shapes[indices[0]], capacity)

    def _group(self, indices: Sequence[int]) -> LayerGroup:
        shape = self.shapes[indices[0]]
        return LayerGroup(self._as_billed(len(indices) * shape.bytes_per_token * BLOCK_TOKENS), shape.window)

    def _billed_extent(self, extent: Extent) -> Extent:
        extent.nbytes = self._as_billed(extent.nbytes)
        return extent

    def _as_billed(self, nbytes: int) -> int:
        """Return what bytes of this rank's caches are billed as; exact, as all caches are alike if there are others."""
        return nbytes if self.bills_own else nbytes * len(self.billed) // len(self.shapes)


def capacity_for(tokens: int) -> int:
    """Return the capacity of a cache for `tokens` tokens."""
    return -(-tokens // ROOM_STEP) * ROOM_STEP


def describing(model: Any) -> Sliced[Layout]:
    """
    Run one token through a model, a layer for each `next`, and return the layout of the cache that it leaves.

    Without an adapter for every cache nothing can be reused: the layout then has no shapes.
    """
    caches = make_prompt_cache(model)
    yield from forward_layerwise(model, mx.array([[0]]), caches)
    flat = list(leaves(caches))
    described = [_describe(cache) for cache in flat]
    shapes = tuple(shape for shape in described if shape is not None)
    if len(shapes) < len(flat) or not shapes:
        names = "+".join(type(cache).__name__ for cache in flat)
        measured = yield from measuring(model, caches)
        return Layout(names, sum(one.per_token for one in measured), billed=measured)
    groups: dict[LayerShape, list[int]] = {}
    for index, cache in enumerate(flat):
        if type(cache) in BLOCK_ADAPTERS:
            groups.setdefault(shapes[index], []).append(index)
    return Layout(
        signature=";".join(map(str, shapes)),
        bytes_per_token=sum(shape.bytes_per_token for shape in shapes),
        shapes=shapes,
        groups=tuple(map(tuple, groups.values())),
        states=tuple(index for index, cache in enumerate(flat) if type(cache) in STATE_ADAPTERS),
        billed=shapes,
    )


def _room(shape: Growth, tokens: int, held: int | None = None) -> int:
    """
    Return the capacity that a cache may have for `tokens` tokens, or for the `held` ones of a prompt.

    A window has no room reserved: it grows by a step from any length, when the last token is written at the latest.
    """
    if getattr(shape, "window", None) is None:
        return capacity_for(tokens)
    return tokens + ROOM_STEP - 1 if held is None else held


def _describe(cache: Any) -> LayerShape | None:
    """Return the shape of a cache that one token was fed to; None if no adapter knows exactly this class."""
    adapter = ADAPTERS.get(type(cache))
    return adapter.describe(cache) if adapter is not None else None
