"""A stream yields what the daemon sends in its order, knows its result, and never outlives its reader."""

from __future__ import annotations

import grpc
import pytest

from mlx_sidecar import (
    Cancelled,
    Completion,
    Delta,
    Finished,
    GeneratedToolCall,
    GenerateStream,
    InvalidArgument,
    LoadProgress,
    Message,
    Miss,
    PrefillProgress,
    ProtocolError,
    Started,
    Tool,
    ToolCall,
)
from mlx_sidecar._requests import generate_request
from mlx_sidecar._transcript import GenerateTranscript
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.client.scripted import FakeDaemon, delta, finish, finished, hello, started


def test_events_come_in_the_order_of_the_daemon(fake: FakeDaemon) -> None:
    """Each message is one typed event."""
    stream = fake.client.generate("m", "Hi")
    _, rpc = fake.take_stream("Generate")
    for message in hello():
        rpc.send_response(message)
    finish(rpc)
    events = list(stream)
    assert [type(event) for event in events] == [Started, PrefillProgress, Delta, Delta, Delta, Finished]
    assert events[0] == Started(request_id="r1", model="m", prompt_tokens=5, cached_tokens=4)
    assert events[1] == PrefillProgress(done=5, total=5)
    assert events[2] == Delta(text="Hello", token_ids=(7,), logprobs=())


def _samples(rpc: object) -> None:
    """Answer with two samples, whose pieces and ends are interleaved, and with scores of the prompt."""
    scores = [pb.TokenLogprob(token_id=number, logprob=-1, text="x") for number in range(3)]
    messages = [
        started(request_id="r1"),
        pb.GenerateResponse(prompt_logprobs=pb.PromptLogprobs(start=1, logprobs=scores[:2])),
        pb.GenerateResponse(prompt_logprobs=pb.PromptLogprobs(start=3, logprobs=scores[2:])),
        pb.GenerateResponse(delta=pb.Delta(text="a", index=1)),
        pb.GenerateResponse(delta=pb.Delta(text="b", index=0)),
        finished(5, index=1, seed=2**64 - 1),
        pb.GenerateResponse(delta=pb.Delta(text="c", index=0)),
        finished(7, index=0, seed=0),
    ]
    for message in messages:
        rpc.send_response(message)  # type: ignore[attr-defined]


def test_samples_come_apart(fake: FakeDaemon) -> None:
    """In the order of their indexes, each with its own end; the scores of the prompt are part of each."""
    stream = fake.client.generate("m", "Hi", samples=2, prompt_logprobs=0)
    request, rpc = fake.take_stream("Generate")
    assert (request.samples, request.prompt_logprobs, request.HasField("prompt_logprobs")) == (2, 0, True)
    _samples(rpc)
    finish(rpc)
    first, second = stream.results()
    assert [(one.text, one.index, one.seed) for one in (first, second)] == [("bc", 0, 0), ("a", 1, 2**64 - 1)]
    assert [entry.token_id for entry in first.prompt_logprobs] == [0, 1, 2]
    assert first.prompt_logprobs[0].text == "x"
    assert stream.result() == first


def test_text_is_that_of_one_sample(fake: FakeDaemon) -> None:
    """Pieces of several would make no text."""
    stream = fake.client.generate("m", "Hi", samples=2)
    _, rpc = fake.take_stream("Generate")
    _samples(rpc)
    finish(rpc)
    assert list(stream.text(1)) == ["a"]


def test_missing_sample_is_no_completion(fake: FakeDaemon) -> None:
    """And neither is one that was not asked for."""
    for samples in (1, 3):
        stream = fake.client.generate("m", "Hi", samples=samples)
        _, rpc = fake.take_stream("Generate")
        _samples(rpc)
        finish(rpc)
        with pytest.raises(ProtocolError):
            stream.results()


def test_complete_refuses_several_samples(fake: FakeDaemon) -> None:
    """It could return only one of them."""
    with pytest.raises(InvalidArgument, match="complete_samples") as refused:
        fake.client.complete("m", "Hi", samples=2)
    assert refused.value.field == "samples"


def test_miss_is_part_of_start_and_completion(fake: FakeDaemon) -> None:
    """A position that is not known is None, and zero is a position."""
    stream = fake.client.generate("m", "Hi")
    _, rpc = fake.take_stream("Generate")
    miss = pb.Miss(reason=pb.MISS_REASON_DIVERGED, token=37, message=0, seen={"seconds": 90})
    rpc.send_response(started(request_id="r1", miss=miss))
    rpc.send_response(finished(1))
    finish(rpc)

    expected = Miss("diverged", 37, 0, 0, None, 90.0, ())
    first = next(iter(stream))
    assert isinstance(first, Started)
    assert first.miss == stream.result().miss == expected


def test_stream_event_is_delivered_at_once(fake: FakeDaemon) -> None:
    """Nothing is held back until the call ends."""
    with fake.client.generate("m", "Hi") as stream:
        _, rpc = fake.take_stream("Generate")
        rpc.send_response(started(request_id="r1"))
        assert isinstance(next(stream), Started)
        rpc.send_response(delta(1, "Hello"))
        assert next(stream) == Delta(text="Hello", token_ids=(), logprobs=())


def test_reasoning_and_tool_calls_are_separate_fields(fake: FakeDaemon) -> None:
    """An answer is the next message of its conversation."""
    stream = fake.client.generate("m", [Message("user", "Hi")], tools=[Tool("clock")])
    _, rpc = fake.take_stream("Generate")
    rpc.send_response(started(request_id="r1"))
    call = pb.GeneratedToolCall(index=0, id="c1", name="clock", arguments_json='{"zone": "é"}')
    pieces = [pb.Delta(reasoning="Hm"), pb.Delta(reasoning=".", text="So"), pb.Delta(tool_calls=[call])]
    for seq, piece in enumerate(pieces, 1):
        rpc.send_response(pb.GenerateResponse(seq=seq, delta=piece))
    last = finished(4)
    last.finished.reason = pb.FINISH_REASON_TOOL_CALLS
    rpc.send_response(last)
    finish(rpc)
    deltas = [event for event in stream if isinstance(event, Delta)]
    assert deltas[2].tool_calls == (GeneratedToolCall(0, "c1", "clock", '{"zone": "é"}'),)
    answer = stream.result()
    assert (answer.text, answer.reasoning, answer.reason) == ("So", "Hm.", "tool_calls")
    assert answer.tool_calls == (ToolCall("c1", "clock", '{"zone": "é"}'),)
    turn = Message("assistant", answer.text, answer.reasoning, answer.tool_calls)
    request = generate_request("m", [turn])
    assert request.chat.messages[0].tool_calls[0].arguments_json == '{"zone": "é"}'


def test_result_joins_all_deltas(fake: FakeDaemon) -> None:
    """A completion has the whole text and every token, and the figures of the last event."""
    stream = fake.client.generate("m", "Hi", top_logprobs=1)
    _, rpc = fake.take_stream("Generate")
    rpc.send_response(started(request_id="r1", model="m"))
    for seq, text in enumerate(("a", "b"), 1):
        message = delta(seq, text, seq)
        message.delta.logprobs.add(token_id=seq, logprob=-0.5).top.add(token_id=9, logprob=-0.25)
        rpc.send_response(message)
    last = finished(3, stop_match="\n", usage=pb.Usage(completion_tokens=3))
    last.finished.timings.decode.FromMilliseconds(1500)
    rpc.send_response(last)
    finish(rpc)
    completion = stream.result()
    assert isinstance(completion, Completion)
    assert (completion.text, completion.token_ids) == ("ab", (1, 2))
    assert [(entry.token_id, entry.top[0].token_id) for entry in completion.logprobs] == [(1, 9), (2, 9)]
    assert (completion.reason, completion.stop_match) == ("stop", "\n")
    assert completion.usage.completion_tokens == 3
    assert (completion.timings.decode, completion.timings.load) == (1.5, None)
    assert (completion.request_id, completion.model) == ("r1", "m")


def test_result_includes_events_read_before(fake: FakeDaemon) -> None:
    """Asking for the result after a few events, or twice, loses nothing."""
    stream = fake.client.generate("m", "Hi")
    _, rpc = fake.take_stream("Generate")
    for message in hello():
        rpc.send_response(message)
    finish(rpc)
    for _ in range(3):
        next(stream)
    assert stream.result().text == "Hello there"
    assert stream.result().text == "Hello there"


def test_text_iterator_skips_events_without_text(fake: FakeDaemon) -> None:
    """Empty pieces are not yielded, and the result is still to be had afterwards."""
    stream = fake.client.generate("m", "Hi")
    _, rpc = fake.take_stream("Generate")
    for message in hello():
        rpc.send_response(message)
    finish(rpc)
    assert list(stream.text()) == ["Hello", " there"]
    assert stream.result().usage.completion_tokens == 5


def test_load_yields_progress_and_returns_a_model(fake: FakeDaemon) -> None:
    """`ready` is the result and no event."""
    stream = fake.client.get_or_load("m")
    _, rpc = fake.take_stream("GetOrLoad")
    progress = pb.LoadProgress(stage=pb.LOAD_STAGE_WARMING_UP, bytes_done=1, bytes_total=2, evicting=["old"])
    rpc.send_response(pb.GetOrLoadResponse(progress=progress))
    info = pb.ModelInfo(model="m", outcome=pb.LOAD_OUTCOME_HIT, prefix_reuse=pb.PREFIX_REUSE_BLOCKS)
    rpc.send_response(pb.GetOrLoadResponse(ready=info))
    finish(rpc)
    assert list(stream) == [LoadProgress("warming_up", 1, 2, ("old",))]
    model = stream.result()
    assert (model.model, model.outcome, model.prefix_reuse) == ("m", "hit", "blocks")


def test_events_of_a_newer_daemon_are_skipped(fake: FakeDaemon) -> None:
    """An old client reads past an event, an enum value and a field that it does not know."""
    stream = fake.client.generate("m", "Hi")
    _, rpc = fake.take_stream("Generate")
    rpc.send_response(started(request_id="r1"))
    # Field 15, length-delimited: an event that does not exist yet.
    rpc.send_response(pb.GenerateResponse.FromString(b"\x08\x01\x7a\x02hi"))
    last = finished(2)
    last.finished.reason = 99  # type: ignore[assignment]
    rpc.send_response(last)
    finish(rpc)
    assert [type(event) for event in stream] == [Started, Finished]
    assert stream.result().reason == "unknown"


@pytest.mark.parametrize("messages", [[], [started()], [finished(0)]])
def test_generation_without_its_end_is_no_completion(fake: FakeDaemon, messages: list[pb.GenerateResponse]) -> None:
    """A truncated answer must not look like a whole one, however it is read."""
    stream = fake.client.generate("m", "Hi")
    _, rpc = fake.take_stream("Generate")
    for message in messages:
        rpc.send_response(message)
    finish(rpc)
    with pytest.raises(ProtocolError):
        list(stream)
    with pytest.raises(ProtocolError):
        stream.result()


def test_a_load_without_its_end_is_no_model(fake: FakeDaemon) -> None:
    """The same for loads."""
    stream = fake.client.get_or_load("m")
    _, rpc = fake.take_stream("GetOrLoad")
    finish(rpc)
    with pytest.raises(ProtocolError):
        stream.result()


def test_closing_a_stream_cancels_its_call(fake: FakeDaemon) -> None:
    """A closed stream has ended; what it would have resulted in is not known."""
    stream = fake.client.generate("m", "Hi")
    _, rpc = fake.take_stream("Generate")
    stream.close()
    stream.close()
    rpc.cancelled()
    assert list(stream) == []
    with pytest.raises(Cancelled):
        stream.result()


def test_leaving_the_with_block_cancels_the_call(fake: FakeDaemon) -> None:
    """Also when the block is left early."""
    with fake.client.generate("m", "Hi") as stream:
        _, rpc = fake.take_stream("Generate")
        rpc.send_response(started(request_id="r1"))
        next(stream)
    rpc.cancelled()


def test_a_loop_that_is_left_cancels_the_call(fake: FakeDaemon) -> None:
    """Nobody refers to the stream after `break`."""
    stream = fake.client.generate("m", "Hi")
    _, rpc = fake.take_stream("Generate")
    rpc.send_response(started(request_id="r1"))
    for _ in stream:
        break
    del stream
    rpc.cancelled()


def test_closing_the_text_iterator_cancels_the_call(fake: FakeDaemon) -> None:
    """So does abandoning it, which closes a generator."""
    stream = fake.client.generate("m", "Hi")
    _, rpc = fake.take_stream("Generate")
    rpc.send_response(started(request_id="r1"))
    rpc.send_response(delta(1, "Hello"))
    for text in stream.text():
        assert text == "Hello"
        break
    rpc.cancelled()
    with pytest.raises(Cancelled):
        stream.result()


def test_closing_an_ended_stream_keeps_its_result(fake: FakeDaemon) -> None:
    """The result stays."""
    with fake.client.generate("m", "Hi") as stream:
        _, rpc = fake.take_stream("Generate")
        for message in hello():
            rpc.send_response(message)
        finish(rpc)
        assert stream.result().text == "Hello there"
    assert stream.result().text == "Hello there"


def test_failure_ends_the_stream_and_stays_its_result(fake: FakeDaemon) -> None:
    """What came before the failure was yielded; the failure is raised once, and again by `result`."""
    stream = fake.client.generate("m", "Hi")
    _, rpc = fake.take_stream("Generate")
    rpc.send_response(started(request_id="r1"))
    assert isinstance(next(stream), Started)
    finish(rpc, grpc.StatusCode.CANCELLED, "cancelled by somebody")
    with pytest.raises(Cancelled):
        next(stream)
    assert list(stream) == []
    with pytest.raises(Cancelled):
        stream.result()


def test_a_stream_says_whether_it_runs(fake: FakeDaemon) -> None:
    """For whoever prints it."""
    stream = fake.client.generate("m", "Hi")
    assert repr(stream) == "<mlx_sidecar.GenerateStream running>"
    stream.close()
    assert repr(stream) == "<mlx_sidecar.GenerateStream ended>"


class _Interrupted:
    """A call whose reader gets Ctrl-C while it waits."""

    cancelled = False

    def __next__(self) -> pb.GenerateResponse:
        raise KeyboardInterrupt

    def cancel(self) -> None:
        self.cancelled = True


def test_interrupted_stream_cancels_its_call(fake: FakeDaemon) -> None:
    """An interactive session keeps the traceback, and with it the stream: its collection would come much later."""
    call = _Interrupted()
    stream = GenerateStream(call, GenerateTranscript(), fake.client._failed)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert call.cancelled
    assert list(stream) == []
    with pytest.raises(Cancelled):
        stream.result()
