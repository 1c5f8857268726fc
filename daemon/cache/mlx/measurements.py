"""The memory that passes of models take, as a file keeps it from one run of the daemon to the next."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from daemon.cache.identity import ModelKey
from daemon.cache.mlx.load_notes import Kind, LoadNotes, name_of
from daemon.kv.mlx.layout import Layout
from daemon.kv.mlx.workspace import Node, Workspace


class Measurements:
    """
    The workspaces of models that were measured. Belongs to the MLX thread.

    Args:
        notes: Keeps them; for this process only if None.
    """

    def __init__(self, notes: LoadNotes[Workspace] | None = None) -> None:
        self._notes = notes or LoadNotes[Workspace]()

    def find(self, key: ModelKey, layout: Layout) -> Workspace | None:
        """Return the workspace of a model; None if it was not measured, or in another place."""
        return self._notes.find(_name(key, layout))

    def keep(self, key: ModelKey, layout: Layout, work: Workspace) -> None:
        """Keep the workspace of a model that was measured."""
        self._notes.keep(_name(key, layout), work)


def _name(key: ModelKey, layout: Layout) -> str:
    """Return the name of a model with a layout: without reuse, less of it is measured."""
    return name_of(key, layout.signature, layout.reusable)


def _encoded(work: Workspace) -> Any:
    return {"fixed": work.fixed, "scores": work.scores, "single": work.single}


def _decoded(values: Any) -> Workspace:
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


MEASUREMENTS = Kind("measurements.json", 3, _encoded, _decoded)
"""The version goes up whenever `workspace.py` measures something else, or means something else by the same figures."""
