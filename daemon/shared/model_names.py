"""Names of models and adapters: one spelling for each, as far as that can be told without looking at a disk. Pure."""

from __future__ import annotations

from mlx_sidecar.v1 import sidecar_pb2 as pb


def plain(name: str) -> str:
    """
    Return a name without what makes no difference in a path: `//`, `/./` and a slash at the end.

    A `..` stays: behind a symbolic link it leads elsewhere, which only the file system knows. Hub ids stay as they are.
    """
    if not name.startswith("/"):
        return name
    return "/" + "/".join(part for part in name.split("/") if part not in ("", "."))


def climbs(name: str) -> bool:
    """Tell whether a name is a path with `..` in it, whose plain spelling has to be asked of the file system."""
    return name.startswith("/") and ".." in name.split("/")


def make_plain(request: pb.GetOrLoadRequest | pb.GenerateRequest | pb.InvalidateRequest) -> None:
    """Give every name in a request its plain spelling."""
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
