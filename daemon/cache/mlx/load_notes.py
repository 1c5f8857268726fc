"""
What loads found out about models, kept in files for later runs of the daemon.

To find it out takes most of a load: some fifty passes of self-tests, and passes that are measured. The results follow
from the model's content and from the place where it computes (`computing_place.py`). A result of another place counts
for nothing.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import structlog

from daemon.cache.background_save import BackgroundSave
from daemon.cache.callbacks import ignore
from daemon.cache.identity import ModelKey
from daemon.cache.lru_dict import LruDict
from daemon.shared.log_fields import cause
from daemon.shared.small_file import read_small, replace_small

V = TypeVar("V")

MOST_MODELS = 256
"""Models that are remembered, those that were used last."""
_MAX_BYTES = 1_000_000

log = structlog.get_logger()


class Notes(Protocol[V]):
    """A store that outlives the process."""

    def read(self) -> dict[str, V]:
        """Return the values by name; nothing if they cannot be read."""

    def write(self, known: dict[str, V]) -> None:
        """Replace all of them. A failure is logged; it costs only time later."""


class LoadNotes(Generic[V]):
    """
    What was found out about models, by a name; see `name_of`. Belongs to the MLX thread, which no disk holds up.

    Args:
        notes: Keeps it for the next process; None keeps it in memory only.
    """

    def __init__(self, notes: Notes[V] | None = None) -> None:
        self._known = LruDict[str, V](MOST_MODELS, notes.read().items() if notes else ())
        self._lock = threading.Lock()
        self._save = BackgroundSave(lambda: notes.write(self._noted()), wait=0.0).request if notes else ignore

    def find(self, name: str) -> V | None:
        """Return what is known; None if nothing is, or only of another place."""
        with self._lock:
            return self._known.get(name)

    def keep(self, name: str, value: V) -> None:
        """Keep what was found out."""
        with self._lock:
            self._known.put(name, value)
        self._save()

    def _noted(self) -> dict[str, V]:
        with self._lock:
            return self._known.copy()


@dataclass(frozen=True)
class Kind(Generic[V]):
    """
    A kind of values.

    Attributes:
        file_name: The file's name.
        version: Goes up whenever the same values mean something else.
        encode: Returns a value as JSON has it.
        decode: The reverse. Raises ValueError, KeyError or TypeError for what is no such value.
    """

    file_name: str
    version: int
    encode: Callable[[V], Any]
    decode: Callable[[Any], V]


class NoteFile(Generic[V]):
    """
    A JSON file that is replaced as a whole and readable by its owner only.

    A fault of it costs only time: everything is found out again. Writing may hang with the disk.

    Args:
        directory: Where the file is; it is made by the first write.
        kind: What is in it.
        place: Where its values hold; see `place_of` in `computing_place.py`.
    """

    def __init__(self, directory: Path, kind: Kind[V], place: str) -> None:
        self._path = directory / kind.file_name
        self._kind = kind
        self._place = place

    def read(self) -> dict[str, V]:
        """Return values by name; nothing if the file is missing, damaged, of another version or another place."""
        try:
            content = json.loads(read_small(self._path, _MAX_BYTES))
            if (content["format"], content["place"]) != (self._kind.version, self._place):
                return {}
            models = content["models"]
            if content["digest"] != _digest(json.dumps(models)):
                raise ValueError("not what was written")
            return {name: self._kind.decode(value) for name, value in models.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning("load_notes_read_failed", **self._about(error))
            return {}

    def write(self, known: dict[str, V]) -> None:
        """Replace the content. A failure is logged."""
        models = {name: self._kind.encode(value) for name, value in known.items()}
        noted = {"format": self._kind.version, "place": self._place, "digest": _digest(json.dumps(models))}
        try:
            replace_small(self._path, json.dumps({**noted, "models": models}).encode())
        except OSError as error:
            log.warning("load_notes_write_failed", **self._about(error))

    def _about(self, error: Exception) -> dict[str, str]:
        return {"file": self._path.name, "error": cause(error), "directory": str(self._path.parent)}


def name_of(key: ModelKey, *facts: object) -> str:
    """
    Return a name for what was found out about a model.

    Args:
        key: The model.
        facts: What else it depends on, as JSON can have it.
    """
    return _digest(json.dumps([key.weights, key.adapter, *facts]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
