"""The comparison with cold runs forgives a tie that rounding decided, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.cold_runs import CLOSE, ColdRuns, Sample, rounded
from tests.unit.engine.families import Family, write
from tests.unit.engine.harness import Answer, Harness


@pytest.fixture(name="tie")
def _tie(engine: Callable[..., Harness], tmp_path: Path) -> tuple[Harness, pb.GenerateRequest, Answer]:
    """Return an engine, a request that has a place where rounding decides, and the answer of the other decision."""
    harness = engine()
    model = str(write(tmp_path, Family("gemma3_text")))
    for seed in count():
        request = pb.GenerateRequest(model=model, tokens=pb.TokenIds(ids=range(3, 19)), max_tokens=60, top_logprobs=0)
        request.sampling.temperature, request.sampling.seed = 1.3, seed
        request.cache.mode = pb.CACHE_MODE_BYPASS
        request.speculation = pb.SPECULATION_OFF
        with rounded(1e-4, 1000):
            other = harness.run(request)
        with rounded(1e-4, 1001):
            again = harness.run(request)
        if Sample(again).ids == Sample(other).ids != Sample(harness.run(request)).ids:
            return harness, request, other
    raise AssertionError


def test_answer_that_rounding_decided_is_right(tie: tuple[Harness, pb.GenerateRequest, Answer]) -> None:
    harness, request, other = tie
    cold = ColdRuns(harness, CLOSE, near=True)
    cold.check(request, harness.run(request))
    assert (cold.checked, cold.ties) == (1, 0)
    cold.check(request, other)
    assert (cold.checked, cold.ties) == (2, 1)


def test_any_other_answer_is_wrong(tie: tuple[Harness, pb.GenerateRequest, Answer]) -> None:
    """One more token differs than rounding explains; and a model whose answers are exact has no excuse."""
    harness, request, other = tie
    wrong = Answer([*other.events])
    first = next(event for event in wrong.events if event.generate.delta.token_ids)
    first.generate.delta.token_ids[0] += 1
    with pytest.raises(AssertionError, match="sample 0"):
        ColdRuns(harness, CLOSE, near=True).check(request, wrong)
    first.generate.delta.token_ids[0] -= 1
    with pytest.raises(AssertionError, match="sample 0"):
        ColdRuns(harness, 0.0, near=True).check(request, other)
