"""A snapshot is complete by the Hub's own list of its files; without that by its index, or by the numbers of shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.cache.hub import is_complete
from tests.support.builders import write_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(name="snapshot")
def _snapshot(tmp_path: Path) -> Path:
    """Return a snapshot in the folders of huggingface_hub."""
    return write_model(tmp_path / "models--org--name" / "snapshots" / COMMIT)


def _list(snapshot: Path, sizes: dict[str, int]) -> None:
    """Write huggingface_hub's list of the files of a snapshot."""
    lists = snapshot.parent.parent / "trees"
    lists.mkdir()
    files = {name: {"size": size, "blob_id": "0" * 40} for name, size in sizes.items()}
    (lists / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": files}))


@pytest.mark.parametrize(
    ("there", "complete"),
    [
        (["model-00001-of-00002"], False),
        (["model-00001-of-00002", "model-00002-of-00002"], True),
        (["model-00000-of-00002", "model-00001-of-00002"], True),
        (["model", "model-00001-of-000163"], False),
        (["model-2"], True),
    ],
)
def test_numbers_of_shards_tell_what_is_missing(snapshot: Path, there: list[str], *, complete: bool) -> None:
    """An interrupted download of an older library leaves shards alone: the index comes after them."""
    content = (snapshot / "model.safetensors").read_bytes()
    (snapshot / "model.safetensors").unlink()
    for name in there:
        (snapshot / f"{name}.safetensors").write_bytes(content)

    assert is_complete(snapshot) is complete


@pytest.mark.parametrize(
    ("listed", "complete"),
    [
        (["config.json", "model.safetensors", "original/model-2.safetensors"], True),
        (["config.json", "model.safetensors", "model-2.safetensors"], False),
        (None, False),
    ],
)
def test_index_that_is_left_over_hides_no_model(snapshot: Path, listed: list[str] | None, *, complete: bool) -> None:
    """The Hub's own list of the files counts, where there is one; mlx-lm reads no index."""
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    if listed is not None:
        _list(snapshot, dict.fromkeys(listed, (snapshot / "model.safetensors").stat().st_size))

    assert is_complete(snapshot) is complete


def test_snapshot_with_a_file_of_another_size_is_incomplete(snapshot: Path) -> None:
    """A full disk or a loss of power can leave a file that is cut short, which huggingface_hub takes for whole."""
    weights = snapshot / "model.safetensors"
    content = weights.read_bytes()
    _list(snapshot, {weights.name: len(content)})

    assert is_complete(snapshot)
    for other in (content[:-1], content + b" "):
        weights.write_bytes(other)
        assert not is_complete(snapshot)
