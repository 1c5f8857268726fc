"""An engine call: a reader of any pace gets all text and all ids, in order, from a few events."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.server.supervision import engine_call
from daemon.server.supervision.engine_call import FULL_BYTES, JOIN_TOKENS, EngineCall
from daemon.shared.errors import Reason, SidecarError
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb


def call() -> EngineCall:
    """Return a call that stays open."""
    return EngineCall(ipc.Command(call_id=1), lambda _: None)


def answer(event: pb.GenerateResponse) -> ipc.Event:
    """Return an event of a Generate call."""
    return ipc.Event(call_id=1, generate=event)


def delta(text: str, *ids: int) -> ipc.Event:
    """Return a delta with a log-probability for each id."""
    logprobs = [pb.TokenLogprob(token_id=token, logprob=-1.0) for token in ids]
    return answer(pb.GenerateResponse(delta=pb.Delta(text=text, token_ids=ids, logprobs=logprobs)))


STARTED = answer(pb.GenerateResponse(started=pb.Started(request_id="r")))
FINISHED = answer(pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_STOP)))
FAILURE = ipc.Event(call_id=1, failure=ipc.Failure(reason="NAN_LOGITS", message="no numbers", field="x"))


async def read(one: EngineCall) -> list[ipc.Event]:
    """Return the remaining events of a call."""
    async with asyncio.timeout(5):
        return [event async for event in one.events()]


@given(st.lists(st.tuples(st.text(max_size=5), st.lists(st.integers(0, 9), max_size=3)), max_size=30), st.data())
def test_slow_reader_gets_equal_text_and_ids(pieces: list[tuple[str, list[int]]], data: st.DataObject) -> None:
    """The reader takes the events that wait at random moments."""
    pauses = data.draw(st.sets(st.integers(0, len(pieces))))

    async def run() -> list[ipc.Event]:
        one = call()
        events = one.events()
        got = []
        one.push(STARTED)
        for number, (text, ids) in enumerate(pieces):
            one.push(delta(text, *ids))
            if number in pauses:
                got.append(await anext(events))
        one.push(FINISHED)
        return got + [event async for event in events]

    got = asyncio.run(run())
    deltas = [event.generate.delta for event in got if event.generate.HasField("delta")]
    assert "".join(one.text for one in deltas) == "".join(text for text, _ in pieces)
    assert [token for one in deltas for token in one.token_ids] == [token for _, ids in pieces for token in ids]
    assert all([p.token_id for p in one.logprobs] == list(one.token_ids) for one in deltas)
    assert got[0] == STARTED
    assert got[-1] == FINISHED


async def test_samples_of_a_slow_reader_are_joined_apart() -> None:
    """Each keeps its order; what is joined stays before the end of its sample, and the call ends with the last one."""
    one = call()
    for number in range(40):
        delta = pb.Delta(text=f"{number} ", index=number % 2)
        one.push(answer(pb.GenerateResponse(delta=delta)))
    first = answer(pb.GenerateResponse(finished=pb.Finished(index=1)))
    first.more = True
    one.push(first)
    one.push(answer(pb.GenerateResponse(delta=pb.Delta(text="end", index=0))))
    assert not one.over
    one.push(FINISHED)
    events = [event.generate for event in await read(one)]
    kinds = [(event.WhichOneof("event"), event.delta.index or event.finished.index) for event in events]
    assert kinds == [("delta", 0), ("delta", 1), ("finished", 1), ("finished", 0)]
    assert events[0].delta.text == "".join(f"{number} " for number in range(0, 40, 2)) + "end"
    assert events[1].delta.text == "".join(f"{number} " for number in range(1, 40, 2))


async def test_scores_of_prompts_are_not_joined() -> None:
    """Each message stays as small as it came."""
    one = call()
    for start in (1, 2):
        one.push(answer(pb.GenerateResponse(prompt_logprobs=pb.PromptLogprobs(start=start))))
    one.push(FINISHED)
    assert [event.generate.prompt_logprobs.start for event in await read(one)] == [1, 2, 0]


async def test_joined_deltas_keep_reasoning_and_tool_calls() -> None:
    """Each channel is joined on its own."""
    one = call()
    for word in ("a", "b", "c"):
        one.push(answer(pb.GenerateResponse(delta=pb.Delta(reasoning=word))))
    for number, word in enumerate(["a", "b", "c"]):
        made = pb.GeneratedToolCall(index=number, name=word)
        one.push(answer(pb.GenerateResponse(delta=pb.Delta(tool_calls=[made]))))
    one.push(FINISHED)
    joined = (await read(one))[0].generate.delta
    assert joined.reasoning == "abc"
    assert [(made.index, made.name) for made in joined.tool_calls] == [(0, "a"), (1, "b"), (2, "c")]


async def test_joined_deltas_keep_the_order_of_an_answer() -> None:
    """Clients read the reasoning of a delta first, then its text, then its calls. Tokens alone go with any of them."""
    pieces = [
        pb.Delta(reasoning="Hm. "), pb.Delta(text="I look."), pb.Delta(token_ids=[7]),
        pb.Delta(tool_call_deltas=[pb.ToolCallDelta(id="a", name="weather")]),
        pb.Delta(tool_call_deltas=[pb.ToolCallDelta(withdrawn=True)], text="<call>"), pb.Delta(text=" It rains."),
        pb.Delta(reasoning="Or not?"), pb.Delta(token_ids=[8]), pb.Delta(text="Yes."),
    ]  # fmt: skip
    one = call()
    for piece in pieces:
        one.push(answer(pb.GenerateResponse(delta=piece)))
    one.push(FINISHED)
    deltas = [event.generate.delta for event in (await read(one))[:-1]]
    assert [(each.reasoning, each.text, len(each.tool_call_deltas)) for each in deltas] == [
        ("Hm. ", "I look.", 1), ("", "<call>", 1), ("", " It rains.", 0), ("Or not?", "Yes.", 0),
    ]  # fmt: skip
    assert [list(each.token_ids) for each in deltas] == [[7], [], [], [8]]


async def test_scores_stay_with_what_they_are_of() -> None:
    """Those of the text are told apart from those of the reasoning, and of marks between them."""
    one = call()
    for number, (thought, text) in enumerate([("Hm.", ""), ("", ""), ("", "Yes"), ("", ".")]):
        score = pb.TokenLogprob(token_id=number)
        scored = pb.Delta(token_ids=[number], logprobs=[score], reasoning=thought, text=text)
        one.push(answer(pb.GenerateResponse(delta=scored)))
    one.push(FINISHED)
    deltas = [event.generate.delta for event in (await read(one))[:-1]]
    assert [(each.text, [score.token_id for score in each.logprobs]) for each in deltas] == [
        ("", [0]), ("", [1]), ("Yes.", [2, 3]),
    ]  # fmt: skip


async def test_late_reader_finds_few_events() -> None:
    """Progress is replaced, deltas are joined: the buffer does not grow with their number."""
    one = call()
    one.push(STARTED)
    for done in range(1000):
        one.push(answer(pb.GenerateResponse(prefill=pb.PrefillProgress(done=done, total=1000))))
    for token in range(1000):
        one.push(delta("x", token))
    one.push(FINISHED)
    got = await read(one)
    assert [event.generate.WhichOneof("event") for event in got] == ["started", "prefill", "delta", "finished"]
    assert got[1].generate.prefill.done == 999
    assert list(got[2].generate.delta.token_ids) == list(range(1000))


async def test_joined_deltas_fit_a_message() -> None:
    """gRPC would refuse one message with a whole long completion and its log-probabilities."""
    one = call()
    for token in range(2 * JOIN_TOKENS):
        one.push(delta("x", token))
    one.push(FINISHED)
    sizes = [len(event.generate.delta.token_ids) for event in await read(one)]
    assert sizes == [JOIN_TOKENS, JOIN_TOKENS, 0]


async def test_unread_load_progress_is_replaced() -> None:
    """The event `ready` is never joined with progress."""
    one = call()
    for done in range(50):
        progress = pb.LoadProgress(stage=pb.LOAD_STAGE_LOADING, bytes_done=done)
        one.push(ipc.Event(load=pb.GetOrLoadResponse(progress=progress)))
    one.push(ipc.Event(load=pb.GetOrLoadResponse(ready=pb.ModelInfo(model="m"))))
    first, last = await read(one)
    assert first.load.progress.bytes_done == 49
    assert last.load.ready.model == "m"


async def test_engine_error_follows_the_data_before_it() -> None:
    """The reader gets everything that there was, and then the error with all that it says."""
    one = call()
    one.push(delta("a", 1))
    one.push(FAILURE)
    events = one.events()
    assert await anext(events) == delta("a", 1)
    with pytest.raises(SidecarError) as caught:
        await anext(events)
    assert (caught.value.reason, caught.value.message, caught.value.field) == (Reason.NAN_LOGITS, "no numbers", "x")
    assert caught.value.retry_after is None
    assert one.over


async def test_unknown_engine_reason_is_internal() -> None:
    """It cannot come from our own engine; it must not end the supervisor all the same."""
    one = call()
    one.push(ipc.Event(failure=ipc.Failure(reason="NEW_REASON", message="m")))
    with pytest.raises(SidecarError) as caught:
        await read(one)
    assert caught.value.reason is Reason.INTERNAL


async def test_first_end_of_an_engine_call_counts() -> None:
    """Nothing follows a finished call, and a second error does not replace the first."""
    finished = call()
    finished.push(FINISHED)
    finished.fail(SidecarError(Reason.INTERNAL, "too late"))
    finished.push(delta("late", 1))
    assert await read(finished) == [FINISHED]
    failed = call()
    failed.fail(SidecarError(Reason.QUEUE_FULL, "first"))
    failed.fail(SidecarError(Reason.INTERNAL, "second"))
    failed.push(delta("late", 1))
    assert not failed.over
    with pytest.raises(SidecarError, match="first"):
        await read(failed)


async def test_engine_call_reports_its_close_once() -> None:
    """The router decides whether the engine is told."""
    closed: list[EngineCall] = []
    one = EngineCall(ipc.Command(), closed.append)
    one.close()
    assert closed == [one]


def wide(token: int) -> ipc.Event:
    """Return a delta of about a kilobyte."""
    return delta("x" * 1000, token)


async def test_slow_reader_makes_the_engine_hold_its_call() -> None:
    """Held at 192 KiB, let go at half of that; events that arrive meanwhile are kept, each once."""
    told: list[bool] = []
    one = EngineCall(ipc.Command(call_id=1), lambda _: None, lambda _, held: told.append(held))
    sent = 0
    while not told:
        one.push(wide(sent))
        sent += 1
    assert told == [True]
    assert 1000 * sent + 5000 >= FULL_BYTES
    for _ in range(20):  # what was on its way
        one.push(wide(sent))
        sent += 1
    assert one._backlog.nbytes <= 256 * 1024
    got: list[int] = []
    async for event in one.events():
        got.extend(event.generate.delta.token_ids)
        if len(got) == sent and not one.over:
            assert told == [True, False]
            one.push(FINISHED)
    assert got == list(range(sent))
    one.close()


async def test_absent_reader_is_ended_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its slot and its backlog are free at once. A reader that reads, however slowly, is not given up."""
    monkeypatch.setattr(engine_call, "STALL_SECONDS", 0.02)
    closed: list[EngineCall] = []
    gone = asyncio.Event()
    one = EngineCall(ipc.Command(call_id=1), closed.append)
    one.on_stall = gone.set
    for token in range(250):
        one.push(wide(token))
    async with asyncio.timeout(20):
        await gone.wait()
    assert closed == [one]
    assert one._backlog.nbytes == 0
    one.push(wide(250))
    with pytest.raises(SidecarError) as told:
        await read(one)
    assert told.value.reason is Reason.SLOW_CONSUMER


async def test_stalled_reader_of_a_finished_call_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last event was on its way when the engine was told to hold; an end without an error would look whole."""
    monkeypatch.setattr(engine_call, "STALL_SECONDS", 0.02)
    gone = asyncio.Event()
    one = call()
    one.on_stall = gone.set
    for token in range(250):
        one.push(wide(token))
    one.push(FINISHED)
    async with asyncio.timeout(20):
        await gone.wait()
    with pytest.raises(SidecarError) as told:
        await read(one)
    assert told.value.reason is Reason.SLOW_CONSUMER


async def test_full_backlog_is_kept_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event that is read starts the reader's time again; after the last event no timer runs."""
    monkeypatch.setattr(engine_call, "STALL_SECONDS", 1000)
    one = call()
    for token in range(250):
        one.push(STARTED)  # which nothing is joined to
        one.push(wide(token))
    events = one.events()
    patience = one._patience
    await anext(events)
    assert one._patience is not patience
    one.push(FINISHED)
    assert len([event async for event in events]) == 2 * 250
    assert one._patience is None
