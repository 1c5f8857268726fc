"""A lease keeps its model usable after eviction, invalidation and expiry. Its memory is freed with the last lease."""

from __future__ import annotations

import gc
import weakref

import pytest

from daemon.cache.load import LoadOutcome
from tests.support.builders import FakeModels


def test_invalidated_model_lives_until_its_last_lease() -> None:
    models = FakeModels()
    one, two = models.load("a"), models.load("a")
    assert one.lease is not None
    assert two.lease is not None
    model = weakref.ref(one.lease.model)

    assert models.cache.invalidate("key of a")

    assert models.cache.is_empty
    assert models.cache.total_bytes == 100
    one.cancel()
    assert two.lease.model.name == "a"
    frees = models.frees
    two.cancel()
    gc.collect()
    assert model() is None
    assert models.frees == frees + 1
    assert models.cache.total_bytes == 0


def test_split_lease_ends_with_its_last_part() -> None:
    """Texts of one call hold the model together; a part that is released twice is a mistake."""
    models = FakeModels()
    lease = models.load("a").lease
    assert lease is not None
    parts = lease.split(3)

    for part in parts[:2]:
        part.release()
    assert models.cache.entries()[0].leases == 1
    with pytest.raises(RuntimeError):
        parts[0].release()
    parts[2].release()
    assert models.cache.entries()[0].leases == 0
    models.cache.check_integrity()


def test_draining_model_is_listed_until_it_is_gone() -> None:
    models = FakeModels(budget=150)
    ticket = models.load("a")
    models.cache.clear()

    assert [(entry.name, entry.draining) for entry in models.cache.entries()] == [("a", True)]
    assert models.load("b").error is not None

    ticket.cancel()
    assert models.names == []
    models.use("b")


def test_draining_model_is_loaded_anew_on_request() -> None:
    models = FakeModels()
    old = models.load("a")
    models.cache.invalidate("key of a")

    new = models.load("a")

    assert new.outcome is LoadOutcome.LOADED
    assert new.lease is not None
    assert old.lease is not None
    assert new.lease.model is not old.lease.model
    old.cancel()
    assert models.cache.contains("key of a")
    new.cancel()


def test_invalidation_removes_a_pinned_model() -> None:
    models = FakeModels()
    models.use("a", pin=True)
    models.clock.pass_(1e9)
    assert models.cache.evict_stale() == 0

    assert models.cache.invalidate("key of a")

    assert models.cache.is_empty


def test_a_lease_cannot_be_released_twice() -> None:
    models = FakeModels()
    lease = models.load("a").lease
    assert lease is not None
    lease.release()

    with pytest.raises(RuntimeError, match="twice"):
        lease.release()

    models.cache.check_integrity()


def test_leased_model_never_expires_with_zero_ttl() -> None:
    models = FakeModels(ttl=0.0)
    ticket = models.load("a")
    assert models.cache.contains("key of a")
    assert models.load("a").outcome is LoadOutcome.HIT

    ticket.cancel()

    assert models.cache.contains("key of a")  # the second lease is still open


def test_models_are_listed_most_recently_used_first() -> None:
    models = FakeModels()
    for name in ("a", "b", "c", "a"):
        models.use(name)

    assert models.names == ["a", "c", "b"]


def test_cache_counters_use_the_injected_clock() -> None:
    models = FakeModels()
    assert models.cache.counters.hit_rate == 0.0
    assert models.cache.oldest_entry_age is None
    models.use("a")
    models.clock.pass_(5)
    models.use("b")
    models.use("a")
    models.use("a")

    counters = models.cache.counters
    assert (counters.hits, counters.misses, counters.evictions) == (2, 2, 0)
    assert counters.hit_rate == 0.5
    assert models.cache.oldest_entry_age == 8.0
    (newest, _) = models.cache.entries()
    assert newest.use_count == 3
    assert len(models.cache) == 2


def test_eviction_counter_excludes_invalidations() -> None:
    models = FakeModels(budget=100, ttl=60.0)
    models.use("a")
    models.use("b")
    models.clock.pass_(60)
    models.cache.evict_stale()
    models.use("c")
    models.cache.invalidate("key of c")

    assert models.cache.counters.evictions == 2


# The cases of the seed caches, each a test.


def test_seed_cache_hit_returns_the_same_handle() -> None:
    models = FakeModels(budget=1024)
    one, two = models.load("a"), models.load("a")

    assert one.lease is not None
    assert two.lease is not None
    assert one.lease.model is two.lease.model


def test_seed_evicts_lru_when_over_budget() -> None:
    models = FakeModels(budget=250)
    for name in ("a", "b", "a", "c"):
        models.use(name)

    assert (len(models.cache), models.cache.total_bytes, models.cache.limits.budget_bytes) == (2, 200, 250)
    assert not models.cache.contains("key of b")


def test_seed_zero_budget_disables_cache_with_a_handle() -> None:
    models = FakeModels(budget=0)
    one, two = models.load("a"), models.load("a")

    assert one.lease is not None
    assert two.lease is not None
    assert one.lease.model is not two.lease.model
    assert len(models.loader.begun) == 2


def test_seed_invalidate_removes_key_or_does_nothing() -> None:
    models = FakeModels()
    models.use("a")

    assert models.cache.invalidate("key of a")
    assert models.cache.is_empty
    assert not models.cache.invalidate("key of a")


def test_seed_manual_eviction_reports_a_known_key() -> None:
    models = FakeModels()
    models.use("c")
    assert models.cache.contains("key of c")

    assert models.cache.invalidate("key of c")

    assert not models.cache.contains("key of c")
    assert len(models.cache) == 0
    assert not models.cache.invalidate("no such key")


def test_clear_contains_len_and_is_empty_agree() -> None:
    models = FakeModels()
    for name in "ab":
        models.use(name)
    held = models.load("c")
    assert (len(models.cache), models.cache.is_empty, models.cache.contains("key of b")) == (3, False, True)

    models.cache.clear()

    assert (len(models.cache), models.cache.is_empty) == (0, True)
    assert not any(models.cache.contains(f"key of {name}") for name in "abc")
    assert held.lease is not None
    assert held.lease.model.name == "c"
    models.cache.clear()


def test_seed_entry_age_starts_at_zero() -> None:
    models = FakeModels()
    models.load("a")

    assert models.cache.oldest_entry_age == 0.0


def test_seed_entry_is_stale_at_once_with_a_zero_ttl() -> None:
    models = FakeModels(ttl=3600.0)
    models.use("a")
    (entry,) = models.cache.entries()
    assert not entry.is_stale(models.clock())

    models.use("a", ttl=0.0)

    assert entry.is_stale(models.clock())


def test_seed_miss_calls_the_loader_and_hit_skips_it() -> None:
    models = FakeModels()
    models.use("a")
    assert (models.cache.counters.misses, models.cache.counters.hits, len(models.cache)) == (1, 0, 1)

    models.use("a")

    assert (models.cache.counters.misses, models.cache.counters.hits) == (1, 1)
    assert len(models.loader.begun) == 1


def test_seed_evict_stale_returns_the_evicted_count() -> None:
    models = FakeModels(ttl=0.0)
    models.use("a")

    assert models.cache.evict_stale() == 1
    assert len(models.cache) == 0


def test_seed_hit_rate_is_the_share_of_hits() -> None:
    models = FakeModels()
    assert models.cache.counters.hit_rate == 0.0
    for _ in range(3):
        models.use("a")

    assert models.cache.counters.hit_rate == pytest.approx(2 / 3)


def test_seed_stats_snapshot() -> None:
    models = FakeModels()
    models.use("a", size=1024 // 2)

    cache = models.cache
    assert (len(cache), cache.counters.misses, cache.counters.hits, cache.total_bytes) == (1, 1, 0, 512)
    assert cache.oldest_entry_age is not None
