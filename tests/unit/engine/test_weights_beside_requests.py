"""One ceiling holds for weights and for what running requests take: a load that would exceed it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.engine.execution.bill import bill
from daemon.engine.execution.runner import Runner
from daemon.engine.memory.memory_budget import MemoryBudget
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import Answer, Harness, generate

ENDLESS = pb.Stop(ignore_eos=True)


def decoding(harness: Harness) -> int:
    """Begin an answer of the embedded model, and return the call once it has tokens."""
    call = harness.begin(generate("The", max_tokens=60, stop=ENDLESS))
    harness.until(lambda: harness.decoding(call))
    return call


def limit(harness: Harness, nbytes: int) -> None:
    """Change the ceiling."""
    harness.engine._memory.budget = MemoryBudget(nbytes)


def test_load_that_running_requests_leave_no_room_is_refused(harness: Harness, tmp_path: Path) -> None:
    """The request goes on; once it has ended, its prefix makes room."""
    call, other = decoding(harness), pb.GetOrLoadRequest(model=str(copy_of_embedded(tmp_path)))
    use = harness.engine._memory.use()
    limit(harness, 2 * use.weights + use.live_kv // 2)
    failure = harness.run(other).failure
    assert (failure.reason, failure.HasField("retry_after")) == ("BUDGET_IN_USE", True)
    assert "running requests" in failure.message
    assert harness.models == 1
    assert Answer(harness.finish(call)).finished.usage.completion_tokens == 60
    assert harness.run(other).info.outcome == pb.LOAD_OUTCOME_LOADED
    harness.settle()
    assert harness.models == 2


def test_idle_model_makes_room_for_a_load_beside_requests(harness: Harness, tmp_path: Path) -> None:
    """As it does for the KV of a request."""
    idle, other = (copy_of_embedded(tmp_path, name) for name in ("idle", "other"))
    harness.run(pb.GetOrLoadRequest(model=str(idle)))
    call = decoding(harness)
    use = harness.engine._memory.use()
    limit(harness, use.weights + use.live_kv * 3 // 2)
    assert harness.run(pb.GetOrLoadRequest(model=str(other))).info.outcome == pb.LOAD_OUTCOME_LOADED
    assert harness.models == 2
    harness.finish(call)
    harness.settle()


@pytest.mark.parametrize("copies", [1, 2])
def test_models_of_single_calls_fit_below_the_ceiling(engine: Callable[..., Harness], copies: int) -> None:
    """With `model_cache_mb` 0 each call loads a model of its own, however many there are."""
    harness = engine(model_cache_mb=0)
    call = decoding(harness)
    use = harness.engine._memory.use()
    limit(harness, copies * use.weights + 2 * use.live_kv)
    failure = harness.run(generate("A man", max_tokens=5)).failure
    assert failure.reason == ("" if copies == 2 else "BUDGET_IN_USE")
    harness.finish(call)
    harness.settle()


def test_what_the_disk_writes_refuses_no_request(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that would run alone: it would wait for nothing, and what is on its way to the disk is free soon."""
    harness.run(pb.GetOrLoadRequest(model="embedded"))
    memory, runner = harness.engine._memory, harness.engine._runner
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "step", lambda _: None)
        call = harness.begin(generate("The", max_tokens=5, stop=ENDLESS))
        harness.until(lambda: runner.waiting == 1)
        limit(harness, memory.use().weights + bill(runner.sequences(), ()).total)
    monkeypatch.setattr(memory, "_staged", lambda: 1)
    assert Answer(harness.finish(call)).finished.usage.completion_tokens == 5
    harness.settle()
