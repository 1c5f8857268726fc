"""The call router: calls wait for an engine that takes them, and a new engine learns first what callers chose."""

from __future__ import annotations

import pytest

from daemon.server.supervision.call_router import LONGEST_WAIT_SECONDS, CallRouter
from daemon.shared.durations import duration, seconds
from daemon.shared.errors import Reason, SidecarError
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.builders import Clock
from tests.unit.server.supervised import error_of, events, generate


class Line:
    """The commands that an engine got, in order."""

    def __init__(self) -> None:
        self.commands: list[ipc.Command] = []

    @property
    def kinds(self) -> list[str | None]:
        """The kind of each command."""
        return [command.WhichOneof("body") for command in self.commands]


def load(**fields: object) -> ipc.Command:
    """Return a GetOrLoad command."""
    return ipc.Command(load=pb.GetOrLoadRequest(model="a", **fields))  # type: ignore[arg-type]


def ready(call_id: int, outcome: pb.LoadOutcome, model: str = "a") -> ipc.Event:
    """Return the event that ends a GetOrLoad call."""
    answer = pb.GetOrLoadResponse(ready=pb.ModelInfo(model=model, outcome=outcome))
    return ipc.Event(call_id=call_id, load=answer)


async def test_a_new_engine_is_told_what_callers_chose_before_it_gets_calls() -> None:
    router, line = CallRouter(lambda: 0.0), Line()
    router.connect(lambda _: None)
    router.deliver(ready(router.open(load(pin=True)).command.call_id, pb.LOAD_OUTCOME_LOADED, "/a"))
    router.deliver(ready(router.open(load(pin=False)).command.call_id, pb.LOAD_OUTCOME_ESTIMATED))
    router.engine_died(1.0, blame_calls=True)
    router.open(generate("a"))
    assert line.kinds == []
    router.connect(line.commands.append)
    assert line.kinds == ["recall", "generate"]
    assert line.commands[0].recall == pb.GetOrLoadRequest(model="/a", pin=True)


@pytest.mark.parametrize("waited", [0, 45])
async def test_timings_count_the_wait_for_an_engine(waited: int) -> None:
    """From arrival, as the API says: else nothing would tell where the seconds of a slow answer went."""
    clock, line = Clock(), Line()
    router = CallRouter(clock)
    call = router.open(generate("a"))
    clock.pass_(waited)
    router.connect(line.commands.append)
    clock.pass_(2)
    timings = pb.Timings(queue=duration(0.25), prefill=duration(1), first_token=duration(1.25))
    answer = pb.GenerateResponse(finished=pb.Finished(timings=timings))
    router.deliver(ipc.Event(call_id=call.command.call_id, generate=answer))
    told = (await events(call))[0].generate.finished.timings
    assert (seconds(told.queue), seconds(told.first_token)) == (waited + 0.25, waited + 1.25)
    assert told.prefill == timings.prefill


async def test_dropped_weights_are_not_recalled() -> None:
    """The answer names them, whatever the request called them."""
    router, line = CallRouter(lambda: 0.0), Line()
    router.connect(lambda _: None)
    router.deliver(ready(router.open(load(pin=True)).command.call_id, pb.LOAD_OUTCOME_HIT, "/a"))
    target = pb.InvalidateRequest(model=pb.ModelTarget(model="link", weights=True))
    call = router.open(ipc.Command(invalidate=target))
    router.deliver(ipc.Event(call_id=call.command.call_id, invalidate=pb.InvalidateResponse(models=["link", "/a"])))
    assert len(await events(call)) == 1
    router.connect(line.commands.append)
    assert [command.recall.pin for command in line.commands] == [False]


async def test_only_calls_that_were_sent_die_with_the_engine() -> None:
    """Unsent calls wait, as long as that is short."""
    router, now = CallRouter(lambda: 0.0), LONGEST_WAIT_SECONDS
    router.connect(lambda _: None)
    sent = router.open(generate("a"))
    router.disconnect()
    unsent = router.open(generate("b"))
    assert router.engine_died(now, blame_calls=True) == 1
    assert (await error_of(sent)).reason is Reason.ENGINE_RESTARTED
    assert router.engine_died(2 * now, blame_calls=True) == 0
    assert (await error_of(unsent)).retry_after == 2 * now
    with pytest.raises(SidecarError, match="keeps dying"):
        router.open(generate("c"))


async def test_a_call_that_cannot_be_sent_is_not_open() -> None:
    """Its caller gets the error and no call that it could close."""
    router = CallRouter(lambda: 0.0)

    def broken(_: ipc.Command) -> None:
        raise OSError

    router.connect(broken)
    with pytest.raises(OSError):
        router.open(generate("a"))
    router.disconnect()
    assert router.engine_died(1.0, blame_calls=True) == 0


async def test_an_invalidate_call_lifts_the_quarantine_also_without_an_engine() -> None:
    """A dry run does not, nor does a drop of prefixes."""
    router = CallRouter(lambda: 0.0)
    for number in range(3):
        router.connect(lambda _: None)
        router.open(generate("a", f"prompt {number}"))
        router.engine_died(1.0, blame_calls=True)
    target = pb.ModelTarget(model="a", weights=True)
    router.open(ipc.Command(invalidate=pb.InvalidateRequest(model=target, dry_run=True)))
    router.open(ipc.Command(invalidate=pb.InvalidateRequest(prefix=pb.PrefixTarget(model="a"))))
    with pytest.raises(SidecarError) as refused:
        router.open(generate("a"))
    assert refused.value.reason is Reason.MODEL_QUARANTINED
    router.open(ipc.Command(invalidate=pb.InvalidateRequest(model=target)))
    router.open(generate("a"))


async def test_request_outstays_its_model_in_quarantine() -> None:
    """Whatever else the daemon has seen die: here it is nothing."""
    router = CallRouter(lambda: 0.0)
    for _ in range(2):
        router.connect(lambda _: None)
        router.open(generate("a"))
        router.engine_died(1.0, blame_calls=True)
    router.open(ipc.Command(invalidate=pb.InvalidateRequest(model=pb.ModelTarget(model="a", weights=True))))
    router.open(generate("a", "another prompt"))
    with pytest.raises(SidecarError) as refused:
        router.open(generate("a"))
    assert refused.value.reason is Reason.REQUEST_QUARANTINED


async def test_load_and_embed_times_count_engine_waits() -> None:
    """From the call, as the API says. A model that was in memory has no time at all."""
    clock = Clock()
    router = CallRouter(clock)
    commands = [load(), load(), ipc.Command(embed=pb.EmbedRequest(model="a"))]
    loaded, hit, embedded = (router.open(command) for command in commands)
    clock.pass_(45)
    router.connect(lambda _: None)
    answers = [
        ipc.Event(load=pb.GetOrLoadResponse(ready=pb.ModelInfo(load_time=duration(2)))),
        ipc.Event(load=pb.GetOrLoadResponse(ready=pb.ModelInfo(load_time=duration(0)))),
        ipc.Event(embed=pb.EmbedResponse(finished=pb.EmbedFinished(time=duration(0.5)))),
    ]
    for call, answer in zip((loaded, hit, embedded), answers, strict=True):
        answer.call_id = call.command.call_id
        router.deliver(answer)
    assert seconds((await events(loaded))[0].load.ready.load_time) == 47
    assert seconds((await events(hit))[0].load.ready.load_time) == 0
    assert seconds((await events(embedded))[0].embed.finished.time) == 45.5
