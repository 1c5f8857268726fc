"""
Finds the model that a request names: a directory or a Hub id becomes a checked model on disk, with its key.

All of it blocks, on disks or on the network. It runs on the engine's background threads, never on the MLX thread.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from daemon.cache import hub
from daemon.cache.callbacks import Report, ignore
from daemon.cache.digests import Digests, TakesLong
from daemon.cache.identity import ModelSource, identify
from daemon.cache.keyed_lock import KeyedLock
from daemon.cache.lru_dict import LruDict
from daemon.cache.model_files import lies_in
from daemon.cache.unchanged import Findings
from daemon.shared import liveness
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
"""A branch, tag or commit. huggingface_hub makes it part of a path: it must not lead out of the cache."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """
    The model that a request asks for. Equal values get the same answer, so that requests can share a lookup.

    Attributes:
        name: Hub id, absolute directory, or "embedded".
        revision: Revision of a Hub id; None for the revision that was loaded last, or the default branch.
        adapter: Absolute directory of an adapter, or empty.
        allow_download: Whether files may be fetched from the Hub.
        estimate: Whether figures are enough. Large weights are not read then, and the Hub's figures do if the files
            are not here and may not be fetched.
        offline: Whether the Hub is not asked, not even for figures.
        update: Whether the Hub is asked for what is newer, also if the model is here.
    """

    name: str
    revision: str | None = None
    adapter: str = ""
    allow_download: bool = False
    estimate: bool = False
    offline: bool = False
    update: bool = False


_Identity = tuple[str, Path, Path | None, bool, int]
"""What a finding is about: name, directories of model and adapter, whether it is the Hub's, and `Digests.corrected`."""


class Watcher(Protocol):
    """Gets the progress of long work, on the thread that does it. Its methods may raise to abandon the work."""

    def downloading(self, done: int, total: int) -> None:
        """Note the bytes that a download has received, and those that it will."""

    def reading(self, done: int, total: int) -> None:
        """Note the bytes of a weight file that were hashed, and those that it has."""


class Resolver:
    """
    Finds models. Any thread.

    Args:
        roots: Directories that models may lie below; empty allows any absolute directory.
        fetch: Finds or downloads a Hub model; see `daemon.cache.hub.snapshot`.
        plan: Returns the bytes of a Hub model; see `daemon.cache.hub.planned_bytes`.
        update: Fetches what is newer of a Hub model; see `daemon.cache.hub.update`.
        digests: Looks digests of weight files up, or computes them.
        supported: Returns whether mlx-lm knows a model_type.
        afford: Raises if a model of a name and size can never be loaded.
        now_ns: Returns the time by the file system's clock, in nanoseconds.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        fetch: Callable[..., Path] = hub.snapshot,
        plan: Callable[[str, str], int] = hub.planned_bytes,
        *,
        update: Callable[..., Path] = hub.update,
        digests: Digests | None = None,
        supported: Callable[[str], bool] = lambda _: True,
        afford: Callable[[str, int], None] = ignore,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._roots = [root.resolve() for root in roots]
        self._fetch = fetch
        self._plan = plan
        self._update = update
        self._digests = digests or Digests()
        self._supported = supported
        self._afford = afford
        self._revisions = LruDict[str, str](MOST_REVISIONS)
        """By Hub id, the revision that it stands for if a request names none."""
        self._identified = Findings[_Identity, ModelSource](now_ns)
        self._lock = threading.Lock()
        self._downloads = KeyedLock[str]()

    def resolve(self, wanted: Wanted, watcher: Watcher | None = None) -> ModelSource:
        """
        Return the model that a request asks for.

        Args:
            wanted: What it asks for.
            watcher: Gets the progress of downloading and reading; None if neither may be done.

        Raises:
            SidecarError: MODEL_NOT_FOUND, MODEL_NOT_CACHED, MODEL_GATED, MODEL_UNSUPPORTED, MODEL_CORRUPT,
                MODEL_EXCEEDS_BUDGET, MACHINE_EXHAUSTED, MACHINE_FAULT or INVALID_ARGUMENT.
            TakesLong: If files have to be downloaded or large ones to be read, and there is no watcher.
        """
        adapter = self._directory("adapter", wanted.adapter) if wanted.adapter else None
        name, path, is_hub = self._located(wanted, watcher)
        afford = ignore if wanted.estimate else self._afford

        def identified() -> ModelSource:
            return identify(
                name,
                path,
                adapter,
                digests=self._digests,
                hub=is_hub,
                report=watcher.reading if watcher else None,
                roots=() if name == EMBEDDED else tuple(self._roots),
                afford=afford,
                estimate=wanted.estimate,
            )

        if wanted.estimate:  # without a key
            source = identified()
        else:
            key = name, path, adapter, is_hub, self._digests.corrected
            source = self._identified.get(key, filter(None, (path, adapter)), identified)
            afford(name, source.size_bytes)  # of a model that was known, too: what is allowed may have changed
        self._refuse_unsupported(source)
        return replace(source, branch=self._revision(wanted)) if is_hub else source

    def planned_bytes(self, wanted: Wanted) -> int:
        """
        Return the bytes of the weights of a Hub model. Asks the Hub.

        Raises:
            SidecarError: MODEL_NOT_FOUND, MODEL_NOT_CACHED, MODEL_GATED or INVALID_ARGUMENT.
        """
        return self._plan(wanted.name, self._revision(wanted))

    def prefer(self, name: str, revision: str) -> None:
        """Set the revision that a Hub id stands for if a request names none."""
        with self._lock:
            self._revisions.put(name, revision)

    def _located(self, wanted: Wanted, watcher: Watcher | None) -> tuple[str, Path, bool]:
        """Return the name that a model is known by, its directory, and whether that is a snapshot of the Hub."""
        name = plain(wanted.name)
        if name != EMBEDDED and not name.startswith("/"):
            return name, self._hub(wanted, watcher), True
        if wanted.revision:
            raise invalid("revision", "belongs to Hub ids only; leave it out for a directory and for 'embedded'")
        path = EMBEDDED_PATH if name == EMBEDDED else self._directory("model", name)
        # Each directory has a single name, whatever `..` it was asked for with. A name is printable text.
        if climbs(name) and str(path).isprintable():
            name = str(path)
        return name, path, False

    def _hub(self, wanted: Wanted, watcher: Watcher | None) -> Path:
        """Return the snapshot of a Hub id; downloads it if the call allows that and there is a watcher."""
        name = wanted.name
        if not _HUB_ID.fullmatch(name) or ".." in name:
            raise SidecarError(
                Reason.MODEL_NOT_FOUND,
                f"there is no model {name!r}; give a Hub id (org/name), an absolute directory, or 'embedded'",
                field="model",
            )
        revision = self._revision(wanted)
        if wanted.update:
            if watcher is None:
                raise TakesLong
            path = self._updated(name, revision, watcher)
        else:
            path = self._here_or_downloaded(wanted, revision, watcher)
        if not wanted.estimate:
            self.prefer(name, revision)
        return path

    def _here_or_downloaded(self, wanted: Wanted, revision: str, watcher: Watcher | None) -> Path:
        name = wanted.name
        try:  # without the lock: a cached model does not wait for a download of another revision
            return self._fetch(name, revision, allow_download=False, report=ignore)
        except SidecarError as error:
            asks = wanted.allow_download or (wanted.estimate and not wanted.offline)
            if error.reason is not Reason.MODEL_NOT_CACHED or not asks:
                raise
            if watcher is None:
                raise TakesLong from error
            if not wanted.allow_download:
                raise
            return self._download(name, revision, watcher)

    def _updated(self, name: str, revision: str, watcher: Watcher) -> Path:
        def accept(path: Path) -> None:
            self._refuse_unsupported(identify(name, path, digests=self._digests, hub=True, estimate=True))

        with self._downloading(name, watcher) as report:
            return self._update(name, revision, afford=partial(self._afford, name), accept=accept, report=report)

    def _download(self, name: str, revision: str, watcher: Watcher) -> Path:
        with self._downloading(name, watcher) as report:
            self._afford(name, self._plan(name, revision))
            return self._fetch(name, revision, allow_download=True, report=report)

    @contextmanager
    def _downloading(self, name: str, watcher: Watcher) -> Iterator[Report]:
        """Wait until no other thread downloads of a model: revisions share files, which the later one finds."""
        with self._downloads.locked(name):
            sign = liveness.current()  # of this thread, and of those that wait for it

            def report(done: int, total: int) -> None:
                sign()
                watcher.downloading(done, total)

            yield report

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
            exists = path.is_dir()
        except (OSError, RuntimeError) as error:  # too long, unreadable, or a loop of symbolic links
            cannot = f"{name} cannot be looked at"
            fault = machine_fault(error, cannot)
            raise fault or SidecarError(Reason.MODEL_NOT_FOUND, cannot, field=field) from error
        if self._roots and not lies_in(path, self._roots):
            raise SidecarError(
                Reason.MODEL_NOT_FOUND,
                f"{name} is outside the directories that model_roots allows; name a model below one of them",
                field=field,
            )
        if not exists:
            why = f"{name} is a file; name its directory" if path.exists() else f"there is no directory {name}"
            raise SidecarError(Reason.MODEL_NOT_FOUND, why, field=field)
        return path

    def _refuse_unsupported(self, source: ModelSource) -> None:
        if self._supported(source.architecture):
            return
        why = "is not supported by this mlx-lm"
        if source.config.get("auto_map"):
            why += ", and its own code (auto_map in config.json) is never run"
        raise SidecarError(Reason.MODEL_UNSUPPORTED, f"{source.name} {why}: its model_type is {source.architecture}")
