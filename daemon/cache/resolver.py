"""From the name in a request to a checked model on disk. Blocking: runs on the engine's small thread pool."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

from daemon.cache.hub import Report, snapshot
from daemon.cache.identity import ModelSource, identify
from daemon.errors import Reason, SidecarError, invalid

EMBEDDED = "embedded"
EMBEDDED_PATH = Path(__file__).resolve().parent.parent / "embedded"
"""A small model that ships with the daemon, for tests, demonstrations and `doctor`."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)
"""A branch, tag or commit. huggingface_hub makes it part of a path, so that it must not lead out of the cache."""


def _ignore(_done: int, _total: int) -> None:
    """Nobody watches."""


class _Turn:
    """Whose turn it is to download one model."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Resolver:
    """
    Finds models.

    Args:
        roots: Directories that models may lie below; empty allows any absolute directory.
        fetch: Finds or downloads a Hub model; see `daemon.cache.hub.snapshot`.
    """

    def __init__(self, roots: Sequence[Path], fetch: Callable[..., Path] = snapshot) -> None:
        self._roots = [root.resolve() for root in roots]
        self._fetch = fetch
        self._revisions: dict[str, str] = {}
        self._turns: WeakValueDictionary[str, _Turn] = WeakValueDictionary()
        self._lock = threading.Lock()

    def resolve(
        self,
        name: str,
        *,
        revision: str | None = None,
        adapter: str = "",
        allow_download: bool = False,
        report: Report = _ignore,
    ) -> ModelSource:
        """
        Return the model that a name stands for.

        Args:
            name: Hub id, absolute directory, or "embedded".
            revision: Revision of a Hub id; None means the one that was asked for last, or the default branch.
            adapter: Absolute directory of an adapter, or empty.
            allow_download: Whether the Hub may be asked.
            report: Gets the progress of a download.

        Raises:
            SidecarError: MODEL_NOT_FOUND, MODEL_NOT_CACHED, MODEL_GATED, MODEL_UNSUPPORTED, MODEL_CORRUPT or
                INVALID_ARGUMENT.
        """
        adapter_path = self._directory("adapter", adapter) if adapter else None
        if name == EMBEDDED or name.startswith("/"):
            if revision:
                raise invalid("revision", "belongs to Hub ids only")
            path = EMBEDDED_PATH if name == EMBEDDED else self._directory("model", name)
        elif _HUB_ID.fullmatch(name) and ".." not in name:
            path = self._hub(name, revision, allow_download, report)
        else:
            raise SidecarError(
                Reason.MODEL_NOT_FOUND,
                f"there is no model {name!r}; give a Hub id (org/name), an absolute directory, or 'embedded'",
                field="model",
            )
        return identify(name, path, adapter_path)

    def _hub(self, name: str, revision: str | None, allow_download: bool, report: Report) -> Path:
        if revision and (not _REVISION.fullmatch(revision) or ".." in revision):
            raise invalid("revision", "must be a branch, a tag or a commit")
        with self._lock:
            wanted = self._revisions.get(name, "") if revision is None else revision
            turn = self._turns.setdefault(name, _Turn())
        if allow_download:
            with turn.lock:  # callers of one model share one download: the second finds it in the cache
                path = self._fetch(name, wanted, allow_download=True, report=report)
        else:  # never waits for a download
            path = self._fetch(name, wanted, allow_download=False, report=report)
        with self._lock:
            self._revisions[name] = wanted
        return path

    def _directory(self, field: str, name: str) -> Path:
        path = Path(name)
        if not path.is_absolute() or "\0" in name:
            raise invalid(field, "must be an absolute directory")
        try:
            path = path.resolve()
            found = path.is_dir()
        except (OSError, RuntimeError) as error:  # too long, unreadable, or a loop of symbolic links
            raise SidecarError(Reason.MODEL_NOT_FOUND, f"{name} cannot be looked at", field=field) from error
        if self._roots and not any(path.is_relative_to(root) for root in self._roots):
            raise SidecarError(
                Reason.MODEL_NOT_FOUND,
                f"{name} is outside the directories that model_roots allows",
                field=field,
            )
        if not found:
            raise SidecarError(Reason.MODEL_NOT_FOUND, f"there is no directory {name}", field=field)
        return path
