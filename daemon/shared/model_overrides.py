"""
Keeps the pin, time to live (TTL), revision and context length that GetOrLoad calls chose, beyond the life of an engine.

Both processes hold them and apply the same commands, with the same effect:

    load         sets what the request sets, and the revision; leaves the rest as it was
    recall       the same: a `load` of earlier callers, sent to a new engine
    invalidate   with `weights`: clears all of its models but their revisions

The parent applies each command that an engine answered, and at an engine's start sends all of it as `recall` commands.
The engine applies those, and the invalidations that come before the model's next load. That load is `done` with them:
from then on the model cache holds pin and TTL, as long as the model stays in memory. The context length stays here: a
model that was evicted and loaded again has the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from daemon.shared.durations import seconds
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb

MOST_CHOICES = 256
"""Pairs of model and adapter that are kept; the pair that was chosen for longest ago is forgotten first."""


class ModelOverrides:
    """The choices of the last callers for each model and adapter. Pure."""

    def __init__(self) -> None:
        self._chosen: OrderedDict[tuple[str, str], pb.GetOrLoadRequest] = OrderedDict()
        """By model and adapter; of a request only the names and what is chosen are set."""

    def apply(self, command: ipc.Command, names: Iterable[str] = ()) -> None:
        """
        Follow a command that went well. Commands of other kinds change nothing.

        Args:
            command: The command.
            names: Names by which the engine's answer calls the models; for a load the one under which it was loaded.
        """
        kind = command.WhichOneof("body")
        if kind == "load":
            self._choose(command.load, next(iter(names), ""))
        elif kind == "recall":
            self._choose(command.recall)
        elif kind == "invalidate" and not command.invalidate.dry_run:
            self._clear(command.invalidate, names)

    def pin(self, model: str, adapter: str) -> bool | None:
        """Return whether a model is to be pinned (True) or unpinned (False); None for neither."""
        chosen = self._chosen.get((model, adapter))
        return chosen.pin if chosen is not None and chosen.HasField("pin") else None

    def ttl(self, model: str, adapter: str) -> float | None:
        """Return the time to live of a model in seconds; None for the configured one."""
        chosen = self._chosen.get((model, adapter))
        return seconds(chosen.ttl) if chosen is not None and chosen.HasField("ttl") else None

    def context_length(self, model: str, adapter: str) -> int | None:
        """Return the context length of a model in tokens; None for that of its configuration."""
        chosen = self._chosen.get((model, adapter))
        return chosen.context_length if chosen is not None and chosen.HasField("context_length") else None

    def context_lengths(self) -> dict[tuple[str, str], int]:
        """Return the context lengths that were chosen, in tokens, by model and adapter."""
        return {
            pair: chosen.context_length for pair, chosen in self._chosen.items() if chosen.HasField("context_length")
        }

    def choose_pin(self, model: str, adapter: str) -> None:
        """Pin a model at its next load."""
        self._choose(pb.GetOrLoadRequest(model=model, adapter=adapter, pin=True))

    def choose_context_length(self, model: str, adapter: str, tokens: int) -> None:
        """Set the context length of a model, in tokens."""
        self._choose(pb.GetOrLoadRequest(model=model, adapter=adapter, context_length=tokens))

    def done(self, model: str, adapter: str) -> None:
        """Forget pin and TTL of a model, because its entry in the model cache holds them now. Harmless twice."""
        if self.context_length(model, adapter) is None:
            self._chosen.pop((model, adapter), None)
        elif chosen := self._chosen.get((model, adapter)):
            chosen.ClearField("pin")
            chosen.ClearField("ttl")

    def recalls(self) -> list[ipc.Command]:
        """Return the commands that bring an empty instance to this state, the latest choice last."""
        return [ipc.Command(recall=request) for request in self._chosen.values()]

    def _choose(self, request: pb.GetOrLoadRequest, name: str = "") -> None:
        model, adapter = name or request.model, request.adapter
        chosen = self._chosen.setdefault((model, adapter), pb.GetOrLoadRequest(model=model, adapter=adapter))
        chosen.revision = request.revision
        if request.HasField("pin"):
            chosen.pin = request.pin
        if request.HasField("ttl"):
            chosen.ttl.CopyFrom(request.ttl)
        if request.HasField("context_length"):
            chosen.context_length = request.context_length
        self._chosen.move_to_end((model, adapter))
        if len(self._chosen) > MOST_CHOICES:
            self._chosen.popitem(last=False)

    def _clear(self, request: pb.InvalidateRequest, names: Iterable[str]) -> None:
        dropped = {request.model.model, *names} if request.model.weights else set()
        for (model, _), chosen in self._chosen.items():
            if request.all.weights or model in dropped:
                chosen.ClearField("pin")
                chosen.ClearField("ttl")
                chosen.ClearField("context_length")
