"""
The ways of calls: models of the group to the engine of all ranks, all others to the engine of this machine.

An Invalidate goes wherever something of its model may be. An engine may have prefixes of a model that it does not run:
on its disk, from when it ran it, or in memory, of a draft model.

Whether a model fits this machine, only the engine can tell. So a call for a model of the kind `auto` begins at this
machine's engine. If that says MODEL_EXCEEDS_BUDGET, the call goes on at the group, and later calls begin there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, closing
from enum import Enum, auto
from typing import Any, Protocol

from daemon.server.supervision.call_router import CallRouter
from daemon.server.supervision.engine_call import EngineCall
from daemon.shared.errors import Reason, SidecarError, invalid
from daemon.shared.group_values import PIPELINE, TENSOR
from daemon.shared.model_names import plain
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb


class _Home(Enum):
    """Where a model runs."""

    HERE = auto()
    """At the engine of this machine."""
    HERE_FIRST = auto()
    """There, unless it turns out to be too large; from then on at the group."""
    GROUP = auto()
    """At the engine of all ranks, however it is cut."""


_HOMES = {"none": _Home.HERE, "auto": _Home.HERE_FIRST, TENSOR: _Home.GROUP, PIPELINE: _Home.GROUP}
"""By the value of `group_models`."""
MOST_DRAFTS = 256
"""Draft models that are remembered of an engine; from then on, any model may have been one."""


class OpenCall(Protocol):
    """A call that was opened, as its handler sees it; see `EngineCall`."""

    on_stall: Callable[[], None]

    def events(self) -> AsyncIterator[ipc.Event]:
        """Iterate over the events until the last one."""

    def fail(self, error: SidecarError) -> None:
        """End the call with an error, unless it is over."""

    def close(self) -> None:
        """Stop reading."""


class Routes:
    """
    Opens each call at the engine that runs its model.

    Args:
        local: The way to the engine of this machine.
        group: The way to the engine of the group; None without one.
        models: How the models of the group are cut, by name.
        aliases: The models that short names stand for.
        note: Called when prefixes are invalidated that the disks of the group may have, and no group can be asked. It
            raises OSError if that cannot be noted. None if there are no such disks.
        stored: Tells whether the disk of this machine has prefixes of a model: those of the group if the flag is set,
            else those of this machine's engine.
    """

    def __init__(
        self,
        local: CallRouter,
        group: CallRouter | None = None,
        models: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
        note: Callable[[], Awaitable[None]] | None = None,
        stored: Callable[[str, bool], Awaitable[bool]] | None = None,
    ) -> None:
        self._note = note
        self._stored = stored
        self._drafts: tuple[set[str], set[str]] = (set(), set())
        """Draft models of the requests that this machine's engine has had, and of those of the group."""
        self._local = local
        self._group = group
        names = aliases or {}
        self._homes = {plain(names.get(name, name)): _HOMES[how] for name, how in (models or {}).items()}

    def open(self, command: ipc.Command) -> OpenCall:
        """
        Open a call; see `CallRouter.open`.

        Raises:
            SidecarError: INVALID_ARGUMENT at `adapter` if the group would have to cut one; as `CallRouter.open` does.
        """
        model = _model(command)
        home = self._home(model)
        if self._group is not None and home is not _Home.GROUP:
            self._note_draft(command, there=False)
        if home is _Home.HERE_FIRST:
            copy = ipc.Command()
            copy.CopyFrom(command)
            return _FirstHere(self._local.open(command), lambda: self._at_group(copy, model))
        return self._local.open(command) if home is _Home.HERE else self._at_group(command, model)

    async def everywhere(self, command: ipc.Command) -> list[OpenCall]:
        """
        Open an Invalidate call at each engine that may have something to drop.

        A group that is away, or that is not configured, has nothing in memory; what its disks have is noted to be
        dropped. That comes first: nothing is dropped if it fails.

        Raises:
            OSError: If that cannot be noted.
            SidecarError: As `CallRouter.open` does.
        """
        runs_here = self._home(_model(command)) is not _Home.GROUP
        here, there = await self._shares(command, runs_here=runs_here)
        noted = there is not None and runs_here and self._away and _drops_prefixes(command.invalidate)
        if noted and self._note is not None:
            await self._note()
        with ExitStack() as opened:
            calls: list[OpenCall] = []
            if here is not None:
                calls.append(opened.enter_context(closing(self._local.open(here))))
            asked = None if runs_here and self._away else self._group  # it may be back since it was noted
            if asked is not None and there is not None:
                calls.append(opened.enter_context(closing(asked.open(there))))
            opened.pop_all()
        return calls

    async def _shares(self, command: ipc.Command, *, runs_here: bool) -> tuple[ipc.Command | None, ipc.Command | None]:
        """Return what this machine's engine and the group are asked to drop; None for nothing."""
        request, model = command.invalidate, _model(command)
        runs_there = request.HasField("all") or self._homes.get(model, _Home.HERE) is not _Home.HERE
        whole, left = ipc.Command(invalidate=request), ipc.Command(invalidate=_of_all(request, model))
        here = whole if runs_here else left if await self._may_be_left(left.invalidate, there=False) else None
        if runs_there:
            return here, ipc.Command(invalidate=request)  # each router numbers its own
        return here, left if await self._may_be_left(left.invalidate, there=True) else None

    async def _may_be_left(self, request: pb.InvalidateRequest, *, there: bool) -> bool:
        """Return whether the group, or this machine's engine, may have something of a model that it does not run."""
        if self._group is None or self._stored is None:
            return False
        model, drafts = request.model, self._drafts[there]
        guessed = model.model in drafts or len(drafts) == MOST_DRAFTS
        return guessed or (model.prefixes and await self._stored(model.model, there))

    def _home(self, model: str) -> _Home:
        """Return where a model runs now: without a group, each of them here."""
        return _Home.HERE if self._group is None else self._homes.get(model, _Home.HERE)

    def _note_draft(self, command: ipc.Command, *, there: bool) -> None:
        """Remember the draft model of a request; callers choose the names, so that there is a bound."""
        if (name := _draft(command)) and len(self._drafts[there]) < MOST_DRAFTS:
            self._drafts[there].add(name)

    @property
    def _away(self) -> bool:
        """Whether there is no group that could be asked, now or shortly."""
        return self._group is None or bool(self._group.problem)

    def _at_group(self, command: ipc.Command, model: str) -> EngineCall:
        assert self._group is not None
        self._homes[model] = _Home.GROUP
        self._note_draft(command, there=True)
        if getattr(_body(command), "adapter", ""):
            raise invalid("adapter", "cannot be used with a model of the group; merge it into the model")
        return self._group.open(command)


class _FirstHere:
    """
    A call at this machine's engine that goes on at the group if the model is too large here.

    Args:
        call: The call here.
        elsewhere: Opens it at the group.
    """

    def __init__(self, call: EngineCall, elsewhere: Callable[[], EngineCall]) -> None:
        self._call = call
        self._elsewhere = elsewhere
        self.on_stall: Callable[[], None] = _nothing

    async def events(self) -> AsyncIterator[ipc.Event]:
        """Iterate over the events until the last one, wherever they come from."""
        self._call.on_stall = self.on_stall
        try:
            async for event in self._call.events():
                yield event
            return
        except SidecarError as error:
            if error.reason is not Reason.MODEL_EXCEEDS_BUDGET:
                raise
        self._call.close()
        self._call = self._elsewhere()
        self._call.on_stall = self.on_stall
        async for event in self._call.events():
            yield event

    def fail(self, error: SidecarError) -> None:
        """End the call with an error, unless it is over."""
        self._call.fail(error)

    def close(self) -> None:
        """Stop reading."""
        self._call.close()


def _nothing() -> None:
    """Do nothing."""


def _body(command: ipc.Command) -> Any:
    kind = command.WhichOneof("body")
    assert kind is not None
    return getattr(command, kind)


def _model(command: ipc.Command) -> str:
    """Return the model that a command names; empty if it names none."""
    target = _target(command.invalidate) if command.HasField("invalidate") else _body(command)
    return str(getattr(target, "model", ""))


def _draft(command: ipc.Command) -> str:
    """Return the draft model that a command names; empty if it names none."""
    return str(getattr(_body(command), "draft_model", ""))


def _drops_prefixes(request: pb.InvalidateRequest) -> bool:
    """Return whether an Invalidate call drops prefixes: that of a prefix always does."""
    return not request.dry_run and bool(getattr(_target(request), "prefixes", True))


def _of_all(request: pb.InvalidateRequest, model: str) -> pb.InvalidateRequest:
    """Return the request for all prefixes of a model, if it is for one: its files, which tell tokens, may be gone."""
    if not request.HasField("prefix"):
        return request
    return pb.InvalidateRequest(model=pb.ModelTarget(model=model, prefixes=True), dry_run=request.dry_run)


def _target(request: pb.InvalidateRequest) -> Any:
    kind = request.WhichOneof("target")
    assert kind is not None
    return getattr(request, kind)
