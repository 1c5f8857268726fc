"""OpenAI's list of models: all that requests can name, or one of them. Pure."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from daemon.http.errors import Problem
from mlx_sidecar import ModelList

OWNER = "mlx-sidecar"
"""Owner of models with a name without an organisation."""


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


def listing(found: ModelList) -> Models:
    """Return the models of this machine that can be used, and their short names."""
    usable = [one for one in found.models if one.complete and not one.problem]
    data = [_model(one.model, one.last_used_unix_seconds) for one in usable]
    data += [_model(alias, one.last_used_unix_seconds) for one in usable for alias in one.aliases]
    return Models(object="list", data=data)


def find(found: ModelList, name: str) -> Model:
    """
    Return a model of the list.

    Raises:
        Problem: If it is not on the list.
    """
    for model in listing(found).data:
        if model.id == name:
            return model
    raise Problem(404, "there is no such model on this machine", code="model_not_found", field="model")


def _model(name: str, created: int) -> Model:
    owner = name.partition("/")[0]
    owned = owner if owner and owner != name else OWNER
    return Model(id=name, object="model", created=created, owned_by=owned)
