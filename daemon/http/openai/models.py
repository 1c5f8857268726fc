"""OpenAI's models: the list of what can be named, and one of it. Pure."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from daemon.http.errors import Problem
from mlx_sidecar import Stats

EMBEDDED = "embedded"
"""Name of the model that is part of the daemon's package."""
OWNER = "mlx-sidecar"
"""Owner of models whose name has no organisation."""


class Model(BaseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class Models(BaseModel):
    """A list of models."""

    object: Literal["list"] = "list"
    data: list[Model]


def listing(stats: Stats) -> Models:
    """Return the models in memory, and the embedded one."""
    names = dict.fromkeys([*(one.info.model for one in stats.models), EMBEDDED])
    return Models(object="list", data=[_model(name) for name in names])


def find(stats: Stats, name: str) -> Model:
    """
    Return a model of the list.

    Raises:
        Problem: If it is not on the list.
    """
    for model in listing(stats).data:
        if model.id == name:
            return model
    raise Problem(404, "there is no such model in memory", code="model_not_found", field="model")


def _model(name: str) -> Model:
    owner = name.partition("/")[0]
    owned = owner if owner and owner != name else OWNER
    return Model(id=name, object="model", created=0, owned_by=owned)
