"""The error of a model that finds no room names the limit that is reached, and what takes the room."""

from __future__ import annotations

from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import FakeModels


def test_budget_in_use_names_holders_and_retry_delay() -> None:
    models = FakeModels(budget=300)
    models.use("idle", size=50)
    leased = models.load("busy")
    models.use("kept", size=120, pin=True)

    error = models.load("c", size=90).error

    assert isinstance(error, SidecarError)
    assert error.metadata == {"needed_bytes": "90", "budget_bytes": "300", "busy": "100", "kept": "120"}
    assert error.message == (
        "no room for c (90 B): model_cache_mb allows 300 B, and in use or pinned are kept (120 B), busy (100 B); "
        "try again shortly, unpin a model, or raise model_cache_mb"
    )
    assert error.retry_after is not None
    leased.cancel()
    models.use("c", size=90)


def test_leased_model_slot_refuses_a_new_load() -> None:
    models = FakeModels(max_models=1)
    leased = models.load("busy", size=1)

    error = models.load("c", size=1).error

    assert isinstance(error, SidecarError)
    assert error.reason is Reason.BUDGET_IN_USE
    assert "max_models allows 1 model, and in use or pinned are busy (1 B)" in error.message
    assert error.message.endswith("raise max_models")
    leased.cancel()


def test_budget_in_use_tells_a_dropped_copy_from_a_loaded_model() -> None:
    """Else a model seems to be in its own way: after an Invalidate, its old copy is used to the end."""
    models = FakeModels(budget=100)
    leased = models.load("a")
    models.cache.invalidate("key of a")

    error = models.load("a").error

    assert isinstance(error, SidecarError)
    assert "in use or pinned are a (100 B, dropped while in use);" in error.message
    leased.cancel()
