"""Normalises names of models and adapters, as far as that is possible without a look at the disk. Pure."""

from __future__ import annotations

from mlx_sidecar.v1 import sidecar_pb2 as pb


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


def make_plain(request: pb.GetOrLoadRequest | pb.GenerateRequest | pb.InvalidateRequest) -> None:
    """Replace each name in a request by its plain spelling."""
    if isinstance(request, pb.InvalidateRequest):
        kind = request.WhichOneof("target")
        if kind == "model":
            request.model.model = plain(request.model.model)
        elif kind == "prefix":
            request.prefix.model = plain(request.prefix.model)
        return
    request.model, request.adapter = plain(request.model), plain(request.adapter)
    if isinstance(request, pb.GenerateRequest) and request.draft_model:
        request.draft_model = plain(request.draft_model)
