"""The model cache keeps to its budget, slots and idle times, and never evicts a model in use."""

from __future__ import annotations

import gc
import weakref

import pytest

from daemon.cache.load import LoadOutcome
from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import FakeModels, FakeSource


def test_get_or_load_runs_the_loader_on_a_miss_only() -> None:
    models = FakeModels()

    first, second = models.use("a"), models.use("a")

    assert [first.outcome, second.outcome] == [LoadOutcome.LOADED, LoadOutcome.HIT]
    assert models.loader.begun == [("a", False)]


def test_budget_is_kept_by_lru_eviction() -> None:
    models = FakeModels(budget=250)
    for name in ("a", "b", "a", "c"):
        models.use(name)

    assert models.names == ["c", "a"]
    assert models.cache.total_bytes == 200


def test_zero_budget_loads_and_frees_on_every_call() -> None:
    models = FakeModels(budget=0)

    ticket = models.load("a")
    assert ticket.outcome is LoadOutcome.UNCACHED
    assert ticket.lease is not None
    assert ticket.lease.model.name == "a"
    assert models.cache.total_bytes == 100
    ticket.cancel()

    assert models.cache.is_empty
    assert models.cache.total_bytes == 0
    assert models.names == []


def test_zero_budget_shares_no_load_between_callers() -> None:
    models = FakeModels(budget=0)
    one, two = models.ask("a"), models.ask("a")
    models.finish()

    assert one.lease is not None
    assert two.lease is not None
    assert one.lease.model is not two.lease.model
    assert [entry.key for entry in models.cache.entries()] == ["key of a"] * 2


def test_model_size_turns_from_estimate_to_actual() -> None:
    models = FakeModels()
    ticket = models.cache.get_or_load(FakeSource("a", 100, actual_bytes=70))
    models.cache.step()
    assert models.cache.total_bytes == 100

    models.finish()

    assert models.cache.total_bytes == 70
    ticket.cancel()


def test_underestimated_model_evicts_others_not_itself() -> None:
    models = FakeModels(budget=200)
    models.use("a")
    big = models.cache.get_or_load(FakeSource("b", 100, actual_bytes=300))
    models.finish()
    assert models.names == ["b"]
    assert big.evicted == ("a",)

    big.cancel()

    assert models.names == ["b"]


def test_budget_is_restored_when_leases_end() -> None:
    models = FakeModels(budget=200)
    first = models.load("a")
    second = models.cache.get_or_load(FakeSource("b", 100, actual_bytes=150))
    models.finish()
    assert models.cache.total_bytes == 250

    first.cancel()
    second.cancel()

    assert models.names == ["b"]
    models.cache.check_integrity()


def test_model_slots_are_limited_whatever_the_sizes() -> None:
    models = FakeModels(max_models=2)
    for name in ("a", "b", "c"):
        models.use(name, size=1)

    assert models.names == ["c", "b"]


def test_expired_ttl_makes_an_idle_model_reload() -> None:
    models = FakeModels(ttl=60.0)
    models.use("a")
    models.clock.pass_(60)

    assert not models.cache.contains("key of a")
    assert models.use("a").outcome is LoadOutcome.LOADED
    assert models.cache.contains("key of a")


def test_ttl_counts_from_the_end_of_the_last_use() -> None:
    models = FakeModels(ttl=60.0)
    ticket = models.load("a")
    models.clock.pass_(1000)
    assert models.cache.contains("key of a")
    assert models.cache.evict_stale() == 0

    ticket.cancel()
    models.clock.pass_(59)

    assert models.cache.contains("key of a")


def test_own_ttl_outranks_the_default() -> None:
    models = FakeModels(ttl=60.0)
    models.use("a", ttl=600.0)
    models.use("a")
    models.clock.pass_(100)
    assert models.cache.contains("key of a")

    models.use("a", ttl=10.0)
    models.clock.pass_(10)

    assert not models.cache.contains("key of a")


def test_expires_in_is_unknown_while_leased_or_pinned() -> None:
    models = FakeModels(ttl=60.0)
    lease = models.load("a")
    (entry,) = models.cache.entries()
    assert entry.expires_in(models.clock()) is None

    lease.cancel()
    models.clock.pass_(20)
    assert entry.expires_in(models.clock()) == 40.0

    models.use("a", pin=True)
    assert entry.expires_in(models.clock()) is None


def test_eviction_precedes_the_read_of_a_new_model() -> None:
    models = FakeModels(budget=250)
    models.use("a")
    models.use("b")
    newcomer = models.ask("c")

    models.cache.step()

    assert models.loader.begun[-1] == ("c", False)
    assert models.names == ["b"]
    assert newcomer.progress.evicting == ("a",)
    models.finish()
    assert newcomer.evicted == ("a",)
    newcomer.cancel()


def test_eviction_takes_as_few_models_as_needed() -> None:
    models = FakeModels(budget=300)
    for name in ("a", "b", "c"):
        models.use(name)

    models.use("d", size=150)

    assert models.names == ["d", "c"]


def test_eviction_spares_leased_and_pinned_models() -> None:
    models = FakeModels(budget=300)
    leased = models.load("a")
    models.use("b", pin=True)
    models.use("c")

    models.use("d")

    assert sorted(models.names) == ["a", "b", "d"]
    leased.cancel()


def test_eviction_is_lru_even_with_a_stopped_clock() -> None:
    models = FakeModels(budget=200)
    for name in ("a", "b", "a", "c"):
        ticket = models.cache.get_or_load(FakeSource(name))
        models.finish()
        ticket.cancel()

    assert models.names == ["c", "a"]


def test_impossible_load_evicts_nothing() -> None:
    models = FakeModels(budget=300)
    models.use("idle")
    leased = models.load("busy", size=150)

    refused = models.load("c", size=200)

    assert isinstance(refused.error, SidecarError)
    assert refused.error.reason is Reason.BUDGET_IN_USE
    assert sorted(models.names) == ["busy", "idle"]
    leased.cancel()


def test_oversized_model_is_refused_without_eviction() -> None:
    models = FakeModels(budget=300)
    models.use("a")

    with pytest.raises(SidecarError) as caught:
        models.ask("b", size=301)

    assert caught.value.reason is Reason.MODEL_EXCEEDS_BUDGET
    assert caught.value.metadata == {"needed_bytes": "301", "budget_bytes": "300"}
    assert models.names == ["a"]
    assert not models.cache.busy


def test_a_model_as_large_as_the_budget_fits() -> None:
    models = FakeModels(budget=300)
    models.use("a")
    models.use("b", size=300)

    assert models.names == ["b"]


def test_unpinned_model_can_be_evicted() -> None:
    models = FakeModels(budget=100)
    models.use("a", pin=True)
    models.use("a")
    assert isinstance(models.load("b").error, SidecarError)

    models.use("a", pin=False)

    assert models.use("b").outcome is LoadOutcome.LOADED


def test_changed_weights_are_a_new_model_in_the_cache() -> None:
    models = FakeModels(ttl=60.0)
    models.use("a of yesterday")
    models.clock.pass_(30)
    models.use("a of today")
    models.clock.pass_(30)

    assert models.cache.evict_stale() == 1
    assert models.names == ["a of today"]


def test_memory_pressure_evicts_enough_idle_models() -> None:
    models = FakeModels()
    leased = models.load("busy")
    for name in ("a", "b", "c"):
        models.use(name)

    assert models.cache.shed(150) == 200

    assert models.names == ["c", "busy"]
    assert models.cache.shed(0) == 0
    assert models.cache.shed(10_000) == 100
    leased.cancel()


def test_memory_pressure_is_ignored_when_disabled() -> None:
    models = FakeModels(evict_on_memory_pressure=False)
    models.use("a")

    assert models.cache.shed(1) == 0
    assert models.names == ["a"]


@pytest.mark.parametrize("drop", ["evict", "invalidate", "clear", "expire", "shed"])
def test_dropped_model_is_freed_despite_old_references(drop: str) -> None:
    models = FakeModels(budget=100, ttl=60.0)
    ticket = models.load("a")
    lease = ticket.lease
    assert lease is not None
    model = weakref.ref(lease.model)
    ticket.cancel()
    frees = models.frees

    if drop == "evict":
        models.use("b")
    elif drop == "invalidate":
        assert models.cache.invalidate("key of a")
    elif drop == "clear":
        models.cache.clear()
    elif drop == "expire":
        models.clock.pass_(60)
        models.cache.evict_stale()
    else:
        models.cache.shed(1)

    gc.collect()
    assert model() is None
    assert models.frees > frees
    assert lease.entry.name == "a"
