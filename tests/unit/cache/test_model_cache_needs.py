"""The real size of a model is known when its module is built: room is made then, or the load fails."""

from __future__ import annotations

from daemon.cache.load import LoadOutcome, Ticket
from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import FakeModels, FakeSource, Weights


def _ask(models: FakeModels, name: str, size: int, needs: int) -> Ticket[Weights]:
    models.clock.pass_(1)
    return models.cache.get_or_load(FakeSource(name, size, needs, needs=needs))


def _refusal(ticket: Ticket[Weights]) -> SidecarError:
    assert isinstance(ticket.error, SidecarError)
    return ticket.error


def test_model_that_needs_too_much_memory_is_refused() -> None:
    models = FakeModels(1000)
    models.use("idle", 400)
    ticket = _ask(models, "a", 10, 1001)
    models.finish()

    error = _refusal(ticket)
    assert error.reason is Reason.MODEL_EXCEEDS_BUDGET
    assert error.metadata == {"needed_bytes": "1001", "budget_bytes": "1000"}
    assert models.loader.granted == []
    assert models.loader.abandoned == ["a"]
    assert models.names == ["idle"], "nothing was evicted for it"
    assert models.cache.total_bytes == 400


def test_eviction_covers_estimated_then_real_needs() -> None:
    models = FakeModels(1000)
    for name in "abc":
        models.use(name, 300)
    ticket = _ask(models, "large", 200, 900)
    while not ticket.done:
        models.cache.step()
        models.cache.check_integrity()
        if models.loader.granted:
            assert models.cache.total_bytes <= 1000

    assert models.names == ["large"]
    assert ticket.evicted == ("a", "b", "c")
    assert ticket.outcome is LoadOutcome.LOADED


def test_model_is_refused_while_memory_is_leased() -> None:
    models = FakeModels(1000)
    models.load("used", 500)
    ticket = _ask(models, "large", 200, 600)
    models.finish()

    error = _refusal(ticket)
    assert error.reason is Reason.BUDGET_IN_USE
    assert error.metadata["needed_bytes"] == "600"
    assert models.names == ["used"]
    assert models.loader.abandoned == ["large"]


def test_model_counts_with_its_need_not_its_file_size() -> None:
    models = FakeModels(1000)
    _ask(models, "a", 900, 300)
    models.cache.step()
    assert models.cache.total_bytes == 900
    models.cache.step()
    assert models.cache.total_bytes == 300
    models.finish()
    assert models.cache.total_bytes == 300


def test_refused_load_reaches_all_callers_of_the_queue() -> None:
    models = FakeModels(1000)
    refused = [_ask(models, "a", 10, 5000) for _ in range(3)]
    following = models.ask("b")
    models.finish()

    assert [_refusal(ticket).reason for ticket in refused] == [Reason.MODEL_EXCEEDS_BUDGET] * 3
    assert following.outcome is LoadOutcome.LOADED


def test_without_a_budget_memory_limits_the_models() -> None:
    models = FakeModels(0, memory_bytes=1000)
    ticket = _ask(models, "a", 10, 1001)
    fits = _ask(models, "b", 10, 1000)
    models.finish()

    assert _refusal(ticket).reason is Reason.MODEL_EXCEEDS_BUDGET
    assert "memory allows 1000" in _refusal(ticket).message
    assert fits.outcome is LoadOutcome.UNCACHED
