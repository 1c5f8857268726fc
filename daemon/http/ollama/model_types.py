"""Ollama's models: the types of requests about them, and of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, Field

from daemon.http.parameters import Parameters, Refusal


class Named(Parameters):
    """What requests about a model have."""

    model: str | None = Field(None, description="short name, Hub id, absolute directory, or `embedded`")
    name: str | None = Field(None, description="the older name of `model`")


class ShowRequest(Named):
    """The body of `POST /api/show`."""

    harmless: ClassVar[Mapping[str, str]] = {"verbose": "there are no long tables"}


class PullRequest(Named):
    """The body of `POST /api/pull`."""

    stream: bool | None = Field(None, description="unless false, the progress comes, a JSON object a line")

    refused: ClassVar[Mapping[str, Refusal]] = {
        "insecure": Refusal("models come from the Hub over HTTPS", (False,)),
        "username": Refusal("the Hub's token is the daemon's own", ("",)),
        "password": Refusal("the Hub's token is the daemon's own", ("",)),
    }


class Details(BaseModel):
    """What kind of model it is."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Model(BaseModel):
    """A model of this machine."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Models(BaseModel):
    """The models of this machine."""

    models: list[Model]


class Loaded(BaseModel):
    """A model in memory."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int


class LoadedModels(BaseModel):
    """The models in memory."""

    models: list[Loaded]


class Shown(BaseModel):
    """A model in detail."""

    modelfile: str
    parameters: str
    template: str
    license: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class Version(BaseModel):
    """The version of the API."""

    version: str


class Progress(BaseModel):
    """The progress of a pull."""

    status: str
    digest: str
    total: int
    completed: int
