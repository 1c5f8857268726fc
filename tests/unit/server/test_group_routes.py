"""Calls find the engine that runs their model: this machine's, or that of the group."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable

import pytest

from daemon.cache.callbacks import ignore
from daemon.server.group.routes import MOST_DRAFTS, OpenCall, Routes
from daemon.server.supervision.call_router import CallRouter
from daemon.shared.errors import Reason, SidecarError
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.server.supervised import generate


class Two:
    """Two engines and the routes to them."""

    def __init__(self, *, group: bool = True, **models: str) -> None:
        self.local, self.group = CallRouter(lambda: 0.0), CallRouter(lambda: 0.0)
        self.here: list[ipc.Command] = []
        self.there: list[ipc.Command] = []
        self.local.connect(self.here.append)
        self.group.connect(self.there.append)
        self.notes: list[str] = []
        self.while_noting: Callable[[], None] = ignore
        there = self.group if group else None
        self.stored: set[tuple[str, bool]] = set()
        """Models of which this machine's disk has prefixes, and whether they are of the group."""
        self.routes = Routes(self.local, there, models, {"short": "large"}, self._note, self._stored)

    async def _note(self) -> None:
        assert not self.here, "it comes first"
        self.while_noting()
        self.notes.append("noted")

    async def _stored(self, model: str, by_group: bool) -> bool:
        return (model, by_group) in self.stored


async def read(call: OpenCall) -> list[ipc.Event]:
    """Return all events of a call."""
    return [event async for event in call.events()]


async def test_models_of_the_group_go_to_the_group() -> None:
    """All others, and those that are said not to be cut, stay here."""
    two = Two(large="tensor", small="none")
    for model in ("large", "small", "other"):
        two.routes.open(generate(model))
    assert [command.generate.model for command in two.there] == ["large"]
    assert [command.generate.model for command in two.here] == ["small", "other"]


async def test_short_name_is_that_of_its_model() -> None:
    """Requests come with the model, whatever they were sent with."""
    two = Two(short="tensor")
    two.routes.open(generate("large"))
    assert len(two.there) == 1


async def test_everything_is_dropped_everywhere() -> None:
    """An Invalidate of one model goes where that model is."""
    two = Two(large="tensor")
    await two.routes.everywhere(ipc.Command(invalidate=pb.InvalidateRequest(all=pb.AllTarget(weights=True))))
    assert (len(two.here), len(two.there)) == (1, 1)
    target = pb.ModelTarget(model="large", weights=True)
    await two.routes.everywhere(ipc.Command(invalidate=pb.InvalidateRequest(model=target)))
    assert (len(two.here), len(two.there)) == (1, 2)


@pytest.mark.parametrize(
    ("target", "dry_run", "notes"),
    [
        (pb.AllTarget(prefixes=True), False, ["noted"]),
        (pb.AllTarget(prefixes=True), True, []),
        (pb.AllTarget(weights=True), False, []),
        (pb.ModelTarget(model="large", prefixes=True), False, ["noted"]),
        (pb.PrefixTarget(model="large"), False, ["noted"]),
    ],
)
async def test_everything_is_dropped_without_the_group(
    target: pb.AllTarget | pb.ModelTarget | pb.PrefixTarget, dry_run: bool, notes: list[str]
) -> None:
    """What this machine holds goes. An engine that is away holds nothing; what its disk has goes when it is back."""
    two = Two(large="auto")
    two.group.unavailable("rank 1 does not answer")
    name = type(target).__name__.removesuffix("Target").lower()
    request = pb.InvalidateRequest(dry_run=dry_run, **{name: target})  # type: ignore[arg-type]
    calls = await two.routes.everywhere(ipc.Command(invalidate=request))
    assert (len(calls), len(two.here), len(two.there)) == (1, 1, 0)
    assert two.notes == notes


ALL = ipc.Command(invalidate=pb.InvalidateRequest(all=pb.AllTarget(prefixes=True)))


async def test_disks_of_a_group_that_is_not_configured_are_noted() -> None:
    """They may have anything. An Invalidate of one model is about those of this machine."""
    two = Two(group=False)
    assert len(await two.routes.everywhere(ALL)) == 1
    assert two.notes == ["noted"]
    target = pb.ModelTarget(model="large", prefixes=True)
    await two.routes.everywhere(ipc.Command(invalidate=pb.InvalidateRequest(model=target)))
    assert (len(two.here), two.notes) == (2, ["noted"])


WHOLE = pb.InvalidateRequest(model=pb.ModelTarget(model="moved", prefixes=True))


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        (pb.ModelTarget(model="moved", prefixes=True, weights=True), None),
        (pb.PrefixTarget(model="moved", salt="s"), WHOLE),
    ],
)
@pytest.mark.parametrize("by_group", [True, False])
async def test_prefixes_of_a_model_that_ran_elsewhere_go(
    target: pb.ModelTarget | pb.PrefixTarget, asked: pb.InvalidateRequest | None, by_group: bool
) -> None:
    """It was taken out of the models of the group, or into them; all of its prefixes there are of no more use."""
    two = Two() if by_group else Two(moved="tensor")
    name = type(target).__name__.removesuffix("Target").lower()
    request = pb.InvalidateRequest(**{name: target})  # type: ignore[arg-type]
    runs, ran = (two.here, two.there) if by_group else (two.there, two.here)
    await two.routes.everywhere(ipc.Command(invalidate=request))
    assert (len(runs), len(ran)) == (1, 0)
    two.stored.add(("moved", by_group))
    await two.routes.everywhere(ipc.Command(invalidate=request))
    assert runs[1].invalidate == request
    assert [command.invalidate for command in ran] == [asked or request]


@pytest.mark.parametrize("by_group", [True, False])
async def test_draft_model_is_dropped_where_it_was_used(by_group: bool) -> None:
    """Its weights and prefixes are in the engine that runs the model of the request."""
    two = Two(large="tensor") if by_group else Two(draft="tensor")
    command = generate("large")
    command.generate.draft_model = "draft"
    two.routes.open(command)
    request = pb.InvalidateRequest(model=pb.ModelTarget(model="draft", weights=True))
    await two.routes.everywhere(ipc.Command(invalidate=request))
    assert [each[-1].invalidate for each in (two.here, two.there)] == [request] * 2


@pytest.mark.parametrize("count", [MOST_DRAFTS - 1, MOST_DRAFTS + 1])
async def test_after_very_many_draft_models_any_may_have_been_one(count: int) -> None:
    """Callers choose the names, and none may be missed."""
    two = Two(large="tensor")
    for number in range(count):
        command = generate("large")
        command.generate.draft_model = f"draft {number}"
        two.routes.open(command)
    two.there.clear()
    await two.routes.everywhere(ipc.Command(invalidate=pb.InvalidateRequest(model=pb.ModelTarget(model="other"))))
    assert len(two.there) == (count > MOST_DRAFTS)


async def test_prefixes_that_a_group_has_left_are_noted_while_it_is_away() -> None:
    """It has them on its disks still."""
    two = Two()
    two.group.unavailable("rank 1 does not answer")
    target = pb.ModelTarget(model="moved", prefixes=True)
    await two.routes.everywhere(ipc.Command(invalidate=pb.InvalidateRequest(model=target)))
    assert two.notes == []
    two.stored.add(("moved", True))
    two.here.clear()
    await two.routes.everywhere(ipc.Command(invalidate=pb.InvalidateRequest(model=target)))
    assert (two.notes, len(two.here), len(two.there)) == (["noted"], 1, 0)


async def test_model_of_a_group_that_is_away_fails_whatever_is_here() -> None:
    """The caller hears why: its prefixes on other machines stay."""
    two = Two(moved="tensor")
    two.stored.add(("moved", False))
    two.group.unavailable("rank 1 does not answer")
    with pytest.raises(SidecarError, match="rank 1 does not answer"):
        await two.routes.everywhere(ipc.Command(invalidate=WHOLE))
    assert two.notes == []


async def test_group_that_came_back_meanwhile_is_asked() -> None:
    """Its engine has looked for notes before this one was written."""
    two = Two(large="tensor")
    two.group.unavailable("rank 1 does not answer")
    two.while_noting = lambda: two.group.connect(two.there.append)
    assert len(await two.routes.everywhere(ALL)) == 2
    assert (len(two.here), len(two.there)) == (1, 1)


async def test_nothing_is_dropped_if_it_cannot_be_noted() -> None:
    """The caller knows that it failed, and no call is left open."""
    two = Two(large="tensor")
    two.group.unavailable("rank 1 does not answer")

    def full() -> None:
        raise OSError(28, "No space left on device")

    two.while_noting = full
    with pytest.raises(OSError, match="No space"):
        await two.routes.everywhere(ALL)
    assert (two.here, two.there) == ([], [])


async def test_call_here_is_closed_if_none_can_be_opened_at_the_group() -> None:
    """It would be left open for good."""
    two = Two(large="tensor")
    two.group.close()
    with pytest.raises(SidecarError):
        await two.routes.everywhere(ALL)
    assert [command.WhichOneof("body") for command in two.here] == ["invalidate", "cancel"]


async def test_model_that_is_too_large_goes_on_at_the_group() -> None:
    """The caller sees one call; later calls begin at the group."""
    two = Two(large="auto")
    call = two.routes.open(generate("large"))
    events = asyncio.create_task(read(call))
    failure = ipc.Failure(reason=Reason.MODEL_EXCEEDS_BUDGET)
    two.local.deliver(ipc.Event(call_id=two.here[0].call_id, failure=failure))
    while not two.there:  # noqa: ASYNC110 - the next turn of the loop opens it
        await asyncio.sleep(0)
    finished = pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_STOP))
    two.group.deliver(ipc.Event(call_id=two.there[0].call_id, generate=finished))
    assert [event.generate for event in await events] == [finished]
    two.routes.open(generate("large"))
    assert (len(two.here), len(two.there)) == (1, 2)


async def test_other_errors_of_this_machine_are_final() -> None:
    """A model that is not there is not looked for on other machines."""
    two = Two(large="auto")
    call = two.routes.open(generate("large"))
    two.local.deliver(
        ipc.Event(call_id=two.here[0].call_id, failure=ipc.Failure(reason=Reason.MODEL_NOT_FOUND, message="gone"))
    )
    with pytest.raises(SidecarError, match="gone"):
        await read(call)
    assert two.there == []


async def test_adapter_for_the_group_is_refused() -> None:
    """By its field."""
    two = Two(large="tensor")
    command = generate("large")
    command.generate.adapter = "/adapter"
    with pytest.raises(SidecarError) as caught:
        two.routes.open(command)
    assert caught.value.field == "adapter"


async def test_lost_group_refuses_calls_with_its_reason() -> None:
    """At once, and until it is back. Models of this machine go on."""
    two = Two(large="tensor")
    waiting = two.routes.open(generate("large"))
    two.group.unavailable("rank 1 does not answer")
    two.group.engine_died(1.0, blame_calls=True)
    with pytest.raises(SidecarError, match="rank 1 does not answer"):
        await read(waiting)
    with pytest.raises(SidecarError, match="rank 1 does not answer") as caught:
        two.routes.open(generate("large"))
    assert caught.value.reason is Reason.ENGINE_RESTARTED
    assert caught.value.retry_after
    two.routes.open(generate("other"))
    two.group.connect(two.there.append)
    two.routes.open(generate("large"))


def test_daemon_without_a_group_imports_little_of_it() -> None:
    """The handshake and its libraries would take memory and time of each start."""
    program = "import sys; first = {*sys.modules}; import daemon.server.app; print(*{*sys.modules} - first)"
    shown = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert not {"daemon.server.group.handshake", "importlib.metadata", "email"} & set(shown.stdout.split())
