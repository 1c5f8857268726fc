"""
Finds the weight files of a model directory and checks their headers before a library opens them.

The weight files are those that mlx-lm loads: `model*.safetensors` in the directory itself. mlx-lm reads no index file,
so an index that is left over changes nothing. Other safetensors files are no part of the model: a copy in Mistral's own
format (`consolidated.safetensors`), folders below (`original/`), what macOS leaves on foreign file systems
(`._model.safetensors`). They are neither sized nor checked nor hashed.

A safetensors file is 8 bytes with the length of its header, the header in JSON, and the data of the tensors. The header
gives a type, a shape, and two offsets into the data for each tensor. MLX trusts it.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from fnmatch import fnmatchcase
from io import FileIO
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from daemon.cache.model_files import opened
from daemon.shared.errors import Reason, SidecarError

_MAX_HEADER_BYTES = 100_000_000
"""The same bound as that of the safetensors library."""
_MAX_DIMENSION = 2**31 - 1
"""MLX keeps dimensions in 32 bits."""
_TYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


_LOADED = "model*.safetensors"


def weight_files(model_dir: Path) -> list[Path]:
    """Return the files that mlx-lm loads of a directory, sorted. They may be no regular files."""
    return sorted(model_dir.glob(_LOADED))


def is_weight_file(name: str) -> bool:
    """Return whether mlx-lm loads a file, given by its path within its model's directory."""
    return "/" not in name and fnmatchcase(name, _LOADED)


def estimate_size(files: Iterable[Path]) -> int:
    """Return the bytes of the safetensors files among some files: about what a model will take in memory."""
    return sum(path.stat().st_size for path in files if path.suffix == ".safetensors")


def read_header(path: Path) -> bytes:
    """
    Return the JSON header of a safetensors file after checking it against the file's size.

    This check keeps damaged files out of the engine, because MLX reads wherever the header says.

    Raises:
        SidecarError: MODEL_CORRUPT if the file is truncated, or its header does not describe it.
    """
    with opened(path) as file:
        return header_of(file, path)


def header_of(file: FileIO, path: Path) -> bytes:
    """
    Return the JSON header of an open safetensors file after the checks of `read_header`.

    Args:
        file: The file, at its beginning. It is at its data afterwards.
        path: Its path, for errors.

    Raises:
        SidecarError: MODEL_CORRUPT if the file is truncated, or its header does not describe it.
    """
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    if len(prefix) < 8:
        raise _corrupt(path, "is too short to have a header")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(size - 8, _MAX_HEADER_BYTES):
        raise _corrupt(path, f"claims a header of {length} bytes but has {size} bytes in all")
    header = file.read(length)
    if len(header) < length:
        raise _corrupt(path, f"ends within its header of {length} bytes")
    try:
        tensors = json.loads(header)
        spans = sorted(_span(tensor) for name, tensor in tensors.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _corrupt(path, "has a header that describes no valid tensors") from error
    if any(next_begin < end for (_, end), (next_begin, _) in pairwise(spans)):
        raise _corrupt(path, "has tensors that overlap")
    described = 8 + length + (spans[-1][1] if spans else 0)
    if described > size:
        raise _corrupt(path, f"is truncated: {described} bytes are described, {size} are there")
    return header


def _span(tensor: dict[str, Any]) -> tuple[int, int]:
    """
    Return the offsets into the data at which a tensor begins and ends.

    Raises:
        ValueError: If they do not match its shape and type.
    """
    begin, end = _naturals(tensor["data_offsets"])
    shape = _naturals(tensor["shape"])
    if any(dimension > _MAX_DIMENSION for dimension in shape):
        raise ValueError("a dimension is too large")
    if end - begin != prod(shape) * _TYPE_BYTES[tensor["dtype"]]:
        raise ValueError("offsets and shape disagree")
    return begin, end


def _naturals(values: list[Any]) -> list[int]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError("not a list of natural numbers")
    return values


def _corrupt(path: Path, what: str) -> SidecarError:
    return SidecarError(Reason.MODEL_CORRUPT, f"{path.name} {what}; download the model again")


_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npz", ".npy"}


def refuse_other_formats(name: str, path: Path, weights: list[Path]) -> None:
    """
    Refuse a model without weights that mlx-lm would read. The error names the format that it has. Opens no file.

    Args:
        name: The model's name.
        path: Its directory.
        weights: Its weight files.

    Raises:
        SidecarError: MODEL_UNSUPPORTED.
    """
    if weights:
        return
    suffixes = {file.suffix.lower() for file in path.iterdir() if not file.name.startswith(".")}
    if ".gguf" in suffixes:
        why = "has GGUF weights, which mlx-sidecar does not read; take the original model and convert it"
    elif pickles := sorted(suffixes & _PICKLES):
        why = f"has only {', '.join(pickles)} weights, which can run code when they are read and never are; convert it"
    else:
        why = "has no model*.safetensors weights; convert it"
    raise SidecarError(Reason.MODEL_UNSUPPORTED, f"{name} {why} with mlx_lm.convert")
