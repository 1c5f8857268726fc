"""A single load runs at a time, in slices. Calls for the same model share its progress, its end and its failure."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Generator

import pytest
from structlog.contextvars import get_contextvars

from daemon.cache.limits import ModelLimits
from daemon.cache.load import Loaded, LoadOutcome, Progress, Stage, Ticket
from daemon.cache.model_cache import ModelCache
from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import Clock, FakeModels, FakeSource, Weights


def _stages(models: FakeModels, ticket: Ticket[Weights]) -> list[tuple[Stage, int]]:
    seen = []
    while not ticket.done:
        seen.append((ticket.progress.stage, ticket.progress.bytes_done))
        models.cache.step()
    return seen


def test_single_flight_callers_share_one_load() -> None:
    models = FakeModels()
    tickets = [models.ask("a") for _ in range(5)]
    models.finish()

    assert models.loader.begun == [("a", False)]
    assert {ticket.outcome for ticket in tickets} == {LoadOutcome.LOADED}
    assert len({id(ticket.lease.model) for ticket in tickets if ticket.lease}) == 1
    (entry,) = models.cache.entries()
    assert (entry.leases, entry.use_count) == (5, 5)
    assert models.cache.counters.misses == 5


def test_single_flight_admits_callers_during_a_load() -> None:
    models = FakeModels()
    early = models.ask("a")
    models.cache.step()
    models.cache.step()
    late = models.ask("a")

    assert late.progress == early.progress
    assert late.progress.bytes_done == 50
    models.finish()
    assert late.done
    assert len(models.loader.begun) == 1


def test_load_progress_runs_from_queued_to_loaded() -> None:
    models = FakeModels()
    ticket = models.ask("a")

    assert _stages(models, ticket) == [
        (Stage.QUEUED, 0),
        (Stage.LOADING, 0),
        (Stage.LOADING, 50),
        (Stage.LOADING, 100),
    ]


def test_loads_run_one_at_a_time_in_request_order() -> None:
    models = FakeModels()
    first, second = models.ask("a"), models.ask("b")
    models.cache.step()

    assert [(source.name, progress.stage) for source, progress in models.cache.loading()] == [
        ("a", Stage.LOADING),
        ("b", Stage.QUEUED),
    ]
    while not first.done:
        models.cache.step()
    assert [name for name, _ in models.loader.begun] == ["a"]
    models.finish()
    assert second.done
    assert models.cache.loading() == []


def test_first_caller_decides_on_the_warm_up() -> None:
    models = FakeModels()
    models.ask("a", skip_warmup=True)
    models.ask("a")
    models.finish()

    assert models.loader.begun == [("a", True)]


def test_load_time_excludes_the_queue() -> None:
    models = FakeModels()
    models.ask("a")
    models.clock.pass_(100)
    models.cache.step()
    models.clock.pass_(7)
    models.finish()

    (entry,) = models.cache.entries()
    assert entry.load_time == 7.0


def test_cancelled_caller_leaves_the_load_to_others() -> None:
    models = FakeModels()
    patient, hasty = models.ask("a"), models.ask("a")
    models.cache.step()
    hasty.cancel()
    models.finish()

    assert patient.outcome is LoadOutcome.LOADED
    assert not hasty.done
    (entry,) = models.cache.entries()
    assert entry.leases == 1


def test_last_cancelled_caller_aborts_the_load() -> None:
    models = FakeModels()
    tickets = [models.ask("a"), models.ask("a")]
    models.cache.step()
    models.cache.step()
    for ticket in tickets:
        ticket.cancel()

    assert models.loader.abandoned == ["a"]
    assert models.frees == 1
    assert not models.cache.busy
    assert models.cache.total_bytes == 0
    models.cache.check_integrity()


def test_queued_load_that_is_cancelled_never_begins() -> None:
    models = FakeModels()
    models.ask("a")
    models.ask("b").cancel()
    models.finish()

    assert models.loader.begun == [("a", False)]
    assert models.frees == 0


def test_cancelling_a_load_twice_is_harmless() -> None:
    models = FakeModels()
    waiting = models.ask("a")
    waiting.cancel()
    waiting.cancel()
    ready = models.load("b")
    ready.cancel()
    ready.cancel()
    failed = models.cache.get_or_load(FakeSource("c", fails_in=0))
    models.finish()
    failed.cancel()

    assert isinstance(failed.error, SidecarError)
    models.cache.check_integrity()


def test_a_cancelled_model_can_be_asked_for_again() -> None:
    models = FakeModels()
    models.ask("a").cancel()

    assert models.load("a").outcome is LoadOutcome.LOADED


def test_failed_load_is_not_cached_and_reaches_callers() -> None:
    models = FakeModels()
    broken = FakeSource("a", fails_in=1)
    tickets = [models.cache.get_or_load(broken) for _ in range(3)]
    models.finish()

    errors = {ticket.error for ticket in tickets}
    assert len(errors) == 1
    (error,) = errors
    assert isinstance(error, SidecarError)
    assert error.reason is Reason.MODEL_CORRUPT
    assert models.cache.is_empty
    assert models.cache.total_bytes == 0
    assert models.frees == 1


def test_load_is_retried_after_a_failure() -> None:
    models = FakeModels()
    broken = models.cache.get_or_load(FakeSource("a", fails_in=0))
    next_one = models.ask("b")
    models.finish()

    assert broken.error is not None
    assert next_one.outcome is LoadOutcome.LOADED
    assert models.use("a").outcome is LoadOutcome.LOADED


def test_load_without_room_spares_the_load_queue() -> None:
    models = FakeModels(budget=200)
    held = models.load("a")
    refused, small = models.ask("b", size=150), models.ask("c", size=50)
    models.finish()

    assert isinstance(refused.error, SidecarError)
    assert refused.error.reason is Reason.BUDGET_IN_USE
    assert small.outcome is LoadOutcome.LOADED
    held.cancel()


def test_eviction_happens_when_a_load_begins() -> None:
    models = FakeModels(budget=200)
    held = models.load("a", size=150)
    waiting = models.ask("b", size=100)
    held.cancel()
    models.finish()

    assert waiting.outcome is LoadOutcome.LOADED
    assert waiting.evicted == ("a",)


class _BrokenLoader:
    """A load that fails with half a model in its local variables, three frames and two causes deep."""

    def __init__(self) -> None:
        self.models: list[weakref.ref[Weights]] = []

    def __call__(self, source: FakeSource, options: object) -> Generator[Progress, None, Loaded[Weights]]:
        model = self._build(source)
        yield Progress(Stage.LOADING)
        try:
            self._parse(model)
        except ValueError as error:
            raise SidecarError(Reason.MODEL_CORRUPT, "broken") from error
        return Loaded(model, 1)

    def _build(self, source: FakeSource) -> Weights:
        model = Weights(source.name)
        self.models.append(weakref.ref(model))
        return model

    def _parse(self, model: Weights) -> None:
        try:
            raise KeyError(model.name)
        except KeyError:
            raise ValueError(model.name) from None


def test_failed_load_frees_memory_before_its_error() -> None:
    loader = _BrokenLoader()
    cache: ModelCache[FakeSource, Weights] = ModelCache(ModelLimits(1000), loader, Clock())
    ticket = cache.get_or_load(FakeSource("a"))
    while cache.busy:
        cache.step()

    gc.collect()
    assert ticket.error is not None
    assert ticket.error.__cause__ is not None
    assert [model() for model in loader.models] == [None]


def test_an_abandoned_load_keeps_no_memory() -> None:
    loader = _BrokenLoader()
    cache: ModelCache[FakeSource, Weights] = ModelCache(ModelLimits(1000), loader, Clock())
    ticket = cache.get_or_load(FakeSource("a"))
    cache.step()
    cache.step()
    ticket.cancel()

    assert [model() for model in loader.models] == [None]


@pytest.mark.parametrize("pin", [None, True, False])
def test_pin_and_ttl_of_any_caller_apply_to_the_model(pin: bool | None) -> None:
    models = FakeModels(ttl=60.0)
    models.ask("a", pin=pin)
    models.ask("a", ttl=5.0)
    models.finish()

    (entry,) = models.cache.entries()
    assert entry.pinned is bool(pin)
    assert entry.ttl == 5.0


def test_log_lines_of_a_load_name_its_model() -> None:
    """A warning of a self-test or of a file is of no use without the model; a line of other work names none."""
    named: list[object] = []

    def logs(source: FakeSource, skip_warmup: bool) -> Generator[Progress, None, Loaded[Weights]]:
        named.append(get_contextvars().get("model"))
        yield Progress(Stage.LOADING)
        named.append(get_contextvars().get("model"))
        return Loaded(Weights(source.name), source.size_bytes)

    cache: ModelCache[FakeSource, Weights] = ModelCache(ModelLimits(1000), logs, Clock(), lambda: None)
    cache.get_or_load(FakeSource("a", 100))
    cache.get_or_load(FakeSource("b", 100))
    while cache.busy:
        cache.step()
        assert "model" not in get_contextvars()
    assert named == [*"aabb"]
