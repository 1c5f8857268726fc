"""The arrays of `Reading` equal those of `mx.load`, and their digest is that of the file."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.cache.hashing import Hashing
from daemon.cache.identity import ModelKey, ModelSource, WeightFile
from daemon.cache.mlx.weights import FileDigest, Reading
from daemon.cache.pace import Pace
from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import safetensors

WIDTHS = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "U64": 8}


def _source(*files: Path) -> ModelSource:
    weights = tuple(WeightFile(file, "0" * 64) for file in files)
    return ModelSource(ModelKey("w"), "model", files[0].parent, 1, {}, weights=weights)


def _result(pieces: Any) -> Any:
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value


def _read(*files: Path, slice_bytes: int = 100) -> tuple[dict[str, mx.array], list[FileDigest], int]:
    with closing(Reading(_source(*files), Pace(slice_bytes), time.monotonic)) as reading:
        arrays = reading.model()
        _result(reading.read())
        return arrays, _result(reading.digests(lambda: 60.0)), reading.done


@st.composite
def _files(draw: st.DrawFn) -> bytes:
    """Return a safetensors file with tensors of any kind, in any order, with or without bytes that belong to none."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    tensors = draw(st.lists(st.tuples(st.sampled_from(sorted(WIDTHS)), st.lists(st.integers(0, 5), max_size=3))))
    names = draw(st.permutations([f"t{number}" for number in range(len(tensors))]))
    end = 0
    for name, (kind, shape) in zip(names, tensors, strict=True):
        begin = end + draw(st.sampled_from([0, 0, 8, 200]))
        end = begin + prod(shape) * WIDTHS[kind]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    data = draw(st.binary(min_size=end, max_size=end + 300))
    return safetensors(header, bytes(one & 1 for one in data))  # a bool is 0 or 1


@given(content=_files())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_every_tensor_and_byte_of_weights_is_read(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)

    arrays, (found,), done = _read(file)

    expected = mx.load(str(file))
    assert isinstance(expected, dict)
    assert {name: (one.shape, one.dtype) for name, one in arrays.items()} == {
        name: (one.shape, one.dtype) for name, one in expected.items()
    }
    assert all(_bits(arrays[name]) == _bits(one) for name, one in expected.items())
    assert found.digest == hashlib.sha256(content).hexdigest()
    assert done == sum(one.nbytes for one in expected.values())


def _bits(array: mx.array) -> bytes:
    return bytes(memoryview(mx.contiguous(array.reshape(-1)).view(mx.uint8))) if array.size else b""  # type: ignore[arg-type]


def _write(file: Path, seed: int, count: int = 2000) -> bytes:
    content = safetensors(
        {f"{seed}": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}},
        bytes((seed + one) % 251 for one in range(count)),
    )
    file.write_bytes(content)
    return content


def test_each_of_many_weight_files_is_hashed(tmp_path: Path) -> None:
    """More than there are threads."""
    files = [tmp_path / f"model-{number:02}.safetensors" for number in range(12)]
    contents = [_write(file, number) for number, file in enumerate(files)]

    _, found, _ = _read(*files)

    assert [one.digest for one in found] == [hashlib.sha256(content).hexdigest() for content in contents]
    assert [one.expected.path for one in found] == files
    assert not any(one.is_expected for one in found)


def test_weights_are_read_lazily_and_in_slices(tmp_path: Path) -> None:
    """The size of the model must be known before it is read."""
    file = tmp_path / "model.safetensors"
    _write_many(file, 10, 1000)
    with closing(Reading(_source(file), Pace(2500), time.monotonic)) as reading:
        before = mx.get_active_memory()
        arrays = reading.model()
        assert (reading.done, mx.get_active_memory()) == (0, before)
        assert reading.others([*arrays.values(), other := mx.zeros(1)]) == [other]
        done = [reading.done for _ in reading.read()]

    assert done == [2000, 4000, 6000, 8000]


def _write_many(file: Path, count: int, size: int) -> None:
    header = {
        f"t{one}": {"dtype": "U8", "shape": [size], "data_offsets": [one * size, (one + 1) * size]}
        for one in range(count)
    }
    file.write_bytes(safetensors(header, bytes(one % 251 for one in range(count * size))))


def test_mlx_finds_the_descriptor_at_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening /dev/fd/N duplicates N on macOS, with its place in the file; MLX reads the header from there."""
    file = tmp_path / "model.safetensors"
    _write(file, 1)
    begins: list[bytes] = []
    load = mx.load

    def as_on_a_mac(name: str, **how: Any) -> Any:
        with open(os.dup(int(name.rpartition("/")[2])), "rb", buffering=0) as duplicate:
            begins.append(duplicate.read(8))
        return load(str(file), **how)

    monkeypatch.setattr(mx, "load", as_on_a_mac)
    _read(file)
    assert begins == [file.read_bytes()[:8]]


def test_truncation_during_a_weight_read_is_corrupt(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    content = safetensors({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, bytes(3 << 20))
    file.write_bytes(content)
    with closing(Reading(_source(file), Pace(1 << 20), time.monotonic)) as reading:
        reading.model()
        with file.open("r+b") as opened:
            opened.truncate(1 << 20)

        with pytest.raises(SidecarError, match="changed while it was read") as caught:
            _result(reading.read())

    assert caught.value.reason is Reason.MODEL_CORRUPT


@pytest.fixture(name="resting")
def _resting() -> Iterator[tuple[Hashing, threading.Event, threading.Event]]:
    """Return a Hashing that rests after its first piece, the event of that rest, and the event that ends it."""
    rests, go_on = threading.Event(), threading.Event()

    def rest(_seconds: float) -> None:
        rests.set()
        assert go_on.wait(60)

    hashing = Hashing(rest)
    yield hashing, rests, go_on
    go_on.set()
    hashing.close()


def test_weight_hashing_yields_between_reads(
    resting: tuple[Hashing, threading.Event, threading.Event],
) -> None:
    hashing, rests, go_on = resting
    stream = hashing.begin()
    stream.put(memoryview(bytes(3 << 20)))
    stream.end()

    assert rests.wait(60)
    assert not hashing.wait(0)
    go_on.set()
    assert hashing.wait(60)
    assert stream.digest == hashlib.sha256(bytes(3 << 20)).hexdigest()


def test_closing_stops_the_weight_reader_threads() -> None:
    before = threading.active_count()
    hashing = Hashing()
    for _ in range(6):
        hashing.begin().put(memoryview(bytes(1 << 20)))

    hashing.close()

    assert threading.active_count() == before


def test_weight_header_comes_from_the_file_being_read(tmp_path: Path) -> None:
    """Its name may lead to another file by now."""
    file = tmp_path / "model.safetensors"
    _write(file, 1)
    source = _source(file)
    file.unlink()
    content = _write(file, 2, 500)
    with closing(Reading(source, Pace(1 << 20), time.monotonic)) as reading:
        arrays = reading.model()
        _result(reading.read())
        (found,) = _result(reading.digests(lambda: 60.0))

    assert arrays.keys() == {"2"}
    assert json.loads(content[8 : 8 + content[0]])["2"]["shape"] == [500]
    assert found.digest == hashlib.sha256(content).hexdigest()
