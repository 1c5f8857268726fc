"""Normalises names of models and adapters, as far as that is possible without a look at the disk. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from mlx_sidecar.v1 import sidecar_pb2 as pb

Named = pb.GetOrLoadRequest | pb.GenerateRequest | pb.InvalidateRequest | pb.TokenizeRequest | pb.EmbedRequest
"""A request that names a model."""


def plain(name: str) -> str:
    """
    Return a name in its plain spelling: a path without `//`, `/./` and a slash at its end.

    A `..` stays: behind a symbolic link it leads elsewhere, and only the file system knows where. Hub ids stay as they
    are.
    """
    if not name.startswith("/"):
        return name
    return "/" + "/".join(part for part in name.split("/") if part not in ("", "."))


def climbs(name: str) -> bool:
    """Return whether a name is a path with `..`. Only the file system can tell where that leads."""
    return name.startswith("/") and ".." in name.split("/")


def make_plain(request: Named, aliases: Mapping[str, str]) -> None:
    """
    Replace each name in a request: a short name by the model that it stands for, any other by its plain spelling.

    Args:
        request: The request; it is changed.
        aliases: The models that short names stand for.
    """

    def named(name: str) -> str:
        return plain(aliases.get(name, name))

    if isinstance(request, pb.InvalidateRequest):
        kind = request.WhichOneof("target")
        if kind == "model":
            request.model.model = named(request.model.model)
        elif kind == "prefix":
            request.prefix.model = named(request.prefix.model)
        return
    request.model = named(request.model)
    if not isinstance(request, pb.TokenizeRequest):
        request.adapter = plain(request.adapter)
    if isinstance(request, pb.GenerateRequest) and request.draft_model:
        request.draft_model = named(request.draft_model)
