"""What is in the local Hub cache, and how large it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from huggingface_hub import CachedRepoInfo, CachedRevisionInfo, CacheNotFound, scan_cache_dir

from daemon.cache.hub import is_complete

_DEFAULT_BRANCH = "main"


@dataclass(frozen=True, slots=True)
class CachedModel:
    """
    A model in the local Hub cache.

    Attributes:
        model: Its Hub id.
        revision: Commit that the default branch had when it was fetched; else the commit fetched last.
        size_bytes: Bytes of its weights (`model*.safetensors`) in that revision.
        disk_bytes: Bytes that all its revisions take on the disk.
        complete: Whether all weights of that revision are there.
        last_used: When a file of it was last read, as far as the file system tells.
    """

    model: str
    revision: str
    size_bytes: int
    disk_bytes: int
    complete: bool
    last_used: datetime


def cached_models(folder: Path) -> list[CachedModel]:
    """Return the models of a Hub cache by name; none if there is no such directory."""
    try:
        repos = scan_cache_dir(folder).repos
    except CacheNotFound:
        return []
    found = [_model(repo) for repo in repos if repo.repo_type == "model" and repo.revisions]
    return sorted(found, key=lambda one: one.model.lower())


def _model(repo: CachedRepoInfo) -> CachedModel:
    default = [one for one in repo.revisions if _DEFAULT_BRANCH in one.refs]
    revision = default[0] if default else max(repo.revisions, key=lambda one: one.last_modified)
    return CachedModel(
        model=repo.repo_id,
        revision=revision.commit_hash,
        size_bytes=_weights(revision),
        disk_bytes=repo.size_on_disk,
        complete=is_complete(revision.snapshot_path),
        last_used=datetime.fromtimestamp(repo.last_accessed, UTC),
    )


def _weights(revision: CachedRevisionInfo) -> int:
    names = (file for file in revision.files if file.file_name.startswith("model"))
    return sum(file.size_on_disk for file in names if file.file_name.endswith(".safetensors"))
