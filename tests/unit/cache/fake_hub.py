"""A Hub with models in folders, and a watcher of what is fetched of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from daemon.shared.errors import Reason, SidecarError


class Watching:
    """A watcher that notes the progress it gets."""

    def __init__(self) -> None:
        self.downloads: list[tuple[int, int]] = []
        self.reads: list[tuple[int, int]] = []

    def downloading(self, done: int, total: int) -> None:
        """Note it."""
        self.downloads.append((done, total))

    def reading(self, done: int, total: int) -> None:
        """Note it."""
        self.reads.append((done, total))


class FakeHub:
    """
    A Hub with each repository in a folder. It notes the calls.

    Attributes:
        asked: Repository, revision and whether it might be downloaded, of each call.
        absent: Whether nothing is in the local cache.
        size: Bytes that it says a model has.
    """

    def __init__(self, folder: Path) -> None:
        self.asked: list[tuple[str, str, bool]] = []
        self.absent = False
        self.size = 100
        self._folder = folder

    def __call__(self, repo: str, revision: str, *, allow_download: bool, report: Any) -> Path:
        self.asked.append((repo, revision, allow_download))
        path = self._folder / repo.replace("/", "--")
        if not path.is_dir() or (self.absent and not allow_download):
            raise SidecarError(Reason.MODEL_NOT_CACHED, f"{repo} is not cached")
        if self.absent:
            report(1, 2)
        return path

    def plan(self, _repo: str, _revision: str) -> int:
        """Return the size of a model."""
        return self.size

    def update(self, repo: str, revision: str, *, afford: Any, accept: Any, report: Any) -> Path:
        """Fetch what is new of a model."""
        self.asked.append((repo, revision, True))
        afford(self.size)
        report(1, 2)
        accept(self._folder / repo.replace("/", "--"))
        return self._folder / repo.replace("/", "--")
