"""Sequences whose reader lags are held: they wait with all they have, and others do not notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.engine.engine import SWEEP_SECONDS
from daemon.engine.execution.bill import bill
from daemon.engine.execution.runner import Runner
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import Answer, Harness, generate

ENDLESS = pb.Stop(ignore_eos=True)


def hold(harness: Harness, call: int, held: bool = True) -> None:
    """Send the command."""
    harness.engine.handle(ipc.Command(call_id=call, hold=ipc.Hold(held=held)))


def request(text: str = "The", **fields: object) -> pb.GenerateRequest:
    """Return a request that shows if a token was lost, doubled, or drawn anew."""
    sampling = pb.Sampling(temperature=1.0, seed=5, repetition_penalty=1.2)
    return generate(text, **{"max_tokens": 40, "stop": ENDLESS, "sampling": sampling, "top_logprobs": 1, **fields})


@pytest.mark.parametrize("neighbours", [0, 1, 3])
def test_held_sequence_resumes_without_a_trace(harness: Harness, neighbours: int) -> None:
    """Alone, or out of a batch that goes on without it."""
    texts = ["The", "A man", "One day", "It was"][: neighbours + 1]
    expected = [harness.run(request(text)).content for text in texts]
    calls = [harness.begin(request(text)) for text in texts]
    harness.until(lambda: all(map(harness.decoding, calls)))
    held, others = calls[0], calls[1:]
    hold(harness, held)
    hold(harness, held)
    sent = len(harness.of(held))
    for call in others:
        harness.finish(call)
    for _ in range(3):
        harness.step()
    assert len(harness.of(held)) == sent
    assert not harness.engine.busy
    assert harness.engine._runner.decoding == 1
    hold(harness, held, False)
    assert [Answer(harness.finish(call)).content for call in calls] == expected
    harness.settle()


def test_cancelled_held_sequence_keeps_its_prefix(harness: Harness) -> None:
    """Its slot is free at once."""
    harness.engine._runner.max_batch = 1
    call = harness.begin(request(max_tokens=200))
    harness.until(lambda: len(harness.of(call)) > 40)
    hold(harness, call)
    waiting = harness.begin(request("A man"))
    harness.until(lambda: harness.engine._runner.waiting == 1)
    harness.until(lambda: not harness.engine.busy)  # nobody runs, and nobody can start
    harness.cancel(call)
    assert harness.engine.busy
    harness.finish(waiting)
    hold(harness, call)
    hold(harness, call, False)
    harness.settle()
    assert harness.figures.prefix_cache.blocks > 0


def test_requests_that_do_not_fit_are_all_refused_if_nothing_runs(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, and the second does not wait for a third."""
    harness.run(pb.GetOrLoadRequest(model="embedded"))
    monkeypatch.setattr(harness.engine._runner, "_make_room", lambda *_: False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "step", lambda _: None)
        calls = [harness.begin(generate("The")) for _ in range(2)]
        harness.until(lambda: harness.engine._runner.waiting == 2)
    for call in calls:
        assert harness.finish(call)[-1].failure.reason == "BUDGET_IN_USE"
    harness.settle()


def test_request_that_waits_for_memory_starts_once_there_is_some(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory is not that of a request, but of weights that were unloaded: no call comes or goes in the runner."""
    call = harness.begin(request(max_tokens=200))
    harness.until(lambda: harness.decoding(call))
    hold(harness, call)
    with monkeypatch.context() as full:
        full.setattr(harness.engine._runner, "_make_room", lambda *_: False)
        waiting = harness.begin(request("A man"))
        harness.until(lambda: harness.engine._runner.waiting == 1)
        harness.until(lambda: not harness.engine.busy)
    harness.clock_offset += SWEEP_SECONDS
    harness.finish(waiting)
    hold(harness, call, False)
    harness.finish(call)
    harness.settle()


def test_request_that_fits_is_not_refused_for_one_that_does_not(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The larger one came later, and is more urgent: it is tried first, and it is refused."""
    harness.run(pb.GetOrLoadRequest(model="embedded"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "step", lambda _: None)
        small = harness.begin(generate("The"))
        harness.until(lambda: harness.engine._runner.waiting == 1)
        large = harness.begin(generate("The " * 500, priority=5))
        harness.until(lambda: harness.engine._runner.waiting == 2)
        needs = [bill([sequence], ()).total for sequence in harness.engine._runner.sequences()]
    monkeypatch.setattr(harness.engine._runner, "_make_room", lambda need, _: need < max(needs))
    assert harness.finish(large)[-1].failure.reason == "BUDGET_IN_USE"
    assert Answer(harness.finish(small)).finished.usage.completion_tokens > 0
    harness.settle()


def test_load_beside_a_held_stream_gives_way_to_nothing(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No token is waited for, so a slice comes with each step, and the threads that hash do not rest."""
    call = harness.begin(request(max_tokens=200))
    harness.until(lambda: harness.decoding(call))
    hold(harness, call)
    load = harness.begin(pb.GetOrLoadRequest(model=str(copy_of_embedded(tmp_path))))
    models, slices = harness.engine._models, [0]
    harness.until(lambda: models.busy)
    step = models.step

    def sliced() -> None:
        slices[0] += 1
        harness.clock_offset += 1.0
        step()

    with monkeypatch.context() as patch:
        patch.setattr(models, "step", sliced)
        for _ in range(3):
            harness.step()
    assert slices == [3]
    assert not harness.engine._streams.active
    assert harness.finish(load)[-1].load.HasField("ready")
    hold(harness, call, False)
    harness.finish(call)
    harness.settle()
