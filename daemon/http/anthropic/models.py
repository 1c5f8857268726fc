"""Anthropic's list of models, by the page, and its count of tokens. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel

from daemon.http.errors import Problem, invalid, page_limit
from mlx_sidecar import ListedModel, ModelList

UNKNOWN_TIME = "1970-01-01T00:00:00Z"
"""Anthropic's time of release of a model for which it is not known."""
DEFAULT_PAGE = 20
LARGEST_PAGE = 1000


class Count(BaseModel):
    """The tokens of a prompt."""

    input_tokens: int


class Model(BaseModel):
    """A model."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str = UNKNOWN_TIME
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int | None
    max_tokens: int | None


class Models(BaseModel):
    """A page of models."""

    data: list[Model]
    has_more: bool
    first_id: str | None
    last_id: str | None


def page(listed: ModelList, query: Mapping[str, str]) -> Models:
    """
    Return a page of the models that can hold a conversation: aliases first, then the names that they stand for.

    Args:
        listed: The models of this machine.
        query: `limit`, `after_id` and `before_id`; others have no effect.

    Raises:
        Problem: If one of these is none.
    """
    found = _models(listed)
    ids = [model.id for model in found]
    limit = page_limit(query.get("limit", str(DEFAULT_PAGE)), LARGEST_PAGE)
    first, end = 0, len(found)
    if "after_id" in query:
        first = _position(ids, "after_id", query["after_id"]) + 1
    if "before_id" in query:
        end = _position(ids, "before_id", query["before_id"])
        first = max(first, end - limit)
    shown = found[first:end][:limit]
    more = first > 0 if "before_id" in query else first + len(shown) < end
    ends = (shown[0].id, shown[-1].id) if shown else (None, None)
    return Models(data=shown, has_more=more, first_id=ends[0], last_id=ends[1])


def find(listed: ModelList, name: str) -> Model:
    """
    Return a model of the list.

    Raises:
        Problem: If it is not on the list.
    """
    for model in _models(listed):
        if model.id == name:
            return model
    raise Problem(404, "there is no such model; see: mlx-sidecar ls", code="model_not_found", field="model")


def _models(listed: ModelList) -> list[Model]:
    usable = [one for one in listed.models if one.can.chat and one.complete and not one.problem]
    aliases = [_model(alias, one) for one in usable for alias in one.aliases]
    return aliases + [_model(one.model, one) for one in usable]


def _model(name: str, one: ListedModel) -> Model:
    context = one.context_length or None
    return Model(id=name, display_name=name, max_input_tokens=context, max_tokens=context)


def _position(ids: list[str], field: str, name: str) -> int:
    if name not in ids:
        raise invalid(field, "is no model of the list")
    return ids.index(name)
