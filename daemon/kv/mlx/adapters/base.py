"""The interface between the prefix cache and one mlx-lm cache class: what each adapter provides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx

from daemon.kv.extent_ledger import Run
from daemon.kv.nodes import Extent


class LayerShape(Protocol):
    """
    Everything that two layers must agree in before they can share stored KV. Hashable.

    Its text is a part of the namespace: layouts that differ in it never share a block.
    """

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's KV; 0 if the layer keeps a state instead."""

    @property
    def state_bytes(self) -> int:
        """Bytes of the layer's state, independent of the number of tokens; 0 if the layer keeps KV."""

    @property
    def window(self) -> int | None:
        """Tokens that the layer attends to; None if it attends to all of them."""

    def live_bytes(self, capacity: int, chunk: int) -> int:
        """
        Return the bytes of a running request's cache.

        Args:
            capacity: Tokens that the cache has room for.
            chunk: Most tokens computed at a time.
        """


class CacheAdapter(ABC):
    """
    What every adapter provides: a description of a cache, and its way into a batch and out of it.

    Adapters have no state. They are found by the exact class of a cache: a subclass may keep something that its base
    class does not, so it has no adapter until it gets its own.

    Attributes:
        cache_class: The class of one sequence's cache.
        batch_class: The class that mlx-lm uses for several sequences; the same class if it holds rows itself.
    """

    cache_class: type
    batch_class: type

    @abstractmethod
    def describe(self, cache: Any) -> LayerShape | None:
        """Return the shape of a cache after exactly one token; None if the adapter cannot handle this cache."""

    def reserve(self, cache: Any, shape: Any, capacity: int) -> None:  # noqa: B027 # a default, not a gap
        """Give an empty cache room for `capacity` tokens. Does nothing where the class has no room to reserve."""

    @abstractmethod
    def pretend(self, cache: Any, shape: Any, tokens: int) -> None:
        """Let a cache stand as if it held so many tokens, all of them zeros: `reserve` gave it room, if it has any."""

    def compact(self, cache: Any) -> None:  # noqa: B027 # a default, not a gap
        """Let no array of a cache be a view that keeps a larger one in memory. Does nothing where none is."""

    def shrink(self, cache: Any) -> None:
        """Let a cache keep only what decode needs: no views of a batch's arrays, and no tokens that left a window."""
        self.compact(cache)

    def fit(self, cache: Any, room: int) -> None:  # noqa: B027 # a default, not a gap
        """Let a cache, of a sequence or a batch, have room for so many more tokens. Does nothing as `reserve` does."""

    def can_batch(self, cache: Any) -> bool:
        """Whether mlx-lm can batch this cache."""
        return True

    @abstractmethod
    def to_batch(self, cache: Any) -> Any:
        """Return the cache of one sequence as a batch of one row."""

    def to_single(self, batch: Any, row: int) -> Any:
        """Return one row of a batch as the cache of one sequence; its arrays may be views of the batch."""
        return batch.extract(row)

    @abstractmethod
    def mark(self, cache: Any) -> Any:
        """Return what `back` needs to undo all of what is written from now on. No copy."""

    @abstractmethod
    def back(self, cache: Any, mark: Any, fed: int, kept: int) -> None:
        """
        Take the last tokens of a pass out again.

        Args:
            cache: The cache of one sequence.
            mark: What `mark` returned before the pass; not needed if some tokens stay.
            fed: Tokens of the pass: two or more if some of them stay.
            kept: How many of them stay, fewer; 0 if any cache of the sequence is a state, which sums up all tokens.
        """

    def begin_rows(self, batch: Any, lengths: Sequence[int], width: int) -> None:  # noqa: B027 # a default, not a gap
        """Prepare for a pass of `lengths` tokens a row, padded to `width` behind them. Does nothing by default."""

    @abstractmethod
    def back_rows(self, batch: Any, mark: Any, width: int, kept: Sequence[int]) -> None:
        """
        Take the last tokens of each row out again, and the padding behind them.

        Args:
            batch: The cache of several sequences, after the pass.
            mark: What `mark` returned for it after `begin_rows`; None if each row keeps a token or more.
            width: Tokens of the pass, two or more, padding included.
            kept: How many of each row stay; all of its own or none in each row if any cache of the model is a state.
        """


class BlockAdapter(CacheAdapter):
    """An adapter of layers that keep KV for each token: it is stored in blocks, many of them in one extent."""

    def length(self, cache: Any) -> int:
        """Return how many tokens a cache has seen."""
        return int(cache.offset)

    @abstractmethod
    def pack(self, caches: Sequence[Any], start: int, stop: int) -> Extent:
        """
        Copy blocks `start` to `stop` of layers of equal shape into one evaluated extent.

        Raises:
            NotHeldError: If a layer does not hold these tokens, or no longer.
        """

    @abstractmethod
    def tail(self, caches: Sequence[Any], first: int, last: int) -> Extent:
        """
        Copy tokens `first` to `last`, which end inside a block, into one evaluated extent of that block.

        Raises:
            NotHeldError: If a layer does not hold these tokens, or no longer.
        """

    @abstractmethod
    def restore(self, caches: Sequence[Any], runs: Sequence[Run], tokens: int, capacity: int) -> None:
        """
        Fill empty caches of layers of equal shape with stored KV. Evaluated when it returns.

        Args:
            caches: One for each layer, in the order in which they were packed.
            runs: Where the tokens are, in order; the last run ends with the prefix.
            tokens: Length of the prefix.
            capacity: Tokens that the caches shall have room for.

        Raises:
            ValueError: If a cache is not empty, or `runs` are empty or do not fit.
        """


class MergingAdapter(BlockAdapter):
    """An adapter of layers that keep each token for itself: their caches can become one batch before a prefill pass."""

    @abstractmethod
    def merge(self, caches: Sequence[Any], kept: Sequence[int], padding: Sequence[int], room: int) -> Any:
        """
        Copy the caches of several sequences into one batch; its rows end together.

        Args:
            caches: One cache for each row; empty ones are allowed.
            kept: Tokens to copy of each.
            padding: Positions at the start of each row that hold no token, those of the coming pass included.
            room: Tokens to leave room for.
        """


class StateAdapter(CacheAdapter):
    """An adapter of recurrent layers: a state sums up all tokens so far, and is stored in checkpoints."""

    @abstractmethod
    def state(self, cache: Any, row: int | None = None) -> list[mx.array]:
        """Return the arrays of a cache's present state, of one row of a batch if `row` is given. No copy."""

    @abstractmethod
    def slots(self, cache: Any) -> int:
        """Return how many arrays the state of a cache has, empty or not."""

    @abstractmethod
    def load(self, cache: Any, arrays: list[mx.array]) -> None:
        """Give an empty cache a state; `arrays` belong to it from now on."""
