"""The ways of calls: models of the group to the engine of all ranks, all others to the engine of this machine."""

from __future__ import annotations

from collections.abc import Mapping

from daemon.server.supervision.call_router import CallRouter
from daemon.server.supervision.engine_call import EngineCall
from daemon.shared.errors import invalid
from daemon.shared.model_names import plain
from daemon.v1 import ipc_pb2 as ipc


class Routes:
    """
    Opens each call at the engine that runs its model.

    Args:
        local: The way to the engine of this machine.
        group: The way to the engine of the group; None without one.
        models: How the models of the group are cut, by name.
        aliases: The models that short names stand for.
    """

    def __init__(
        self,
        local: CallRouter,
        group: CallRouter | None = None,
        models: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self._local = local
        self._group = group
        names = aliases or {}
        self._models = {plain(names.get(name, name)) for name, how in (models or {}).items() if how != "none"}

    def open(self, command: ipc.Command) -> EngineCall:
        """
        Open a call; see `CallRouter.open`.

        Raises:
            SidecarError: INVALID_ARGUMENT at `adapter` if the group would have to cut one; as `CallRouter.open` does.
        """
        kind = command.WhichOneof("body")
        assert kind is not None
        body = getattr(command, kind)
        target = body if kind != "invalidate" else getattr(body, body.WhichOneof("target"))
        if self._group is None or getattr(target, "model", "") not in self._models:
            return self._local.open(command)
        if getattr(body, "adapter", ""):
            raise invalid("adapter", "cannot be used with a model of the group; merge it into the model")
        return self._group.open(command)

    def of(self, command: ipc.Command) -> list[EngineCall]:
        """Open an Invalidate call wherever it has something to drop."""
        calls = [self.open(command)]
        if self._group is not None and command.invalidate.HasField("all"):
            copy = ipc.Command()
            copy.CopyFrom(command)
            calls.append(self._group.open(copy))
        return calls
