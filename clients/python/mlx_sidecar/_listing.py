"""Results of ListModels: the models of a machine, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelAbilities:
    """
    What a model can do, as far as its files say.

    Attributes:
        chat: It has a chat template.
        tools: Its chat template reads tools.
        reasoning: Its chat template knows of reasoning.
        embeddings: It says how its hidden states are pooled, so that `embed` takes it without `pooling`.
    """

    chat: bool
    tools: bool
    reasoning: bool
    embeddings: bool


@dataclass(frozen=True, slots=True)
class ListedModel:
    """
    A model of this machine.

    Attributes:
        model: The name to ask for it by.
        aliases: Short names from the configuration that stand for it.
        place: "hub_cache", "root" or "embedded"; "unspecified" if it is in memory alone.
        loaded: Whether its weights are in memory.
        complete: Whether all its weights are on the disk.
        size_bytes: Bytes of its weights.
        disk_bytes: Bytes of all its files.
        fits: Whether its weights fit into the memory that models may have.
        architecture: mlx-lm architecture; empty if it has no readable config.json.
        context_length: Longest prompt plus completion, in tokens; 0 when the model does not say.
        quantization_bits: Bits of a quantised weight; 0 if the weights are not quantised.
        revision: Its commit on the Hub; empty for directories and "embedded".
        can: What it can do.
        problem: Why it cannot be loaded; empty if nothing is known against it.
        path: Its directory.
        last_used_unix_seconds: Seconds since 1970 of the last access to its files; 0 if that is not known.
    """

    model: str
    aliases: tuple[str, ...]
    place: str
    loaded: bool
    complete: bool
    size_bytes: int
    disk_bytes: int
    fits: bool
    architecture: str
    context_length: int
    quantization_bits: int
    revision: str
    can: ModelAbilities
    problem: str
    path: str
    last_used_unix_seconds: int


@dataclass(frozen=True, slots=True)
class UnreadPlace:
    """
    A place that could not be read.

    Attributes:
        path: The directory.
        reason: Why.
    """

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelList:
    """
    The models of this machine.

    Attributes:
        models: Models, sorted by name.
        unread: Places that could not be read in time, or at all.
        fits_bytes: Most bytes of weights that one model may have; 0 if that is not known.
        truncated: Whether there were more models than are listed.
        aliases: The short names of the configuration, and the model that each stands for.
    """

    models: tuple[ListedModel, ...]
    unread: tuple[UnreadPlace, ...]
    fits_bytes: int
    truncated: bool
    aliases: Mapping[str, str]
