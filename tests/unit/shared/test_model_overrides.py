"""Pins, times to live and revisions that callers chose outlive an engine, until they are taken back."""

from __future__ import annotations

from daemon.shared.model_overrides import MOST_CHOICES, ModelOverrides
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb


def load(model: str = "a", **fields: object) -> pb.GetOrLoadRequest:
    """Return a request."""
    return pb.GetOrLoadRequest(model=model, **fields)  # type: ignore[arg-type]


def loaded(overrides: ModelOverrides, request: pb.GetOrLoadRequest) -> None:
    """Apply a GetOrLoad call that went well."""
    overrides.apply(ipc.Command(load=request))


def recalled(overrides: ModelOverrides, request: pb.GetOrLoadRequest) -> None:
    """Apply a choice that was made while an earlier engine ran."""
    overrides.apply(ipc.Command(recall=request))


def dropped(overrides: ModelOverrides, names: list[str] | None = None, **target: object) -> None:
    """Apply an Invalidate call that went well."""
    overrides.apply(ipc.Command(invalidate=pb.InvalidateRequest(**target)), names or [])  # type: ignore[arg-type]


def requests(overrides: ModelOverrides) -> list[pb.GetOrLoadRequest]:
    """Return the choices that a new engine is told about."""
    return [command.recall for command in overrides.recalls()]


def test_unset_model_overrides_stay_as_they_were() -> None:
    overrides = ModelOverrides()
    loaded(overrides, load(pin=True, revision="v1"))
    loaded(overrides, load(ttl={"seconds": 5}, skip_warmup=True, allow_download=True))
    loaded(overrides, load(adapter="/x", pin=False))
    assert requests(overrides) == [load(pin=True, ttl={"seconds": 5}), load(adapter="/x", pin=False)]


def test_a_choice_counts_for_the_name_under_which_the_model_was_loaded() -> None:
    """That is how the next engine will know it; the name that was asked for may be another form of it."""
    overrides = ModelOverrides()
    overrides.apply(ipc.Command(load=load("./a", pin=True)), ["/models/a"])
    assert requests(overrides) == [load("/models/a", pin=True)]


def test_dropped_weights_lose_their_pin_under_any_name() -> None:
    overrides = ModelOverrides()
    for name in ("a", "copy", "other"):
        loaded(overrides, load(name, pin=True, revision="v1"))
    dropped(overrides, model=pb.ModelTarget(model="a", prefixes=True))
    dropped(overrides, model=pb.ModelTarget(model="a", weights=True), dry_run=True)
    dropped(overrides, ["a"], prefix=pb.PrefixTarget(model="a"))
    assert all(request.pin for request in requests(overrides))
    dropped(overrides, ["a", "copy"], model=pb.ModelTarget(model="a", weights=True))
    assert [request.pin for request in requests(overrides)] == [False, False, True]
    dropped(overrides, all=pb.AllTarget(weights=True))
    assert [(request.pin, request.revision) for request in requests(overrides)] == [(False, "v1")] * 3


def test_only_the_latest_model_overrides_are_kept() -> None:
    overrides = ModelOverrides()
    for number in range(MOST_CHOICES + 10):
        loaded(overrides, load(str(number)))
    names = [request.model for request in requests(overrides)]
    assert names == [str(number) for number in range(10, MOST_CHOICES + 10)]


def test_replayed_override_holds_until_done_or_dropped() -> None:
    overrides = ModelOverrides()
    recalled(overrides, load(pin=True, ttl={"seconds": 5}))
    recalled(overrides, load("b", adapter="/x", pin=False))
    assert (overrides.pin("a", ""), overrides.ttl("a", "")) == (True, 5.0)
    assert (overrides.pin("b", "/x"), overrides.ttl("b", "/x"), overrides.pin("b", "")) == (False, None, None)
    overrides.done("a", "")
    dropped(overrides, model=pb.ModelTarget(model="b", weights=True))
    assert (overrides.pin("a", ""), overrides.pin("b", "/x")) == (None, None)
    recalled(overrides, load(pin=True))
    dropped(overrides, all=pb.AllTarget(weights=True))
    assert overrides.pin("a", "") is None


def test_both_processes_come_to_the_same_by_the_same_commands() -> None:
    """An engine that is told everything anew chooses as one that saw every call."""
    parent, engine = ModelOverrides(), ModelOverrides()
    for number, pin in enumerate((True, False, True)):
        loaded(parent, load(str(number), pin=pin, ttl={"seconds": number}))
    for command in parent.recalls():
        engine.apply(command)
    for overrides in (parent, engine):
        dropped(overrides, model=pb.ModelTarget(model="0", weights=True))
    assert parent.recalls() == engine.recalls()
    assert [engine.pin(str(number), "") for number in range(3)] == [None, False, True]


def test_context_length_stays_when_the_load_is_done() -> None:
    """The model cache does not hold it, so it outlives an eviction; dropped weights take it back."""
    engine = ModelOverrides()
    recalled(engine, load(pin=True, ttl={"seconds": 5}, context_length=64))
    engine.done("a", "")
    assert (engine.pin("a", ""), engine.ttl("a", ""), engine.context_length("a", "")) == (None, None, 64)
    engine.choose_context_length("a", "", 32)
    engine.choose_context_length("b", "/x", 16)
    engine.done("a", "")
    chosen = [engine.context_length(*key) for key in (("a", ""), ("b", "/x"), ("b", ""))]
    assert chosen == [32, 16, None]
    dropped(engine, model=pb.ModelTarget(model="a", weights=True))
    assert (engine.context_length("a", ""), engine.context_length("b", "/x")) == (None, 16)


def test_context_length_is_told_to_a_new_engine() -> None:
    parent = ModelOverrides()
    loaded(parent, load(context_length=64))
    loaded(parent, load(pin=True))
    assert requests(parent) == [load(pin=True, context_length=64)]
