"""Hygiene: an engine that runs for weeks grows nothing, and asks the system for nothing that it cannot give back."""

from __future__ import annotations

import gc
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.builders import page_rounding
from tests.unit.engine.harness import Harness, generate

ENDLESS = pb.Stop(ignore_eos=True)
DAEMON = Path(__file__).resolve().parents[3] / "daemon"


@pytest.mark.parametrize(("rounds", "tokens"), [(3, 30), pytest.param(40, 250, marks=pytest.mark.slow)])
def test_decode_steps_leak_no_memory(harness: Harness, rounds: int, tokens: int) -> None:
    """Neither live arrays nor objects nor figures; 20,000 steps when slow."""
    request = generate("The", max_tokens=tokens, stop=ENDLESS)
    request.cache.mode = pb.CACHE_MODE_BYPASS

    def measure() -> tuple[int, int]:
        for _ in range(2):  # two rows share the steps
            calls = [harness.begin(request) for _ in range(2)]
            for call in calls:
                harness.finish(call)
        harness.settle()
        harness.events.clear()
        gc.collect()
        return mx.get_active_memory(), len(gc.get_objects())

    measure()
    memory, objects = measure()
    for _ in range(rounds):
        after = measure()
        assert after[0] <= memory + page_rounding(20)
    assert after[1] <= objects + 300
    assert len(harness.engine._runner.timings.gaps._buckets) < 500


def test_unused_mlx_buffers_are_freed_under_load(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a number of turns."""
    monkeypatch.setattr("daemon.engine.memory.buffers.CLEAR_TURNS", 16)
    call = harness.begin(generate("The", max_tokens=200, stop=ENDLESS))
    harness.until(lambda: harness.decoding(call))
    freed = False
    for _ in range(20):
        before = mx.get_cache_memory()
        harness.step()
        freed |= mx.get_cache_memory() == 0 < before
    assert freed
    harness.cancel(call)
    harness.settle()


def test_no_mlx_memory_is_wired(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wired limits that change with each request have brought kernels down."""

    def refuse(*_: object) -> int:
        raise AssertionError("the wired limit was touched")

    monkeypatch.setattr(mx, "set_wired_limit", refuse)
    assert harness.run(generate("The", max_tokens=20)).finished.usage.completion_tokens > 0
    mentions = [path.name for path in DAEMON.rglob("*.py") if "wired_limit" in path.read_text()]
    assert mentions == ["wiring.py"]  # once a load, if that is configured
