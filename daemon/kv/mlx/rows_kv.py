"""
KV of a batch in which rows may end at different positions: each row can forget the last tokens of a pass.

mlx-lm's `BatchKVCache` pads rows on the left: all of them end at one position, and a pass writes there. After a pass
with guesses each row keeps another number of tokens. Its end then goes back alone, and nothing is copied:

    before         . . a a a a           two rows, the first one padded
                   b b b b b b
    pass of three  . . a a a a A A x     x was guessed wrongly
                   b b b b b b B - -     the second row had no guesses: padding
    kept           . . a a a a A A       ends: 8 and 7
                   b b b b b b B
    next pass      . . a a a a A A A     each row is written to at its own end
                   b b b b b b B B       and sees nothing beyond it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, dynamic_roll


class RowsKV(BatchKVCache):  # type: ignore[misc] # mlx-lm has no types
    """
    A `BatchKVCache` with an end for each row.

    Args:
        left_padding: Positions at the start of each row that hold no token.

    Attributes:
        ends: The position at which each row ends; None while all end at the same one, as in mlx-lm's class.
    """

    keys: mx.array
    values: mx.array
    offset: mx.array
    left_padding: Any
    _idx: int

    def __init__(self, left_padding: Sequence[int]) -> None:
        super().__init__(list(left_padding))
        self.ends: list[int] | None = None

    def end(self, row: int) -> int:
        """Return the position at which a row ends."""
        return int(self._idx) if self.ends is None else self.ends[row]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write the tokens of a pass behind each row, and return all positions up to the longest row's end."""
        if self.ends is None:
            fetched: tuple[mx.array, mx.array] = super().update_and_fetch(keys, values)
            return fetched
        count = keys.shape[2]
        self._make_room(count)
        places = self._places(count)[:, None, :, None]
        self.keys = _written(self.keys, places, keys)
        self.values = _written(self.values, places, values)
        self.ends = [end + count for end in self.ends]
        self.offset = self.offset + count
        self._idx += count
        return self.keys[..., : self._idx, :], self.values[..., : self._idx, :]

    def make_mask(self, N: int, return_array: bool = False, **kwargs: Any) -> mx.array:  # noqa: N803
        """Return what each token of a pass sees of its row, [rows, 1, tokens, positions]."""
        if self.ends is None:
            mask: mx.array = super().make_mask(N, return_array=return_array, **kwargs)
            return mask
        own, all_of_them = self._places(N)[:, None, :, None], mx.arange(self._idx + N)
        seen: mx.array = (all_of_them <= own) & (all_of_them >= self.left_padding[:, None, None, None])
        window = kwargs.get("window_size")
        if window is not None:
            seen = seen & (own < all_of_them + window)
        return seen

    def trim(self, n: int) -> int:
        """Take the last tokens of all rows out again."""
        if self.ends is not None:
            self.ends = [end - n for end in self.ends]
        return int(super().trim(n))

    def forget(self, counts: Sequence[int]) -> None:
        """Take the last tokens of each row out again, so many of them."""
        ends = [self.end(row) - count for row, count in enumerate(counts)]
        self.offset = self.offset - mx.array(list(counts))
        self._idx = max(ends)
        self.ends = ends if min(ends) < self._idx else None

    def filter(self, batch_indices: list[int]) -> None:
        """Keep these rows, in this order; they are copied."""
        before = self._idx
        ends = None if self.ends is None else [self.ends[row] for row in batch_indices]
        super().filter(batch_indices)
        if ends is not None:
            dropped = before - self._idx
            self._idx = max(ends) - dropped
            self.ends = None if min(ends) == max(ends) else [end - dropped for end in ends]

    def extend(self, other: RowsKV) -> None:
        """
        Add the rows of another batch; all rows are copied, and end at one position.

        Evaluated, the keys first and then the values: one of them exists twice at a time. mlx-lm pads rows before it
        joins them, so a padded copy of both would exist beside these.
        """
        self._align()
        other._align()
        ends = [self._idx, other._idx]
        longest, room = max(ends), max(self.keys.shape[2], other.keys.shape[2])
        self.keys = _joined([self.keys, other.keys], ends, room)
        self.values = _joined([self.values, other.values], ends, room)
        padding = [self.left_padding + (longest - ends[0]), other.left_padding + (longest - ends[1])]
        self.left_padding = mx.concatenate(padding)
        self.offset = mx.concatenate([self.offset, other.offset])
        self._idx = longest

    def _align(self) -> None:
        """Move the rows to the right, so that all end with the longest. Evaluated: one array exists twice at a time."""
        if self.ends is None:
            return
        shift = mx.array([self._idx - end for end in self.ends])[:, None]
        # With the room behind them, which another copy would add again; what wraps around is padding.
        self.keys = dynamic_roll(self.keys, shift, axis=2)
        mx.eval(self.keys)
        self.values = dynamic_roll(self.values, shift, axis=2)
        mx.eval(self.values)
        self.left_padding = self.left_padding + shift[:, 0]
        self.ends = None

    def _places(self, count: int) -> mx.array:
        """Return the positions of the next tokens of each row, [rows, tokens]."""
        assert self.ends is not None
        return mx.array(self.ends)[:, None] + mx.arange(count)

    def _make_room(self, count: int) -> None:
        """Let the arrays have room for so many tokens more behind the longest row; by whole steps of mlx-lm's."""
        lacking = self._idx + count - self.keys.shape[2]
        if lacking > 0:
            more = [(0, 0), (0, 0), (0, -(-lacking // self.step) * self.step), (0, 0)]
            self.keys, self.values = mx.pad(self.keys, more), mx.pad(self.values, more)


def _joined(parts: Sequence[mx.array], ends: Sequence[int], room: int) -> mx.array:
    """Copy the rows of arrays into one with room for so many tokens, in which all of them end together; evaluated."""
    counts = [part.shape[0] for part in parts]
    _, heads, _, width = parts[0].shape
    rows, first, longest = mx.zeros((sum(counts), heads, room, width), parts[0].dtype), 0, max(ends)
    for part, count, end in zip(parts, counts, ends, strict=True):
        rows[first : first + count, :, longest - end : longest] = part[:, :, :end]
        first += count
    mx.eval(rows)
    return rows


def _written(array: mx.array, places: mx.array, tokens: mx.array) -> mx.array:
    return mx.put_along_axis(array, mx.broadcast_to(places, tokens.shape), tokens.astype(array.dtype), axis=2)
