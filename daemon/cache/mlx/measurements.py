"""
What forward passes of models take, measured at a first load and kept in a file for later runs of the daemon.

To measure it is most of what a load of a small model computes. The figures follow from the model's content, from how
its KV is kept, and from the place: MLX, mlx-lm, the device, the system and MLX's settings. A figure of another place
counts for nothing.

Results of self-tests are not kept in the file (`self_tests.py` says why).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import structlog

from daemon.cache.background_save import BackgroundSave
from daemon.cache.callbacks import ignore
from daemon.cache.identity import ModelKey
from daemon.cache.lru_dict import LruDict
from daemon.kv.mlx.layout import Layout
from daemon.kv.mlx.workspace import Node, Workspace
from daemon.shared.log_fields import cause
from daemon.shared.small_file import read_small, replace_small

FILE_NAME = "measurements.json"
FORMAT = 3
"""Goes up whenever `workspace.py` measures something else, or means something else by the same figures."""

MOST_MODELS = 256
_MAX_BYTES = 1_000_000

log = structlog.get_logger()


class Notes(Protocol):
    """A store of figures that outlives the process."""

    def read(self) -> dict[str, Workspace]:
        """Return the figures by name; nothing if they cannot be read."""

    def write(self, known: dict[str, Workspace]) -> None:
        """Replace all of them. A failure is logged; it costs only time later."""


class Measurements:
    """
    The workspaces of models that were measured. Belongs to the MLX thread, which no disk holds up.

    Args:
        notes: Keeps them for the next process; None keeps them in memory only.
    """

    def __init__(self, notes: Notes | None = None) -> None:
        self._known = LruDict[str, Workspace](MOST_MODELS, notes.read().items() if notes else ())
        self._lock = threading.Lock()
        self._save = BackgroundSave(lambda: notes.write(self._noted()), wait=0.0).request if notes else ignore

    def find(self, key: ModelKey, layout: Layout) -> Workspace | None:
        """Return the workspace of a model; None if it was not measured, or in another place."""
        with self._lock:
            return self._known.get(_name(key, layout))

    def keep(self, key: ModelKey, layout: Layout, work: Workspace) -> None:
        """Keep the workspace of a model that was measured."""
        with self._lock:
            self._known.put(_name(key, layout), work)
        self._save()

    def _noted(self) -> dict[str, Workspace]:
        with self._lock:
            return self._known.copy()


class MeasurementFile:
    """
    A JSON file that is replaced as a whole and readable by its owner only.

    A fault of it costs only time: the passes are measured again. Writing may hang with the disk.

    Args:
        path: The file; its directory is made by the first write.
        place: Where its figures hold; see `place_of`.
    """

    def __init__(self, path: Path, place: str) -> None:
        self._path = path
        self._place = place

    def read(self) -> dict[str, Workspace]:
        """Return workspaces by name; nothing if the file is missing, damaged, of another format or another place."""
        try:
            content = json.loads(read_small(self._path, _MAX_BYTES))
            if (content["format"], content["place"]) != (FORMAT, self._place):
                return {}
            models = content["models"]
            if content["digest"] != _digest(json.dumps(models)):
                raise ValueError("not what was written")
            return {name: _workspace(values) for name, values in models.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning("measurements_read_failed", error=cause(error), directory=str(self._path.parent))
            return {}

    def write(self, known: dict[str, Workspace]) -> None:
        """Replace the content by some workspaces. A failure is logged."""
        models = {
            name: {"fixed": work.fixed, "scores": work.scores, "single": work.single} for name, work in known.items()
        }
        digest = _digest(json.dumps(models))
        content = {"format": FORMAT, "place": self._place, "digest": digest, "models": models}
        try:
            replace_small(self._path, json.dumps(content).encode())
        except OSError as error:
            log.warning("measurements_write_failed", error=cause(error), directory=str(self._path.parent))


def place_of(device: str) -> str:
    """
    Return what figures depend on beside the model, as a digest.

    Args:
        device: The device that MLX computes on.
    """
    system = os.uname()  # kernels for a GPU come from the system and its driver
    settings = sorted(
        (name, value)
        for name, value in os.environ.items()
        if name.startswith("MLX_") and not name.startswith("MLX_SIDECAR_")
    )
    machine = [device, system.sysname, system.release, system.version, system.machine]
    return _digest(json.dumps([version("mlx"), version("mlx-lm"), machine, settings]))


def _name(key: ModelKey, layout: Layout) -> str:
    """Return the name of a model with a layout: without reuse, less of it is measured."""
    return _digest(json.dumps([key.weights, key.adapter, layout.signature, layout.reusable]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _workspace(values: Any) -> Workspace:
    single = float(values["single"])
    if not (single >= 0 and math.isfinite(single)):
        raise ValueError("no bytes")
    return Workspace(_nodes(values["fixed"]), _nodes(values["scores"]), single)


def _nodes(values: Any) -> tuple[Node, ...]:
    nodes = tuple((int(at), float(value)) for at, value in values)
    rising = all(left < right for (left, _), (right, _) in pairwise(nodes))
    if not nodes or not rising or not all(value >= 0 and math.isfinite(value) for _, value in nodes):
        raise ValueError("no nodes")
    return nodes
