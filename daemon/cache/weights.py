"""
Weights become arrays: read by our own code, in slices that fit between engine steps, and hashed while they are read.

What is hashed is the memory of the arrays themselves, so that a digest is that of what is computed with: a file can
change without a trace while it is read, and before.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from daemon.cache.digests import Rest, Stamp
from daemon.cache.hashing import Hashing, Stream
from daemon.cache.identity import ModelSource, WeightFile
from daemon.cache.model_files import opened
from daemon.cache.pace import LEAST_BYTES, Pace
from daemon.cache.sizes import header_of
from daemon.errors import Reason, SidecarError
from daemon.failpoints import failpoint
from daemon.pieces import LONG, Pieces

_TYPES = {
    "BOOL": mx.bool_, "U8": mx.uint8, "I8": mx.int8, "F8_E4M3": mx.uint8, "F8_E8M0": mx.uint8,
    "U16": mx.uint16, "I16": mx.int16, "F16": mx.float16, "BF16": mx.bfloat16,
    "U32": mx.uint32, "I32": mx.int32, "F32": mx.float32, "U64": mx.uint64, "I64": mx.int64,
}  # fmt: skip
"""As mlx.core.load has them: of eight-bit floats it returns the bits."""


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
    """

    def __init__(self, source: ModelSource, pace: Pace, clock: Callable[[], float], rest: Rest | None = None) -> None:
        self._source = source
        self._pace = pace
        self._clock = clock
        self._hashing = Hashing() if rest is None else Hashing(rest)
        self._files: list[tuple[WeightFile, Stamp, Stream]] = []
        self._slice = 0
        self._began = clock()
        self.done = 0

    def model(self) -> Pieces[dict[str, mx.array]]:
        """
        Return the model's arrays by name, evaluated.

        Raises:
            SidecarError: MODEL_CORRUPT if a file is damaged or ends too early, or has values of an unknown type.
            OSError: If a file cannot be read.
        """
        arrays: dict[str, mx.array] = {}
        for file in self._source.weights:
            arrays.update((yield from self._read(file)))
        return arrays

    def adapter(self) -> Pieces[dict[str, mx.array]]:
        """Return the adapter's arrays by name, evaluated. Raises as `model` does."""
        file = self._source.adapter_weights
        assert file is not None
        return (yield from self._read(file))

    def found(self, seconds: Callable[[], float]) -> Pieces[list[Found]]:
        """
        Return what each file held. Waits for the threads that hash, for `seconds()` at a time.
        """
        while not self._hashing.wait(seconds()):
            yield LONG
        return [Found(file, stamp, stream.digest) for file, stamp, stream in self._files]

    def close(self) -> None:
        """Stop, and let go of the memory."""
        self._hashing.close()

    def _read(self, weights: WeightFile) -> Pieces[dict[str, mx.array]]:
        path = weights.path
        with opened(path, self._source.roots) as file:
            stream = self._hashing.begin()
            self._files.append((weights, Stamp.from_status(os.fstat(file.fileno())), stream))
            header = header_of(file, path)
            stream.put(memoryview(struct.pack("<Q", len(header)) + header))
            yield from self._turn()
            arrays: dict[str, mx.array] = {}
            end = 0
            for name, tensor in _in_order(header):
                begin, after = tensor["data_offsets"]
                yield from self._pass(path, file, begin - end, stream)
                raw = yield from self._raw(path, file, after - begin, stream)
                arrays[name] = _typed(raw, tensor["dtype"], tensor["shape"])
                end = after
            size = os.fstat(file.fileno()).st_size
            yield from self._pass(path, file, size - file.tell(), stream)
            stream.end()
        return arrays

    def _raw(self, path: Path, file: FileIO, nbytes: int, stream: Stream) -> Pieces[mx.array]:
        """Read the next bytes of a file into an array of bytes."""
        if self._slice and self._slice + nbytes > self._pace.nbytes:
            yield from self._turn()
        raw = mx.zeros((nbytes,), mx.uint8, stream=mx.cpu)
        mx.eval(raw)
        view = memoryview(cast("Any", raw))  # keeps the array, and so its memory
        for start in range(0, nbytes, step := max(LEAST_BYTES, self._pace.nbytes)):
            if start:
                yield from self._turn()
            piece = view[start : start + step]
            _fill(path, file, piece)
            stream.put(piece)
            self._slice += piece.nbytes
            self.done += piece.nbytes
        return raw

    def _pass(self, path: Path, file: FileIO, nbytes: int, stream: Stream) -> Pieces[None]:
        """Read bytes that belong to no tensor: they are part of the file's digest."""
        while nbytes > 0:
            piece = memoryview(bytearray(min(LEAST_BYTES, nbytes)))
            _fill(path, file, piece)
            stream.put(piece)
            nbytes -= piece.nbytes
            self._slice += piece.nbytes
            if self._slice > self._pace.nbytes:
                yield from self._turn()

    def _turn(self) -> Pieces[None]:
        """End a slice and begin the next."""
        if self._slice:
            self._pace.measured(self._slice, self._clock() - self._began)
        yield LONG
        failpoint("load.slice")
        self._slice = 0
        self._began = self._clock()


def _in_order(header: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Return names and descriptions of tensors as they lie in the file, which was checked."""
    tensors: dict[str, Any] = json.loads(header)
    tensors.pop("__metadata__", None)
    return sorted(tensors.items(), key=lambda item: item[1]["data_offsets"])


def _fill(path: Path, file: FileIO, piece: memoryview) -> None:
    done = 0
    while done < piece.nbytes:
        read = file.readinto(piece[done:])
        if not read:
            raise SidecarError(Reason.MODEL_CORRUPT, f"{path.name} was cut off while it was read; ask again")
        done += read


def _typed(raw: mx.array, name: str, shape: list[int]) -> mx.array:
    """Return bytes as an array of a type and shape, in the same memory."""
    if name not in _TYPES:
        raise ValueError(f"values of type {name} are not supported")
    dtype = _TYPES[name]
    array = mx.zeros(shape, dtype) if not raw.size else raw.view(dtype).reshape(shape)
    mx.eval(array)
    return array
