"""
Weights become arrays: in slices that fit between engine steps, in the order of their files, and hashed on the way.

What is hashed is the memory of the arrays themselves, so that a digest is that of what is computed with: a file can
change without a trace while it is read, and before.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from daemon.cache.callbacks import Rest, ignore
from daemon.cache.digests import Stamp
from daemon.cache.hashing import Hashing, Stream
from daemon.cache.identity import ModelSource, WeightFile
from daemon.cache.model_files import opened
from daemon.cache.pace import LEAST_BYTES, Pace
from daemon.cache.weight_files import header_of
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.failpoints import failpoint
from daemon.shared.slices import LONG, Sliced

_TYPES = {
    "BOOL": mx.bool_, "U8": mx.uint8, "I8": mx.int8, "F8_E4M3": mx.uint8, "F8_E8M0": mx.uint8,
    "U16": mx.uint16, "I16": mx.int16, "F16": mx.float16, "BF16": mx.bfloat16,
    "U32": mx.uint32, "I32": mx.int32, "F32": mx.float32, "U64": mx.uint64, "I64": mx.int64,
}  # fmt: skip
"""As mlx.core.load has them: of eight-bit floats it returns the bits."""


@dataclass(slots=True)
class _Open:
    """
    A file whose header was read.

    Attributes:
        expected: The file, and what it should hold.
        stamp: Its state then.
        head: Its bytes up to the first tensor.
        tensors: Where each of its arrays begins and ends, from there on, in order, and the array.
    """

    expected: WeightFile
    stamp: Stamp
    head: bytes
    tensors: list[tuple[int, int, mx.array]]


@dataclass(frozen=True, slots=True)
class Found:
    """What a file held: what was expected, its state before it was read, and the SHA-256 of what was read."""

    expected: WeightFile
    stamp: Stamp
    digest: str

    @property
    def is_expected(self) -> bool:
        """Whether it is the content that its model is known by."""
        return self.digest == self.expected.digest


class Reading:
    """
    Reads the weights of one model. Close it.

    Args:
        source: The model.
        pace: How many bytes make a slice.
        clock: Seconds that never go back.
        rest: What the threads that hash take; see `Hashing`.

    Attributes:
        done: Bytes of weights that were read.
        adapter_names: Names of the adapter's arrays, once they were returned.
    """

    def __init__(self, source: ModelSource, pace: Pace, clock: Callable[[], float], rest: Rest = ignore) -> None:
        self._source = source
        self._pace = pace
        self._clock = clock
        self._hashing = Hashing(rest)
        self._open: list[_Open] = []
        self._hashed: list[tuple[_Open, Stream]] = []
        self._begun = False
        self.done = 0
        self.adapter_names: frozenset[str] = frozenset()

    def model(self) -> dict[str, mx.array]:
        """
        Return the model's arrays by name. They are lazy: headers are read, weights are not.

        Raises:
            SidecarError: MODEL_CORRUPT if a header is damaged or changes while it is read.
            OSError: If a file cannot be read.
            RuntimeError: If MLX does not know the type of a tensor.
        """
        arrays: dict[str, mx.array] = {}
        for file in self._source.weights:
            arrays.update(self._opened(file))
        return arrays

    def adapter(self) -> dict[str, mx.array]:
        """Return the adapter's arrays by name, lazy. Raises as `model` does."""
        assert self._source.adapter_weights is not None
        tensors = self._opened(self._source.adapter_weights)
        self.adapter_names = frozenset(tensors)
        return tensors

    def others(self, arrays: Iterable[mx.array]) -> list[mx.array]:
        """Return those of some arrays that `read` does not evaluate: they are computed from what is read, or new."""
        own = {id(array) for file in self._open for _, _, array in file.tensors}
        return [array for array in arrays if id(array) not in own]

    def read(self) -> Sliced[None]:
        """
        Evaluate all arrays that were returned, a slice for each `next`, and let go of them.

        Raises:
            SidecarError: MODEL_CORRUPT if a file has become shorter.
            OSError: If a file cannot be read.
            RuntimeError: Likewise, from MLX.
        """
        while self._open:
            yield from self._read(self._open.pop(0))

    def found(self, seconds: Callable[[], float]) -> Sliced[list[Found]]:
        """Return what each file held. Waits for the threads that hash, for `seconds()` at a time."""
        while not self._hashing.wait(seconds()):
            yield LONG
        return [Found(file.expected, file.stamp, stream.digest) for file, stream in self._hashed]

    def close(self) -> None:
        """Stop, and let go of the memory."""
        self._hashing.close()
        self._open.clear()

    def _opened(self, weights: WeightFile) -> dict[str, mx.array]:
        path = weights.path
        with opened(path, self._source.roots) as file:
            stamp = Stamp.from_status(os.fstat(file.fileno()))
            header = header_of(file, path)
            # By the descriptor: its name may lead elsewhere by now. MLX keeps one of its own.
            loaded = mx.load(f"/dev/fd/{file.fileno()}", format="safetensors")
        assert isinstance(loaded, dict)
        described = _in_order(header)
        if loaded.keys() != {name for name, _ in described}:
            raise _changed(path)
        tensors = []
        for name, tensor in described:
            array = loaded[name]
            if array.shape != tuple(tensor["shape"]) or array.dtype != _TYPES.get(tensor["dtype"]):
                raise _changed(path)  # what is hashed must be what MLX has understood
            tensors.append((*tensor["data_offsets"], array))
        self._open.append(_Open(weights, stamp, struct.pack("<Q", len(header)) + header, tensors))
        return loaded

    def _read(self, file: _Open) -> Sliced[None]:
        stream = self._hashing.begin()
        self._hashed.append((file, stream))
        stream.put(memoryview(file.head))
        end, group = 0, list[mx.array]()
        for begin, after, array in file.tensors:
            if begin > end or (group and _nbytes(group) + array.nbytes > self._pace.nbytes):
                yield from self._evaluate(group, stream)
                yield from self._pass(file, end, begin, stream)
                group = []
            group.append(array)
            end = after
        file.tensors.clear()
        yield from self._evaluate(group, stream)
        yield from self._pass(file, end, file.stamp.size - len(file.head), stream)
        stream.end()

    def _evaluate(self, group: list[mx.array], stream: Stream) -> Sliced[None]:
        """Evaluate a slice of arrays that follow each other."""
        if not group:
            return
        yield from self._turn()
        failpoint("load.slice")
        began = self._clock()
        mx.eval(group)
        views = [array.reshape(-1).view(mx.uint8) for array in group if array.size]
        mx.eval(views)  # in the same memory, which a view of them keeps
        for view in views:
            stream.put(memoryview(cast("Any", view)))
        self._pace.measured(_nbytes(group), self._clock() - began)
        self.done += _nbytes(group)

    def _pass(self, file: _Open, begin: int, end: int, stream: Stream) -> Sliced[None]:
        """Read bytes that belong to no tensor: they are part of the file's digest."""
        if begin >= end:
            return
        path = file.expected.path
        with opened(path, self._source.roots) as source:
            source.seek(len(file.head) + begin)
            for start in range(begin, end, LEAST_BYTES):
                yield from self._turn()
                piece = source.read(min(LEAST_BYTES, end - start))
                if not piece:
                    raise _changed(path)
                stream.put(memoryview(piece))

    def _turn(self) -> Sliced[None]:
        if self._begun:
            yield LONG
        self._begun = True


def _nbytes(arrays: list[mx.array]) -> int:
    return sum(array.nbytes for array in arrays)


def _in_order(header: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Return names and descriptions of tensors as they lie in the file, which was checked."""
    tensors: dict[str, Any] = json.loads(header)
    tensors.pop("__metadata__", None)
    return sorted(tensors.items(), key=lambda item: item[1]["data_offsets"])


def _changed(path: Path) -> SidecarError:
    return SidecarError(Reason.MODEL_CORRUPT, f"{path.name} changed while it was read; ask again")
