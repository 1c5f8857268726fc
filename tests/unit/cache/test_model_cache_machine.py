"""In any order of calls, the model cache agrees with itself and with a simple model of it."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daemon.cache.load import Ticket
from daemon.shared.errors import SidecarError
from tests.support.builders import FakeModels, FakeSource, Weights

NAMES = st.sampled_from("abcdef")


class ModelCacheMachine(RuleBasedStateMachine):
    """Random calls. Each ticket is kept until it is cancelled, and each lease must have its own model."""

    def __init__(self) -> None:
        super().__init__()
        self.models = FakeModels()
        self.tickets: list[Ticket[Weights]] = []

    @initialize(
        budget=st.sampled_from([0, 100, 250, 1000]),
        max_models=st.integers(1, 3),
        ttl=st.sampled_from([0.0, 10.0, 100.0]),
        pressure=st.booleans(),
    )
    def start(self, budget: int, max_models: int, ttl: float, pressure: bool) -> None:
        """Choose the limits."""
        self.models = FakeModels(budget, max_models=max_models, ttl=ttl, evict_on_memory_pressure=pressure)

    @rule(
        name=NAMES,
        size=st.integers(1, 150),
        excess=st.sampled_from([0, 0, 0, -20, 60]),
        slices=st.integers(0, 3),
        fails_in=st.sampled_from([None, None, None, 0, 1]),
        told=st.booleans(),
        pin=st.sampled_from([None, None, True, False]),
        ttl=st.sampled_from([None, None, 0.0, 5.0]),
    )
    def ask(
        self,
        name: str,
        size: int,
        excess: int,
        slices: int,
        fails_in: int | None,
        told: bool,
        pin: bool | None,
        ttl: float | None,
    ) -> None:
        """Ask for a model."""
        actual = max(0, size + excess)
        source = FakeSource(name, size, actual, slices, fails_in, actual if told else None)
        try:
            self.tickets.append(self.models.cache.get_or_load(source, pin=pin, ttl=ttl))
        except SidecarError:
            assert 0 < self.models.cache.limits.budget_bytes < size

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        """Do slices of a load."""
        for _ in range(steps):
            self.models.cache.step()

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Stop waiting, or give a lease back."""
        ticket = self.tickets.pop(data.draw(st.integers(0, len(self.tickets) - 1)))
        ticket.cancel()
        ticket.cancel()

    @rule(seconds=st.sampled_from([0.0, 1.0, 10.0, 100.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.models.clock.pass_(seconds)

    @rule(name=NAMES)
    def invalidate(self, name: str) -> None:
        """Drop one model."""
        present = name in self.cached
        assert self.models.cache.invalidate(f"key of {name}") is present
        assert not self.models.cache.contains(f"key of {name}")

    @rule()
    def clear(self) -> None:
        """Drop all models."""
        self.models.cache.clear()
        assert self.models.cache.is_empty

    @rule()
    def evict_stale(self) -> None:
        """Drop stale models."""
        before = len(self.models.cache)
        gone = self.models.cache.evict_stale()
        assert len(self.models.cache) == before - gone

    @rule(nbytes=st.integers(0, 300))
    def shed(self, nbytes: int) -> None:
        """Free memory for another part of the engine."""
        cache = self.models.cache
        before = cache.total_bytes
        freed = cache.shed(nbytes)
        assert cache.total_bytes == before - freed
        if cache.limits.evict_on_memory_pressure:
            assert freed >= nbytes or not any(entry.evictable for entry in cache.entries())
        else:
            assert freed == 0

    @property
    def cached(self) -> set[str]:
        """Names of the models that are cached."""
        return {entry.name for entry in self.models.cache.entries() if not entry.draining}

    @invariant()
    def is_sound(self) -> None:
        """Check all counts."""
        self.models.cache.check_integrity()

    @invariant()
    def leases_show_their_model(self) -> None:
        """Each lease has its model, and each entry counts its open leases."""
        open_leases = [ticket.lease for ticket in self.tickets if ticket.lease is not None]
        assert all(lease.model.name == lease.entry.name for lease in open_leases)
        assert sum(entry.leases for entry in self.models.cache.entries()) == len(open_leases)

    @invariant()
    def every_caller_waits_or_is_done(self) -> None:
        """Each waiting ticket has a load."""
        loading = {source.name for source, _ in self.models.cache.loading()}
        assert {ticket.name for ticket in self.tickets if not ticket.done} == loading

    def teardown(self) -> None:
        """End all uses and loads: no memory is left in use."""
        for ticket in self.tickets:
            ticket.cancel()
        self.models.cache.clear()
        self.models.cache.check_integrity()
        assert not self.models.cache.busy
        assert self.models.cache.total_bytes == 0


ModelCacheMachine.TestCase.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, print_blob=True, derandomize=False
)
TestModelCacheMachine = ModelCacheMachine.TestCase
