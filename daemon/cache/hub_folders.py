"""
The folders of the Hub's local cache: which models are in it, in which revisions, and what they take on the disk.

huggingface_hub documents the layout (https://huggingface.co/docs/huggingface_hub/guides/manage-cache). Its own scan
takes several times as long, gives no sign of life meanwhile, and leaves a model out if one link in it leads to nothing.
Programs list models every few seconds.

    models--org--name/refs/main           the commit that the default branch stood for
    models--org--name/snapshots/COMMIT/   a revision: links to blobs
    models--org--name/blobs/              the files of all revisions
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from daemon.cache.model_files import read
from daemon.shared.errors import SidecarError
from daemon.shared.liveness import moved

_PREFIX = "models--"
_DEFAULT_BRANCH = "main"
_MOST_REF_BYTES = 1024


@dataclass(frozen=True, slots=True)
class HubFolder:
    """
    A model in the Hub's cache.

    Attributes:
        model: Its Hub id.
        snapshot: The directory of a revision: the default branch, or without that the one that was fetched last.
        disk_bytes: Bytes of the files of all its revisions. Files that are still being fetched are in none.
        last_used: Seconds since 1970 of the last access to one of them, as the file system records it.
    """

    model: str
    snapshot: Path
    disk_bytes: int
    last_used: float


def hub_ids(cache: Path) -> list[str]:
    """Return the ids of the models of a Hub cache, sorted, from the names of its directories alone."""
    return sorted(path.name.removeprefix(_PREFIX).replace("--", "/") for path in cache.glob(f"{_PREFIX}*"))


def hub_folders(cache: Path, most: int) -> list[HubFolder]:
    """Return the first models of a Hub cache, sorted by id; those of which no revision was fetched are left out."""
    found = (_folder(cache, model) for model in hub_ids(cache)[:most])
    return [folder for folder in found if folder is not None]


def _folder(cache: Path, model: str) -> HubFolder | None:
    """Return a model; None if nothing of its default branch, or of any revision if it has none, was fetched."""
    moved()
    repo = cache / f"{_PREFIX}{model.replace('/', '--')}"
    revisions = {path.name: list(_files(path)) for path in _folders(repo / "snapshots")}
    if not revisions:
        return None
    commit = _default(repo) or max(revisions, key=lambda name: _last_written(revisions[name]))
    if commit not in revisions:
        return None
    files = {(file.st_dev, file.st_ino): file for stats in revisions.values() for file in stats}.values()
    return HubFolder(
        model,
        repo / "snapshots" / commit,
        disk_bytes=sum(file.st_size for file in files),
        last_used=max((file.st_atime for file in files), default=0.0),
    )


def _default(repo: Path) -> str:
    """Return the commit of the default branch; empty if there is none that can be read."""
    try:
        return read(repo / "refs" / _DEFAULT_BRANCH, most=_MOST_REF_BYTES).decode().strip()
    except (OSError, ValueError, SidecarError):
        return ""


def _last_written(stats: list[os.stat_result]) -> float:
    return max((file.st_mtime for file in stats), default=0.0)


def _folders(folder: Path) -> list[Path]:
    """Return the directories in a directory; none if it cannot be read."""
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


def _files(folder: str | Path) -> Iterator[os.stat_result]:
    """Yield the states of the files of a revision, links followed; a link to nothing, or to a directory, is none."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
                continue
            with suppress(OSError):
                status = entry.stat()
                if not stat.S_ISDIR(status.st_mode):
                    yield status
