"""Arrays of stored KV as bytes for the disk tier, and back: bit by bit, a few MiB at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        for part in parts:
            source.take(part.about, _array(part))
            yield LONG
        return source


class _Source:
    """KV out of a file, as `KVSource`."""

    def __init__(self) -> None:
        self._extents: dict[int, dict[tuple[int, int], dict[int, mx.array]]] = {}
        self._rows: dict[int, list[mx.array]] = {}
        self._tails: dict[int, dict[int, list[mx.array]]] = {}
        self._places: Any = None
        self._tokens = 0

    def take(self, about: dict[str, Any], array: mx.array) -> None:
        """Take one part."""
        if "tail" in about:
            self._tails.setdefault(about["tail"], {}).setdefault(about["array"], []).append(array)
        elif "group" in about:
            arrays = self._extents.setdefault(about["group"], {})
            arrays.setdefault((about["start"], about["stop"]), {})[about["array"]] = array
        else:
            self._rows.setdefault(about["stack"], []).append(array)
            self._places = about["places"]
            # Files of versions without tails have blocks.
            self._tokens = about["tokens"] if "tokens" in about else about["blocks"] * BLOCK_TOKENS

    def pack(self, group: int, start: int, stop: int) -> Extent:
        """Return blocks of one layer group; see `KVSource.pack`."""
        stretches: list[dict[int, mx.array]] = []
        held = start
        for (first, last), arrays in sorted(self._extents.get(group, {}).items()):
            if first <= held < min(last, stop):
                cut = slice((held - first) * BLOCK_TOKENS, (min(last, stop) - first) * BLOCK_TOKENS)
                stretches.append({index: array[:, :, cut] for index, array in arrays.items()})
                held = min(last, stop)
        if held < stop:
            raise NotHeldError(f"the file has no blocks {held} to {stop} of layer group {group}")
        joined = [_joined([each[index] for each in stretches]) for index in sorted(stretches[0])]
        mx.eval(joined)
        return Extent(tuple(joined), sum(array.nbytes for array in joined), len(joined), start, stop - start)

    def tail(self, group: int, first: int, last: int) -> Extent:
        """Return the tail of one layer group; see `KVSource.tail`."""
        joined = [_joined(parts) for _, parts in sorted(self._tails.get(group, {}).items())]
        if not joined or joined[0].shape[_TOKENS] != last - first:
            raise NotHeldError(f"the file has no tail from {first} to {last} of layer group {group}")
        mx.eval(joined)
        return Extent(tuple(joined), sum(array.nbytes for array in joined), len(joined), last // BLOCK_TOKENS, 1)

    def checkpoint(self, tokens: int) -> Checkpoint | None:
        """Return the states after exactly `tokens` tokens; None if they are of another position."""
        if tokens != self._tokens or not self._rows:
            return None
        stacks = [mx.contiguous(mx.concatenate(self._rows[index])) for index in sorted(self._rows)]
        return checkpoints.of(stacks, self._places)


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


def _array(part: Part) -> mx.array:
    """Return the array of a part, evaluated."""
    dtype = getattr(mx, part.about["dtype"], None)
    if not isinstance(dtype, mx.Dtype):
        raise ValueError(f"a file has arrays of an unknown type, {part.about['dtype']}")
    *outer, last = part.about["shape"]
    array = mx.array(np.frombuffer(part.data, np.uint8).reshape(*outer, last * dtype.size)).view(dtype)
    mx.eval(array)
    return array
