"""Weights are wired when models come and go, never for a request, and only where that is configured."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace

import mlx.core as mx
import pytest
from structlog.testing import capture_logs

from daemon.engine.memory import wiring as module
from daemon.engine.memory.wiring import Wiring, wiring
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Harness, generate

EVICT_ALL = pb.InvalidateRequest(all=pb.AllTarget(weights=True))


def test_limit_is_set_once_a_load(harness: Harness) -> None:
    """A request, and a hundred turns, leave it alone; a model that goes gives it back."""
    limits: list[int] = []
    harness.engine._wiring = Wiring(limits.append, most=1 << 40)
    harness.run(pb.GetOrLoadRequest(model="embedded"))
    weights = harness.engine._models.total_bytes
    assert limits == [weights]
    harness.run(generate("The", max_tokens=100))
    harness.clock_offset += 5
    harness.step()
    assert limits == [weights]
    harness.run(EVICT_ALL)
    harness.clock_offset += 5
    harness.step()
    assert limits == [weights, 0]


def test_no_more_is_wired_than_the_device_allows() -> None:
    limits: list[int] = []
    wired = Wiring(limits.append, most=100)
    for weights in (50, 500, 600):
        wired.update(weights)
    assert limits == [50, 100]


def test_weights_that_cannot_be_wired_are_logged() -> None:
    """Once: the model works all the same."""

    def refuse(nbytes: int) -> None:
        raise RuntimeError("no")

    wired = Wiring(refuse, most=100)
    with capture_logs() as logs:
        wired.update(1)
        wired.update(2)
    assert [entry["event"] for entry in logs] == ["weights_not_wired"]


def test_only_metal_wires_weights(engine: Callable[..., Harness]) -> None:
    """Elsewhere the log says that the setting does nothing."""
    with capture_logs() as logs:
        assert wiring(False)._set_limit is None
        assert wiring(True)._set_limit is None
        engine(wire_weights=True).run(generate("The"))
    assert [entry["event"] for entry in logs if "wired" in entry["event"]] == ["weights_cannot_be_wired"] * 2


@pytest.mark.parametrize(("release", "wires"), [("23.6.0", False), ("24.0.0", True), ("25.1.0", True), ("", False)])
def test_macos_14_wires_no_weights(release: str, wires: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX takes the limit there without a word, and Metal has no residency sets. So the log says it."""
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(module, "working_set", lambda: 1 << 40)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    with capture_logs() as logs:
        assert (wiring(True)._set_limit is not None) is wires
    assert [entry["event"] for entry in logs] == ([] if wires else ["weights_cannot_be_wired"])
