"""Keeps: what callers asked for outlives an engine, until it is taken back."""

from __future__ import annotations

from daemon.engine.calls.recalled import Recalled
from daemon.shared.model_overrides import MOST, ModelOverrides
from mlx_sidecar.v1 import sidecar_pb2 as pb


def load(model: str = "a", **fields: object) -> pb.GetOrLoadRequest:
    """Return a request."""
    return pb.GetOrLoadRequest(model=model, **fields)  # type: ignore[arg-type]


def test_what_a_call_leaves_unset_stays_as_it_was() -> None:
    keeps = ModelOverrides()
    keeps.note(load(pin=True, revision="v1"))
    keeps.note(load(ttl={"seconds": 5}, skip_warmup=True, allow_download=True))
    keeps.note(load(adapter="/x", pin=False))
    assert keeps.requests() == [load(pin=True, ttl={"seconds": 5}), load(adapter="/x", pin=False)]


def test_dropped_weights_are_pinned_no_more_under_any_name() -> None:
    keeps = ModelOverrides()
    for name in ("a", "copy", "other"):
        keeps.note(load(name, pin=True, revision="v1"))
    keeps.dropped(pb.InvalidateRequest(model=pb.ModelTarget(model="a", prefixes=True)), [])
    assert all(request.pin for request in keeps.requests())
    keeps.dropped(pb.InvalidateRequest(model=pb.ModelTarget(model="a", weights=True)), ["a", "copy"])
    assert [request.pin for request in keeps.requests()] == [False, False, True]
    keeps.dropped(pb.InvalidateRequest(all=pb.AllTarget(weights=True)), [])
    assert [(request.pin, request.revision) for request in keeps.requests()] == [(False, "v1")] * 3


def test_only_the_latest_are_kept() -> None:
    keeps = ModelOverrides()
    for number in range(MOST + 10):
        keeps.note(load(str(number)))
    assert [request.model for request in keeps.requests()] == [str(number) for number in range(10, MOST + 10)]


def test_what_is_recalled_holds_until_it_was_done_or_its_model_dropped() -> None:
    recalled = Recalled()
    recalled.keep(load(pin=True, ttl={"seconds": 5}))
    recalled.keep(load("b", adapter="/x", pin=False))
    assert (recalled.pin("a", ""), recalled.ttl("a", "")) == (True, 5.0)
    assert (recalled.pin("b", "/x"), recalled.ttl("b", "/x"), recalled.pin("b", "")) == (False, None, None)
    recalled.done("a", "")
    recalled.forget("b")
    assert (recalled.pin("a", ""), recalled.pin("b", "/x")) == (None, None)
    recalled.keep(load(pin=True))
    recalled.forget()
    assert recalled.pin("a", "") is None
