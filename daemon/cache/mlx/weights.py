"""
Reads weight files into arrays: in slices that fit between engine steps, in the order of the file, hashed on the way.

A file is opened once and its header is read. `mx.load` gets the same descriptor and returns lazy arrays. Then, slice by
slice, a few arrays that follow each other are evaluated, which reads them::

    file:     | header | array | array | (gap) | array | array | (rest) |
    read by:     here     MLX     MLX     here     MLX     MLX     here
    hashed:   ------------------- in this order ------------------------>

The threads of `Hashing` get the memory of the arrays themselves. So a digest is that of the bytes that requests are
computed with. That holds even if the file changes while it is read, or changed before without a trace. Bytes that
belong to no array are read for the digest alone: it is the digest of the whole file.
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
from daemon.shared.readings import agreed
from daemon.shared.slices import LONG, Sliced

_TYPES = {
    "BOOL": mx.bool_, "U8": mx.uint8, "I8": mx.int8, "F8_E4M3": mx.uint8, "F8_E8M0": mx.uint8,
    "U16": mx.uint16, "I16": mx.int16, "F16": mx.float16, "BF16": mx.bfloat16,
    "U32": mx.uint32, "I32": mx.int32, "F32": mx.float32, "U64": mx.uint64, "I64": mx.int64,
}  # fmt: skip
"""Types of safetensors files and the types of the arrays that `mx.load` makes: it returns 8-bit floats as bits."""


@dataclass(slots=True)
class _OpenedFile:
    """
    A file of which the header was read.

    Attributes:
        expected: The file, and the digest that it should have.
        stamp: Its stamp when it was opened.
        head: Its bytes up to the data of the arrays.
        tensors: Begin and end of each array, from there on, and the lazy array; in the order of the file.
    """

    expected: WeightFile
    stamp: Stamp
    head: bytes
    tensors: list[tuple[int, int, mx.array]]


@dataclass(frozen=True, slots=True)
class FileDigest:
    """
    The digest of a file that was read.

    Attributes:
        expected: The file, and the digest that it should have.
        stamp: Its stamp before it was read.
        digest: The SHA-256 of the bytes that were read, in hexadecimal.
    """

    expected: WeightFile
    stamp: Stamp
    digest: str

    @property
    def is_expected(self) -> bool:
        """Whether the file has the content that the model's key was made of."""
        return self.digest == self.expected.digest


class Reading:
    """
    Reads the weights of a model: `model` and `adapter` return lazy arrays, `read` evaluates them, `digests` waits for
    their digests. Close it; the arrays stay usable.

    Args:
        source: The model.
        pace: Says how many bytes a slice should have, and learns from each slice.
        clock: Returns seconds that never go back.
        rest: Called by the threads that hash; see `Hashing`.

    Attributes:
        done: Bytes of arrays that were read.
        adapter_names: Names of the adapter's arrays; empty before `adapter` was called.
    """

    def __init__(self, source: ModelSource, pace: Pace, clock: Callable[[], float], rest: Rest = ignore) -> None:
        self._source = source
        self._pace = pace
        self._clock = clock
        self._hashing = Hashing(rest)
        self._unread: list[_OpenedFile] = []
        self._hashed: list[tuple[_OpenedFile, Stream]] = []
        self._has_begun = False
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
        """Return those of some arrays that `read` does not evaluate, because they are computed from others, or new."""
        own = {id(array) for file in self._unread for _, _, array in file.tensors}
        return [array for array in arrays if id(array) not in own]

    def read(self) -> Sliced[None]:
        """
        Evaluate all arrays that `model` and `adapter` returned, a slice for each `next`, and drop the references.

        Raises:
            SidecarError: MODEL_CORRUPT if a file has become shorter.
            OSError: If a file cannot be read.
            RuntimeError: Likewise, from MLX.
        """
        while self._unread:
            yield from self._read(self._unread.pop(0))

    def digests(self, seconds: Callable[[], float]) -> Sliced[list[FileDigest]]:
        """Return the digests of all files. Waits for the threads that hash, for `seconds()` at a time."""
        while not agreed(self._hashing.wait(seconds())):
            yield LONG
        return [FileDigest(file.expected, file.stamp, stream.digest) for file, stream in self._hashed]

    def forget(self) -> None:
        """Leave the arrays to the module that has them: what is computed from them reads them, unhashed."""
        self._unread.clear()

    def close(self) -> None:
        """Stop hashing, and drop the references to arrays and files."""
        self._hashing.close()
        self._unread.clear()

    def _opened(self, weights: WeightFile) -> dict[str, mx.array]:
        path = weights.path
        with opened(path, self._source.roots) as file:
            stamp = Stamp.from_status(os.fstat(file.fileno()))
            header = header_of(file, path)
            # By the descriptor, because the name may lead to another file by now. MLX opens a descriptor of its own: on
            # Linux at the beginning, on macOS as a duplicate, which shares the place in the file.
            file.seek(0)
            loaded = mx.load(f"/dev/fd/{file.fileno()}", format="safetensors")
        assert isinstance(loaded, dict)
        described = _in_order(header)
        if loaded.keys() != {name for name, _ in described}:
            raise _changed(path)
        tensors = []
        for name, tensor in described:
            array = loaded[name]
            if array.shape != tuple(tensor["shape"]) or array.dtype != _TYPES.get(tensor["dtype"]):
                raise _changed(path)  # or bytes that are hashed would not be those of the array that MLX has made
            tensors.append((*tensor["data_offsets"], array))
        self._unread.append(_OpenedFile(weights, stamp, struct.pack("<Q", len(header)) + header, tensors))
        return loaded

    def _read(self, file: _OpenedFile) -> Sliced[None]:
        stream = self._hashing.begin()
        self._hashed.append((file, stream))
        stream.put(memoryview(file.head))
        position, group = 0, list[mx.array]()
        for begin, end, array in file.tensors:
            # Before a gap the group must be hashed, and so read: the bytes of the file are hashed in order.
            if begin > position or (group and _nbytes(group) + array.nbytes > self._pace.nbytes):
                yield from self._evaluate(group, stream)
                yield from self._read_gap(file, position, begin, stream)
                group = []
            group.append(array)
            position = end
        file.tensors.clear()  # the arrays belong to the module now
        yield from self._evaluate(group, stream)
        yield from self._read_gap(file, position, file.stamp.size - len(file.head), stream)
        stream.end()

    def _evaluate(self, group: list[mx.array], stream: Stream) -> Sliced[None]:
        """Evaluate a slice of arrays that follow each other in the file."""
        if not group:
            return
        yield from self._next_slice()
        failpoint("load.slice")
        began = self._clock()
        mx.eval(group)
        views = [array.reshape(-1).view(mx.uint8) for array in group if array.size]
        mx.eval(views)  # no copy: a view shares the memory of its array, and a memoryview keeps it
        for view in views:
            stream.put(memoryview(cast("Any", view)))
        self._pace.measured(_nbytes(group), self._clock() - began)
        self.done += _nbytes(group)

    def _read_gap(self, file: _OpenedFile, begin: int, end: int, stream: Stream) -> Sliced[None]:
        """Read bytes that belong to no array, for the file's digest."""
        if begin >= end:
            return
        path = file.expected.path
        with opened(path, self._source.roots) as source:
            source.seek(len(file.head) + begin)
            for start in range(begin, end, LEAST_BYTES):
                yield from self._next_slice()
                piece = source.read(min(LEAST_BYTES, end - start))
                if not piece:
                    raise _changed(path)
                stream.put(memoryview(piece))

    def _next_slice(self) -> Sliced[None]:
        """Yield before each slice but the first, which the caller has asked for already."""
        if self._has_begun:
            yield LONG
        self._has_begun = True


def _nbytes(arrays: list[mx.array]) -> int:
    return sum(array.nbytes for array in arrays)


def _in_order(header: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Return names and descriptions of the tensors of a checked header, in the order of the file."""
    tensors: dict[str, Any] = json.loads(header)
    tensors.pop("__metadata__", None)
    return sorted(tensors.items(), key=lambda item: item[1]["data_offsets"])


def _changed(path: Path) -> SidecarError:
    return SidecarError(Reason.MODEL_CORRUPT, f"{path.name} changed while it was read; ask again")
