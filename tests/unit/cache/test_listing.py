"""The models of a Hub cache are listed from stamps of their files, and each change of a file is seen at once."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import scan_cache_dir

from daemon.cache import hub, listing
from daemon.cache.digests import SETTLED_NS
from daemon.cache.hub_folders import hub_folders
from daemon.cache.listing import DiskModel, hub_models, hub_names
from daemon.cache.model_files import read
from daemon.cache.unchanged import Findings

OLD, NEW = "a" * 40, "b" * 40
CHAT = {"chat_template": "{{ messages }}"}


@pytest.fixture(name="later", autouse=True)
def _later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let findings trust files that were written just now, and remember none of another test."""

    def now_ns() -> int:
        return time.time_ns() + 2 * SETTLED_NS

    monkeypatch.setattr(listing, "_TOLD", Findings[Any, dict[str, Any]](now_ns, most=100))
    monkeypatch.setattr(hub, "_COMPLETE", Findings[Any, bool](now_ns))


@pytest.fixture(name="reads")
def _reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that the names of files are added to when a listing reads them."""
    names: list[str] = []

    def noting(file: Path, *rest: Any) -> bytes:
        names.append(file.name)
        return read(file, *rest)

    monkeypatch.setattr(listing, "read", noting)
    return names


def put(cache: Path, model: str = "org/name", commit: str = OLD, **files: object) -> Path:
    """Fetch a revision as huggingface_hub does, and return its snapshot; `a__b` names a file b in a folder a."""
    repo = cache / f"models--{model.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    for folder in (repo / "blobs", repo / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(commit)
    for name, content in {"config": {"model_type": "llama"}, "tokenizer_config": CHAT, **files}.items():
        place(snapshot / f"{name.replace('__', '/')}.json", json.dumps(content))
    place(snapshot / "model.safetensors", commit)
    return snapshot


def place(file: Path, content: str) -> None:
    """Put a file into a snapshot: a link to a new blob."""
    blobs = next(folder for folder in file.parents if folder.name == "snapshots").parent / "blobs"
    blob = blobs / f"{len(list(blobs.iterdir()))}"
    blob.write_text(content)
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    file.symlink_to(blob)


def the(cache: Path) -> DiskModel:
    """Return the one model of a cache."""
    (model,) = hub_models(cache)
    return model


def test_listing_agrees_with_the_scan_of_the_library(tmp_path: Path) -> None:
    """Sizes, times and default branches; files that revisions share count once, nested ones too."""
    for commit in (OLD, NEW):
        shared = put(tmp_path, commit=commit, original__params={}).parent / "shared"
        place(shared.parent / commit / f"{commit}.txt", commit)
    (tmp_path / "models--org--name" / "snapshots" / NEW / "same.json").symlink_to(
        (tmp_path / "models--org--name" / "snapshots" / OLD / "config.json").readlink()
    )
    put(tmp_path, "solo")
    (tmp_path / "models--org--name" / "blobs" / "x.incomplete").write_text("being fetched")
    found = {folder.model: folder for folder in hub_folders(tmp_path, 10)}
    scanned = {repo.repo_id: repo for repo in scan_cache_dir(tmp_path).repos}
    assert set(found) == set(scanned) == {"org/name", "solo"}
    for name, repo in scanned.items():
        (default,) = (revision for revision in repo.revisions if "main" in revision.refs)
        assert (found[name].disk_bytes, found[name].last_used) == (repo.size_on_disk, repo.last_accessed)
        assert found[name].snapshot == default.snapshot_path
    assert hub_names(tmp_path) == ["org/name"]


def test_model_without_an_organisation_has_a_problem(tmp_path: Path) -> None:
    """It is on the disk, and no call can name it: a list that calls it usable would lead to a refusal."""
    put(tmp_path, "solo")
    assert the(tmp_path).complete
    assert "fetch it as org/name" in the(tmp_path).problem


def test_models_that_did_not_change_are_not_read_again(tmp_path: Path, reads: list[str]) -> None:
    """But their last use is looked up anew."""
    snapshot = put(tmp_path)
    first = the(tmp_path)
    assert first.complete
    assert first.chat
    assert reads
    reads.clear()
    later = 2 * 10**9
    os.utime(snapshot / "config.json", (later, 0))  # which changes its stamp
    assert the(tmp_path) == replace(first, last_used=later)
    assert reads
    reads.clear()
    assert the(tmp_path) == replace(first, last_used=later)
    assert not reads


def _add_model(cache: Path) -> None:
    put(cache, "org/other")


def _remove_model(cache: Path) -> None:
    shutil.rmtree(cache / "models--org--name")


def _move_branch(cache: Path) -> None:
    put(cache, commit=NEW)


def _snapshot(cache: Path) -> Path:
    return cache / "models--org--name" / "snapshots" / OLD


def _lose_weights(cache: Path) -> None:
    (_snapshot(cache) / "model.safetensors").unlink()


def _lose_blob(cache: Path) -> None:
    (_snapshot(cache) / "model.safetensors").resolve().unlink()


def _await_shards(cache: Path) -> None:
    place(_snapshot(cache) / "model.safetensors.index.json", '{"weight_map": {"w": "model-2.safetensors"}}')


def _change_config(cache: Path) -> None:
    place(_snapshot(cache) / "config.json", '{"model_type": "qwen3"}')


def _break_config(cache: Path) -> None:
    place(_snapshot(cache) / "config.json", "{")


def _change_template(cache: Path) -> None:
    place(_snapshot(cache) / "chat_template.jinja", "{{ tools }} <think>")


def _rewrite_in_place(cache: Path) -> None:
    (_snapshot(cache) / "tokenizer_config.json").resolve().write_text('{"chat_template": "{{ tools    }}"}')


def _pool(cache: Path) -> None:
    place(_snapshot(cache) / "1_Pooling" / "config.json", '{"pooling_mode": "mean"}')


CHANGES: dict[Callable[[Path], None], dict[str, object]] = {
    _move_branch: {"revision": NEW},
    _lose_weights: {"complete": False, "size_bytes": 0},
    _lose_blob: {"complete": False, "size_bytes": 0},
    _await_shards: {"complete": False},
    _change_config: {"architecture": "qwen3"},
    _break_config: {"architecture": ""},
    _change_template: {"tools": True, "reasoning": True},
    _rewrite_in_place: {"tools": True},
    _pool: {"embeddings": True},
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_change_of_a_model_is_seen_at_once(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Whatever file it is in: those of the model, of its pooling, and links that lead elsewhere."""
    put(tmp_path, modules=[{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}])
    for _ in range(2):
        before = the(tmp_path)
    change(tmp_path)
    after = the(tmp_path)
    expected = CHANGES[change]
    assert {name: getattr(after, name) for name in expected} == expected
    assert all(getattr(before, name) != value for name, value in expected.items())


def test_models_that_come_and_go_are_seen_at_once(tmp_path: Path) -> None:
    """A model of which no file was fetched yet is none."""
    put(tmp_path)
    assert [model.model for model in hub_models(tmp_path)] == ["org/name"]
    _add_model(tmp_path)
    assert [model.model for model in hub_models(tmp_path)] == ["org/name", "org/other"]
    _remove_model(tmp_path)
    (tmp_path / "models--org--name" / "refs").mkdir(parents=True)
    (tmp_path / "models--org--name" / "refs" / "main").write_text(NEW)
    assert [model.model for model in hub_models(tmp_path)] == ["org/other"]


def test_missing_shard_is_seen_when_it_comes(tmp_path: Path) -> None:
    """A download that goes on makes the model complete."""
    put(tmp_path)
    _await_shards(tmp_path)
    assert not the(tmp_path).complete
    place(_snapshot(tmp_path) / "model-2.safetensors", "w")
    assert the(tmp_path).complete


def test_list_of_the_hub_is_seen_when_it_comes(tmp_path: Path) -> None:
    """It tells that an index is left over, and no file of the model changes with it."""
    snapshot = put(tmp_path)
    _await_shards(tmp_path)
    assert not the(tmp_path).complete
    lists = snapshot.parent.parent / "trees"
    lists.mkdir()
    files = {
        file.name: {"size": file.stat().st_size}
        for file in map(snapshot.joinpath, ("config.json", "model.safetensors"))
    }
    (lists / f"{OLD}.json").write_text(json.dumps({"files": files}))
    assert the(tmp_path).complete


def test_file_that_the_machine_cannot_read_now_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of descriptors, the model is listed with its problem; the next listing reads it again."""
    put(tmp_path)
    with monkeypatch.context() as patched:

        def failing(file: Path, *_: Any) -> bytes:
            raise OSError(24, "Too many open files", str(file))

        patched.setattr(listing, "read", failing)
        assert the(tmp_path).problem == "config.json cannot be read: Too many open files"
    assert (the(tmp_path).problem, the(tmp_path).chat) == ("", True)


@pytest.fixture(name="fifo")
def _fifo(tmp_path: Path) -> Path:
    """Return a cache whose model has a FIFO for its list of weights."""
    put(tmp_path)
    os.mkfifo(_snapshot(tmp_path) / "model.safetensors.index.json")
    return tmp_path


def test_odd_file_spoils_the_listing_of_no_other_model(fifo: Path) -> None:
    """Nor does a link to nothing: the library leaves such a model out."""
    put(fifo, "org/other")
    (fifo / "models--org--other" / "snapshots" / OLD / "README.md").symlink_to("nothing")
    assert [(model.model, model.complete) for model in hub_models(fifo)][1:] == [("org/other", True)]
