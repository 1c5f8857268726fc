"""Keeps: what callers asked GetOrLoad to do with models, so that an engine that is started anew does it too. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from mlx_sidecar.v1 import sidecar_pb2 as pb

MOST = 256


class ModelOverrides:
    """Pin, time to live and revision of each model and adapter, as the last callers chose them; the latest 256."""

    def __init__(self) -> None:
        self._asked: OrderedDict[tuple[str, str], pb.GetOrLoadRequest] = OrderedDict()

    def note(self, request: pb.GetOrLoadRequest) -> None:
        """Remember what a call that went well asked for; what it left unset stays as it was."""
        key = (request.model, request.adapter)
        kept = self._asked.setdefault(key, pb.GetOrLoadRequest(model=request.model, adapter=request.adapter))
        kept.revision = request.revision
        if request.HasField("pin"):
            kept.pin = request.pin
        if request.HasField("ttl"):
            kept.ttl.CopyFrom(request.ttl)
        self._asked.move_to_end(key)
        if len(self._asked) > MOST:
            self._asked.popitem(last=False)

    def dropped(self, request: pb.InvalidateRequest, names: Iterable[str]) -> None:
        """
        Forget pins and times to live of models whose weights were dropped; their revisions stay.

        Args:
            request: What was to be dropped.
            names: Every name of the models that were.
        """
        gone = {request.model.model, *names} if request.model.weights else set()
        for (name, _), kept in self._asked.items():
            if request.all.weights or name in gone:
                kept.ClearField("pin")
                kept.ClearField("ttl")

    def requests(self) -> list[pb.GetOrLoadRequest]:
        """Return one request for each model and adapter, the latest last."""
        return list(self._asked.values())
