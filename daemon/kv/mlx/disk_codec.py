"""Arrays of stored KV as bytes for the disk tier, and back: bit by bit, a few MiB at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import mlx.core as mx
import numpy as np

from daemon.kv.disk.codec import PART_BYTES
from daemon.kv.disk.piece import Part
from daemon.kv.extent_ledger import runs
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx import checkpoints
from daemon.kv.nodes import Checkpoint, Extent, Node
from daemon.kv.spec import KVSource, LayerGroup, NotHeldError, PrefixSpec
from daemon.shared.slices import LONG, Sliced

_TOKENS = 2
"""The axis of the tokens in an array of KV, see `adapters.kv_cache.packed`."""


class ArrayCodec:
    """The `Codec` of MLX arrays. Runs on the MLX thread."""

    def blocks(self, nodes: Sequence[Node], spec: PrefixSpec) -> Iterator[Part]:
        """Yield the KV of consecutive blocks, of all layers with full attention."""
        for index, group in enumerate(spec.groups):
            if group.window is None:
                yield from _stretches(nodes, index, group)

    def resume(self, path: Sequence[Node], spec: PrefixSpec) -> Iterator[Part]:
        """Yield the windows and the recurrent states that a request needs to go on after a path; a tail as a whole."""
        for index, group in enumerate(spec.groups):
            if path[-1].is_tail:
                yield from _tail(path[-1], index, group.seen(path[-1].end))
            elif group.window is not None:
                yield from _stretches(path[len(path) - group.visible(len(path)) :], index, group)
        checkpoint = path[-1].checkpoint
        if spec.state_bytes and checkpoint is not None:
            yield from _states(*checkpoints.unpacked(checkpoint), path[-1].end)

    def decoded(self, parts: Sequence[Part]) -> Sliced[KVSource]:
        """
        Return the KV of a piece, as a source that the prefix cache copies from.

        Raises:
            ValueError: If the parts are not what `blocks` or `resume` yielded.
        """
        source = _Source()
        for members in _together(parts).values():
            source.take(members, (yield from _gathered(members)))
        return source


class _Source:
    """KV out of a file, as `KVSource`."""

    def __init__(self) -> None:
        self._blocks: dict[int, tuple[int, int, dict[int, mx.array]]] = {}
        self._stacks: dict[int, mx.array] = {}
        self._tails: dict[int, dict[int, mx.array]] = {}
        self._places: Any = None
        self._tokens = 0

    def take(self, parts: Sequence[Part], array: mx.array) -> None:
        """Take one array, and the parts that it was made of."""
        about = parts[0].about
        if "tail" in about:
            self._tails.setdefault(about["tail"], {})[about["array"]] = array
        elif "group" in about:
            held = self._blocks.setdefault(about["group"], (about["start"], parts[-1].about["stop"], {}))
            held[2][about["array"]] = array
        else:
            self._stacks[about["stack"]] = array
            self._places = about["places"]
            # Files of versions without tails have blocks.
            self._tokens = about["tokens"] if "tokens" in about else about["blocks"] * BLOCK_TOKENS

    def pack(self, group: int, start: int, stop: int) -> Extent:
        """Return blocks of one layer group; see `KVSource.pack`."""
        first, last, arrays = self._blocks.get(group, (0, 0, {}))
        if not first <= start < stop <= last:
            raise NotHeldError(f"the file has no blocks {start} to {stop} of layer group {group}")
        cut = slice((start - first) * BLOCK_TOKENS, (stop - first) * BLOCK_TOKENS)
        return _extent([mx.contiguous(array[:, :, cut]) for _, array in sorted(arrays.items())], start, stop)

    def tail(self, group: int, first: int, last: int) -> Extent:
        """Return the tail of one layer group; see `KVSource.tail`."""
        arrays = [array for _, array in sorted(self._tails.get(group, {}).items())]
        if not arrays or arrays[0].shape[_TOKENS] != last - first:
            raise NotHeldError(f"the file has no tail from {first} to {last} of layer group {group}")
        return _extent(arrays, last // BLOCK_TOKENS, last // BLOCK_TOKENS + 1)

    def checkpoint(self, tokens: int) -> Checkpoint | None:
        """Return the states after exactly `tokens` tokens; None if they are of another position."""
        if tokens != self._tokens or not self._stacks:
            return None
        return checkpoints.of([stack for _, stack in sorted(self._stacks.items())], self._places)


def _extent(arrays: list[mx.array], start: int, stop: int) -> Extent:
    mx.eval(arrays)
    return Extent(tuple(arrays), sum(array.nbytes for array in arrays), len(arrays), start, stop - start)


def _joined(arrays: list[mx.array]) -> mx.array:
    # A single slice would keep the whole array alive.
    return mx.contiguous(mx.concatenate(arrays, axis=_TOKENS) if len(arrays) > 1 else arrays[0])


def _stretches(nodes: Sequence[Node], index: int, group: LayerGroup) -> Iterator[Part]:
    """Yield the KV of consecutive blocks of one layer group, some blocks at a time."""
    step = max(1, PART_BYTES // max(1, group.block_bytes))
    for first in range(0, len(nodes), step):
        yield from _kv(nodes[first : first + step], index)


def _kv(nodes: Sequence[Node], group: int) -> Iterator[Part]:
    """Yield the KV of consecutive blocks of one layer group, one part for each array of its extents."""
    where = runs(nodes, group)
    start, stop = nodes[0].depth - 1, nodes[-1].depth
    payloads = [cast("tuple[mx.array, ...]", run.payload) for run in where]
    for index in range(len(payloads[0])):
        cuts = [arrays[index][:, :, run.start : run.stop] for arrays, run in zip(payloads, where, strict=True)]
        yield _part(_joined(cuts), {"group": group, "start": start, "stop": stop, "array": index})


def _tail(tail: Node, group: int, tokens: int) -> Iterator[Part]:
    """Yield the KV of one layer group of a tail, some tokens of an array at a time."""
    extent = tail.extents[group]
    assert extent is not None, "a tail lacks the KV of a layer group"
    for index, array in enumerate(cast("tuple[mx.array, ...]", extent.payload)):
        step = max(1, PART_BYTES * tokens // max(1, array.nbytes))
        for first in range(0, array.shape[_TOKENS], step):
            yield _part(mx.contiguous(array[:, :, first : first + step]), {"tail": group, "array": index})


def _states(stacks: Sequence[mx.array], places: Any, tokens: int) -> Iterator[Part]:
    """Yield the states of a checkpoint, some rows of a stack at a time."""
    for index, stack in enumerate(stacks):
        step = max(1, PART_BYTES // max(1, stack[:1].nbytes))
        for row in range(0, stack.shape[0], step):
            rows = mx.contiguous(stack[row : row + step])
            yield _part(rows, {"stack": index, "row": row, "places": places, "tokens": tokens})


def _part(array: mx.array, about: dict[str, Any]) -> Part:
    about |= {"dtype": str(array.dtype).rpartition(".")[2], "shape": list(array.shape)}
    return Part(about, memoryview(cast("Any", array.view(mx.uint8))).tobytes())


def _together(parts: Sequence[Part]) -> dict[tuple[Any, ...], list[Part]]:
    """Return the parts of each array, in their order."""
    arrays: dict[tuple[Any, ...], list[Part]] = {}
    for part in parts:
        key = tuple(part.about.get(name) for name in ("tail", "group", "stack", "array"))
        arrays.setdefault(key, []).append(part)
    return arrays


def _gathered(parts: Sequence[Part]) -> Sliced[mx.array]:
    """
    Return the array that was cut into parts, evaluated: one copy of the bytes, a part for each `next`.

    Raises:
        ValueError: If the parts do not fit together.
    """
    cuts, axis = [_bytes(part) for part in parts], _axis(parts)
    shape = [*cuts[0].shape]
    shape[axis] = sum(cut.shape[axis] for cut in cuts)
    whole = mx.zeros(shape, mx.uint8)
    mx.eval(whole)
    yield LONG
    room, at = np.array(whole, copy=False), 0
    for cut in cuts:
        inside = room[(slice(None),) * axis + (slice(at, at + cut.shape[axis]),)]
        if inside.shape != cut.shape:
            raise ValueError("a file has parts of different shapes")
        inside[...] = cut
        at += cut.shape[axis]
        yield LONG
    array = whole.view(_dtype(parts[0]))
    mx.eval(array)
    return array


def _axis(parts: Sequence[Part]) -> int:
    """
    Return the axis along which an array was cut.

    Raises:
        ValueError: If there is a hole between blocks.
    """
    if "stack" in parts[0].about:
        return 0
    if "group" in parts[0].about and any(a.about["stop"] != b.about["start"] for a, b in pairwise(parts)):
        raise ValueError("a file lacks blocks between others")
    return _TOKENS


def _bytes(part: Part) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the bytes of a part in the shape of its array, without a copy."""
    *outer, last = part.about["shape"]
    return np.frombuffer(part.data, np.uint8).reshape(*outer, last * _dtype(part).size)


def _dtype(part: Part) -> mx.Dtype:
    dtype = getattr(mx, part.about["dtype"], None)
    if not isinstance(dtype, mx.Dtype):
        raise ValueError(f"a file has arrays of an unknown type, {part.about['dtype']}")
    return dtype
