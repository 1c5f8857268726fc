"""Lists the models of the local Hub cache with their sizes, for `ls`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from huggingface_hub import CachedRepoInfo, CachedRevisionInfo, CacheNotFound, scan_cache_dir

from daemon.cache.hub import is_complete
from daemon.cache.weight_files import is_weight_file

_DEFAULT_BRANCH = "main"


@dataclass(frozen=True, slots=True)
class CachedModel:
    """
    A model in the local Hub cache.

    Attributes:
        model: Its Hub id.
        revision: Commit of the default branch when it was fetched; without that, the commit fetched last.
        size_bytes: Bytes of the weights (`model*.safetensors`) of that revision.
        disk_bytes: Bytes of all its revisions on the disk.
        complete: Whether all weights of that revision are on the disk.
        last_used: Last access to a file of it, as the file system records it.
    """

    model: str
    revision: str
    size_bytes: int
    disk_bytes: int
    complete: bool
    last_used: datetime


def cached_models(folder: Path) -> list[CachedModel]:
    """Return the models of a Hub cache, sorted by name; none if there is no such directory."""
    try:
        repos = scan_cache_dir(folder).repos
    except CacheNotFound:
        return []
    models = [_model(repo) for repo in repos if repo.repo_type == "model" and repo.revisions]
    return sorted(models, key=lambda model: model.model.lower())


def _model(repo: CachedRepoInfo) -> CachedModel:
    default = [revision for revision in repo.revisions if _DEFAULT_BRANCH in revision.refs]
    revision = default[0] if default else max(repo.revisions, key=lambda revision: revision.last_modified)
    return CachedModel(
        model=repo.repo_id,
        revision=revision.commit_hash,
        size_bytes=_weights(revision),
        disk_bytes=repo.size_on_disk,
        complete=is_complete(revision.snapshot_path),
        last_used=datetime.fromtimestamp(repo.last_accessed, UTC),
    )


def _weights(revision: CachedRevisionInfo) -> int:
    root = revision.snapshot_path
    files = [(file.file_path.relative_to(root).as_posix(), file.size_on_disk) for file in revision.files]
    return sum(size for name, size in files if is_weight_file(name))
