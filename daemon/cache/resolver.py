"""From the name in a request to a checked model on disk. Blocking: runs on the engine's small thread pools."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from daemon.cache.callbacks import ignore
from daemon.cache.digests import Digests, TakesLong
from daemon.cache.hub import planned_bytes, snapshot
from daemon.cache.identity import ModelSource, identify
from daemon.cache.keyed_lock import KeyedLock
from daemon.cache.lru_dict import LruDict
from daemon.shared.errors import Reason, SidecarError, invalid
from daemon.shared.machine_faults import machine_fault
from daemon.shared.model_names import climbs, plain

EMBEDDED = "embedded"
EMBEDDED_PATH = Path(__file__).resolve().parent.parent / "embedded"
"""A small model that ships with the daemon, for tests and demonstrations."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
MOST_REVISIONS = 1024
"""
Hub ids for which the revision that was used last is remembered; the others stand for their default branch. There is a
bound because a file system that ignores case has many spellings of the same id.
"""

_REVISION = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)
"""A branch, tag or commit. huggingface_hub makes it part of a path, so that it must not lead out of the cache."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """
    What a request asks for. Equal ones are answered alike, so that they can be looked for together.

    Attributes:
        name: Hub id, absolute directory, or "embedded".
        revision: Revision of a Hub id; None means the one that was loaded last, or the default branch.
        adapter: Absolute directory of an adapter, or empty.
        allow_download: Whether files may be fetched from the Hub.
        estimate: Whether figures are enough: weights are not read if that takes long, and what the Hub tells will do if
            the files are not here and may not be fetched.
    """

    name: str
    revision: str | None = None
    adapter: str = ""
    allow_download: bool = False
    estimate: bool = False


class Watcher(Protocol):
    """Who waits for work that takes long. Its methods run on the thread that does it and may raise to abandon it."""

    def downloading(self, done: int, total: int) -> None:
        """Called with the bytes that came and those that are to come."""

    def reading(self, done: int, total: int) -> None:
        """Called with the bytes of a weight file that were read to name it."""


class Resolver:
    """
    Finds models. Any thread.

    Args:
        roots: Directories that models may lie below; empty allows any absolute directory.
        fetch: Finds or downloads a Hub model; see `daemon.cache.hub.snapshot`.
        plan: Tells what a Hub model would take; see `daemon.cache.hub.planned_bytes`.
        digests: Knows the content of weight files.
        supported: Whether mlx-lm knows a model_type.
        afford: Raises if a model of a name and size can never be loaded.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        fetch: Callable[..., Path] = snapshot,
        plan: Callable[[str, str], int] = planned_bytes,
        *,
        digests: Digests | None = None,
        supported: Callable[[str], bool] = lambda _: True,
        afford: Callable[[str, int], None] = ignore,
    ) -> None:
        self._roots = [root.resolve() for root in roots]
        self._fetch = fetch
        self._plan = plan
        self._digests = digests or Digests()
        self._supported = supported
        self._afford = afford
        self._revisions = LruDict[str, str](MOST_REVISIONS)
        """By Hub id, the revision that it stands for if a request names none."""
        self._lock = threading.Lock()
        self._downloads = KeyedLock[str]()

    def resolve(self, wanted: Wanted, watcher: Watcher | None = None) -> ModelSource:
        """
        Return the model that a request asks for.

        Args:
            wanted: What it asks for.
            watcher: Gets the progress of what takes long; None does nothing that does.

        Raises:
            SidecarError: MODEL_NOT_FOUND, MODEL_NOT_CACHED, MODEL_GATED, MODEL_UNSUPPORTED, MODEL_CORRUPT,
                MODEL_EXCEEDS_BUDGET, MACHINE_EXHAUSTED, MACHINE_FAULT or INVALID_ARGUMENT.
            TakesLong: If there is something to download or to read, and no watcher.
        """
        name = plain(wanted.name)
        adapter = self._directory("adapter", wanted.adapter) if wanted.adapter else None
        hub = name != EMBEDDED and not name.startswith("/")
        if not hub:
            if wanted.revision:
                raise invalid("revision", "belongs to Hub ids only")
            path = EMBEDDED_PATH if name == EMBEDDED else self._directory("model", name)
            if climbs(name) and str(path).isprintable():  # a name is text; not every path is
                name = str(path)
        elif _HUB_ID.fullmatch(name) and ".." not in name:
            path = self._hub(wanted, watcher)
        else:
            raise SidecarError(
                Reason.MODEL_NOT_FOUND,
                f"there is no model {name!r}; give a Hub id (org/name), an absolute directory, or 'embedded'",
                field="model",
            )
        source = identify(
            name,
            path,
            adapter,
            digests=self._digests,
            hub=hub,
            report=watcher.reading if watcher else None,
            roots=() if name == EMBEDDED else tuple(self._roots),
            afford=ignore if wanted.estimate else self._afford,
            estimate=wanted.estimate,
        )
        self._refuse_unsupported(source)
        return source

    def planned_bytes(self, wanted: Wanted) -> int:
        """
        Return the bytes of weights of a Hub model that is not on this machine. Asks the Hub.

        Raises:
            SidecarError: MODEL_NOT_FOUND, MODEL_NOT_CACHED, MODEL_GATED or INVALID_ARGUMENT.
        """
        return self._plan(wanted.name, self._revision(wanted))

    def prefer(self, name: str, revision: str) -> None:
        """Let a Hub id that comes without a revision mean this one, as if it had been loaded last."""
        with self._lock:
            self._revisions.put(name, revision)

    def _refuse_unsupported(self, source: ModelSource) -> None:
        if self._supported(source.architecture):
            return
        why = "is not supported by this mlx-lm"
        if source.config.get("auto_map"):
            why += ", and its own code (auto_map in config.json) is never run"
        raise SidecarError(Reason.MODEL_UNSUPPORTED, f"{source.name} {why}: its model_type is {source.architecture}")

    def _hub(self, wanted: Wanted, watcher: Watcher | None) -> Path:
        name, revision = wanted.name, self._revision(wanted)
        try:  # never waits for a download
            path = self._fetch(name, revision, allow_download=False, report=ignore)
        except SidecarError as error:
            if error.reason is not Reason.MODEL_NOT_CACHED or not (wanted.allow_download or wanted.estimate):
                raise
            if watcher is None:
                raise TakesLong from error
            if not wanted.allow_download:
                raise
            path = self._download(name, revision, watcher)
        if not wanted.estimate:
            self.prefer(name, revision)
        return path

    def _download(self, name: str, revision: str, watcher: Watcher) -> Path:
        with self._downloads.locked(name):  # revisions share files: the later download finds them in the cache
            self._afford(name, self._plan(name, revision))
            return self._fetch(name, revision, allow_download=True, report=watcher.downloading)

    def _revision(self, wanted: Wanted) -> str:
        if wanted.revision is None:
            with self._lock:
                return self._revisions.get(wanted.name) or ""
        if wanted.revision and (not _REVISION.fullmatch(wanted.revision) or ".." in wanted.revision):
            raise invalid("revision", "must be a branch, a tag or a commit")
        return wanted.revision

    def _directory(self, field: str, name: str) -> Path:
        path = Path(name)
        if not path.is_absolute() or "\0" in name:
            raise invalid(field, "must be an absolute directory")
        try:
            path = path.resolve()
            found = path.is_dir()
        except (OSError, RuntimeError) as error:  # too long, unreadable, or a loop of symbolic links
            cannot = f"{name} cannot be looked at"
            fault = machine_fault(error, cannot)
            raise fault or SidecarError(Reason.MODEL_NOT_FOUND, cannot, field=field) from error
        if self._roots and not any(path.is_relative_to(root) for root in self._roots):
            raise SidecarError(
                Reason.MODEL_NOT_FOUND,
                f"{name} is outside the directories that model_roots allows",
                field=field,
            )
        if not found:
            raise SidecarError(Reason.MODEL_NOT_FOUND, f"there is no directory {name}", field=field)
        return path
