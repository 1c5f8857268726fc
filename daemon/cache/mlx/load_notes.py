"""
What loads found out about models, kept in files for later runs of the daemon.

To find it out takes most of a load: some fifty passes of self-tests, and passes that are measured. The results follow
from the model's content and from the place where it computes. A place is another one after any change to what computes:
the device, the processor, the system, MLX, mlx-lm, this project's code, the BLAS library, settings. A result of another
place counts for nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
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
_MAX_BYTES = 1_000_000

_CODE = ("mlx", "mlx_lm", "daemon")
_CODE_SUFFIXES = (".py", ".so", ".dylib", ".metallib")
_SETTINGS = ("MLX_", "OMP_", "OPENBLAS_", "VECLIB_")
_SYSTEM_FILES = ("/System/Library/CoreServices/SystemVersion.plist", "/proc/driver/nvidia/version")
"""They name the build of macOS, with its Metal and Accelerate, and the driver of a CUDA card."""

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
        place: Where its values hold; see `place_of`.
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
            if content["digest"] != digest(json.dumps(models)):
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
        noted = {"format": self._kind.version, "place": self._place, "digest": digest(json.dumps(models))}
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
    return digest(json.dumps([key.weights, key.adapter, *facts]))


def place_of(device: str) -> str:
    """
    Return what results depend on beside the model, as a digest. Takes some ten milliseconds.

    Args:
        device: The device that MLX computes on.
    """
    system = os.uname()
    settings = sorted(
        (name, value)
        for name, value in os.environ.items()
        if name.startswith(_SETTINGS) and not name.startswith("MLX_SIDECAR_")
    )
    machine = [device, system.sysname, system.release, system.version, system.machine, os.cpu_count(), *_processor()]
    software = [sys.version, version("mlx"), version("mlx-lm"), [*_code()], [*_libraries()], [*_builds()]]
    return digest(json.dumps([machine, software, settings]))


def digest(text: str) -> str:
    """Return the SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def _processor() -> Iterator[str]:
    """Name the processor where the system does not tell it by the machine: its instructions decide on kernels."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        yield from sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})


def _code() -> Iterator[object]:
    """Stamp the files that compute: a package that is edited in place keeps its version."""
    for package in _CODE:
        spec = find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            files = (file for file in Path(root).rglob("*") if file.suffix in _CODE_SUFFIXES)
            yield from sorted(map(_stamp, files))


def _libraries() -> Iterator[object]:
    """Stamp the BLAS libraries that this process has loaded; on macOS they are a part of the system."""
    with suppress(OSError):
        maps = Path("/proc/self/maps").read_text(errors="replace").splitlines()
        paths = {line.split(maxsplit=5)[-1] for line in maps if "blas" in line or "lapack" in line}
        yield from sorted(_stamp(Path(path)) for path in paths)


def _builds() -> Iterator[str]:
    for name in _SYSTEM_FILES:
        with suppress(OSError):
            yield Path(name).read_text(errors="replace")


def _stamp(file: Path) -> tuple[str, int, int]:
    try:
        found = file.stat()
    except OSError:  # it was just removed, or a library was replaced: its old path says so
        return str(file), 0, 0
    return str(file), found.st_size, found.st_mtime_ns
