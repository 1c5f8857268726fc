"""The check of the header refuses each damaged weight file, and sizes come from the file system alone."""

from __future__ import annotations

import glob
import inspect
import struct
from pathlib import Path

import pytest
from mlx_lm.utils import load_model

from daemon.cache.weight_files import estimate_size, is_weight_file, read_header, weight_files
from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import float_tensors, safetensors


def _tensor(**changes: object) -> dict[str, object]:
    """Return the header of a file with one tensor of 16 bytes, with changes to it."""
    return {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}


def _refusal(tmp_path: Path, content: bytes) -> str:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(SidecarError) as caught:
        read_header(file)
    assert caught.value.reason is Reason.MODEL_CORRUPT
    assert "download the model again" in caught.value.message
    return caught.value.message


def test_valid_weight_file_returns_its_header(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    header = {"__metadata__": {"format": "mlx"}, **_tensor()}
    file.write_bytes(safetensors(header, bytes(16)))

    assert b'"shape": [2, 2]' in read_header(file)


@pytest.mark.parametrize("content", [float_tensors(), float_tensors(scalar=()), float_tensors(empty=(0, 8))])
def test_nearly_empty_weight_files_are_valid(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)

    read_header(file)


def test_truncated_weight_file_is_refused_with_sizes(tmp_path: Path) -> None:
    content = safetensors(_tensor(), bytes(16))

    message = _refusal(tmp_path, content[:-1])

    assert f"{len(content)} bytes are described, {len(content) - 1} are there" in message


@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_file_too_short_for_any_header_is_refused(tmp_path: Path, length: int) -> None:
    assert "too short" in _refusal(tmp_path, bytes(length))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**31, 100])
def test_header_longer_than_the_file_is_not_read(tmp_path: Path, length: int) -> None:
    assert f"claims a header of {length} bytes" in _refusal(tmp_path, struct.pack("<Q", length) + b"{}")


@pytest.mark.parametrize(
    "header",
    [
        _tensor(data_offsets=[0, 12]),
        _tensor(data_offsets=[16, 0]),
        _tensor(data_offsets=[-16, 0]),
        _tensor(data_offsets=[0]),
        _tensor(data_offsets=[0, 16, 32]),
        _tensor(data_offsets="16"),
        _tensor(data_offsets=[0.0, 16.0]),
        _tensor(data_offsets=[False, 16]),
        _tensor(data_offsets=None),
        _tensor(shape=[-2, -2]),
        _tensor(shape=[4, True]),
        _tensor(shape=[2, 2.0]),
        _tensor(shape=[2**63, 2**63], data_offsets=[0, 0]),
        _tensor(shape=[0, 2**31], data_offsets=[0, 0]),
        _tensor(shape={"2": 2}),
        _tensor(dtype="F7"),
        _tensor(dtype=["F32"]),
        _tensor(dtype=None),
        {"w": []},
        {"w": 3},
        [],
        "text",
        None,
        3,
    ],
    ids=str,
)
def test_header_without_tensors_is_refused(tmp_path: Path, header: object) -> None:
    assert "describes no valid tensors" in _refusal(tmp_path, safetensors(header, bytes(16)))


def test_tensor_beyond_the_file_end_is_refused(tmp_path: Path) -> None:
    content = safetensors(_tensor(data_offsets=[2**40, 2**40 + 16]), bytes(16))

    assert "truncated" in _refusal(tmp_path, content)


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"\xff\xfe\x00", b"not json", b"[" * 100_000, b'{"a":' * 100_000, b'{"w": ' + b"9" * 5000 + b"}"],
    ids=["empty", "cut", "binary", "words", "brackets", "braces", "digits"],
)
def test_a_header_that_is_no_json_is_refused(tmp_path: Path, header: bytes) -> None:
    assert "describes no valid tensors" in _refusal(tmp_path, safetensors(header))


OTHERS = [
    "._model.safetensors", "consolidated.safetensors", "consolidated.00.safetensors", "original/model.safetensors",
    "Model.safetensors", "adapters.safetensors", "weights.safetensors", "model.safetensors.part", "notes.txt",
    "mtp/model-1.safetensors", ".cache/model.safetensors", "model.safetensors.index.json",
]  # fmt: skip
"""Files that mlx-lm does not load."""


def test_model_size_sums_the_files_that_mlx_lm_loads(tmp_path: Path) -> None:
    """mlx-lm's own pattern is compared: it reads them with this expression."""
    for name, size in (("model-2.safetensors", 20), ("model-1.safetensors", 10), *((name, 1000) for name in OTHERS)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))

    files = weight_files(tmp_path)

    assert estimate_size(files) == 30
    assert [path.name for path in files] == ["model-1.safetensors", "model-2.safetensors"]
    assert {str(path) for path in files} == set(glob.glob(str(tmp_path / "model*.safetensors")))
    assert 'glob.glob(str(model_path / "model*.safetensors"))' in inspect.getsource(load_model)
    assert [name for name in (*OTHERS, "model-1.safetensors") if is_weight_file(name)] == ["model-1.safetensors"]


def test_symlinked_weight_file_counts_its_target(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(40))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "blob")

    assert estimate_size(weight_files(tmp_path / "model")) == 40


def test_missing_directory_has_no_model_size(tmp_path: Path) -> None:
    assert estimate_size(weight_files(tmp_path / "nowhere")) == 0


def test_overlapping_tensors_are_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensor = {"dtype": "U8", "shape": [4]}
    header = {"a": {**tensor, "data_offsets": [0, 4]}, "b": {**tensor, "data_offsets": [3, 7]}}
    path.write_bytes(safetensors(header, bytes(7)))

    with pytest.raises(SidecarError, match="overlap"):
        read_header(path)
