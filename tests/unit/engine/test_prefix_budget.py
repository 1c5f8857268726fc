"""The budget of cached prefixes follows the machine, its loads and its requests; idle prefixes go."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.engine.memory.engine_memory import EngineMemory
from daemon.engine.memory.memory_budget import MemoryBudget, Use, memory_limit
from daemon.engine.memory.prefix_budget import PrefixBudget
from daemon.kv.evictor import PrefixLimits
from daemon.kv.idle import MOST_AT_ONCE, IdleRelease
from daemon.kv.prefix_cache import PrefixCache
from daemon.kv.spec import Resume
from tests.unit.kv.fake_kv import BLOCK_BYTES, PLAIN, FakeKV, fake_copy

GB = 1 << 30
MACHINES = (8, 16, 64, 512)
"""Memory in GB."""

WORKING_SET = 0.75
"""Share of a Mac's memory that Metal recommends to use at most."""


def budget_of(memory: int, chosen: int | None = None) -> PrefixBudget:
    """Return the budget of a Mac with so many bytes."""
    return PrefixBudget.of(chosen, memory, MemoryBudget(memory_limit(int(WORKING_SET * memory))))


class Machine:
    """
    The memory of an engine whose weights and requests a test chooses.

    Attributes:
        prefixes: Its prefix cache.
        weights: Bytes of models.
        live: Bytes billed to requests.
    """

    def __init__(self, limit: int, most: int) -> None:
        self.weights = self.live = 0
        budget = MemoryBudget(limit)
        self.prefixes = PrefixCache(PrefixLimits(10**6, most), copy=fake_copy)
        self.memory = EngineMemory(budget, self.prefixes, PrefixBudget(most, budget))
        self.memory.watch(cast("Any", self), cast("Any", self))
        self._stored = 0

    @property
    def total_bytes(self) -> int:
        """Bytes of models."""
        return self.weights

    def live_kv_bytes(self) -> int:
        """Bytes billed to requests."""
        return self.live

    spare_bytes = 0
    """Models stay."""

    def shed(self, nbytes: int) -> int:
        """Models stay."""
        return 0

    def store(self, blocks: int) -> None:
        """Store another prompt."""
        self._stored += 1
        tokens = [self._stored * 1000 + index for index in range(16 * blocks)]
        self.prefixes.store("space", tokens, PLAIN, FakeKV(tokens), resume=Resume.NO)


@pytest.mark.parametrize("memory", MACHINES)
def test_prefixes_get_a_quarter_of_the_machine(memory: int) -> None:
    """Where weights and requests leave as much; a number caps it, and never raises the ceiling."""
    budget = budget_of(memory * GB)
    assert budget.most == memory * GB // 4
    assert budget.bytes(Use(0, 0, 0)) == memory * GB // 4
    assert budget_of(memory * GB, GB).bytes(Use(0, 0, 0)) == GB
    assert budget_of(memory * GB, 0).bytes(Use(0, 0, 0)) == 0
    assert budget_of(memory * GB, 2 * memory * GB).most == budget.budget.limit


@pytest.mark.parametrize("memory", MACHINES)
def test_weights_and_requests_come_before_prefixes(memory: int) -> None:
    """What is cached already does not count against itself."""
    budget = budget_of(memory * GB)
    limit = budget.budget.limit
    assert budget.bytes(Use(limit - GB, 0, 0)) == GB
    assert budget.bytes(Use(limit - 2 * GB, 5 * GB, GB)) == GB
    assert budget.bytes(Use(limit, 0, GB)) == 0


ACTS = st.lists(
    st.tuples(st.sampled_from(["store", "load", "drop", "request", "end", "pressure", "sweep"]), st.integers(1, 20)),
    max_size=40,
)


@given(ACTS)
@settings(max_examples=60, deadline=None)
def test_prefixes_never_take_what_others_need(acts: list[tuple[str, int]]) -> None:
    """After each look, all bytes are within the ceiling, and prefixes within what is left of it."""
    limit, most = 100 * BLOCK_BYTES, 40 * BLOCK_BYTES
    machine = Machine(limit, most)
    for act, size in acts:
        match act:
            case "store":
                machine.store(size)
            case "load":
                machine.weights = min(limit, machine.weights + size * BLOCK_BYTES)
            case "request":
                if machine.memory.make_room(size * BLOCK_BYTES):
                    machine.live += size * BLOCK_BYTES
            case "drop" | "end":
                kept = max(0, (machine.weights if act == "drop" else machine.live) - size * BLOCK_BYTES)
                setattr(machine, "weights" if act == "drop" else "live", kept)
            case "pressure":
                machine.prefixes.shed(size * BLOCK_BYTES)
        machine.memory.make_room(0)
        machine.prefixes.check_integrity()
        left = max(0, limit - machine.weights - machine.live)
        assert machine.prefixes.memory_usage() <= min(most, left)
        assert machine.prefixes.limits.nbytes == min(most, left)
    machine.weights = machine.live = 0
    machine.memory.make_room(0)
    machine.store(5)
    assert machine.prefixes.memory_usage() >= 5 * BLOCK_BYTES  # a budget of nothing is no end


def test_leased_prefixes_stay_and_are_not_evictable() -> None:
    """Nothing changes for a running request, although the budget has shrunk."""
    machine = Machine(100 * BLOCK_BYTES, 40 * BLOCK_BYTES)
    machine.store(4)
    machine.store(8)
    held = [1000 + index for index in range(16 * 4)]
    with machine.prefixes.lookup("space", [*held, 1], PLAIN) as lease:
        assert lease.tokens == len(held)
        assert machine.prefixes.evictable_bytes() == 8 * BLOCK_BYTES
        machine.weights = 100 * BLOCK_BYTES
        machine.memory.make_room(0)
        assert machine.prefixes.memory_usage() == 4 * BLOCK_BYTES == machine.prefixes.limits.nbytes
        assert machine.prefixes.evictable_bytes() == 0
        machine.prefixes.check_integrity()
    machine.memory.make_room(0)
    assert machine.prefixes.memory_usage() == 0


@pytest.mark.parametrize("leased", [False, True])
def test_kept_prefixes_make_no_room_for_the_disk(leased: bool) -> None:
    """Others do: what is on its way to the disk is no request, and may be the kept prefix itself."""
    machine = Machine(12 * BLOCK_BYTES, 12 * BLOCK_BYTES)
    machine.store(4)
    machine.store(8)
    kept = [1000 + index for index in range(16 * 4)]
    assert machine.prefixes.keep("space", [*kept, 1], PLAIN, 3600.0)
    with machine.prefixes.lookup("space", [*kept, 1] if leased else [1], PLAIN):
        assert not machine.memory.has_room(9 * BLOCK_BYTES)
        assert machine.prefixes.memory_usage() == 12 * BLOCK_BYTES
        assert machine.memory.has_room(8 * BLOCK_BYTES)
        assert machine.prefixes.memory_usage() == 4 * BLOCK_BYTES
        assert not machine.memory.has_room(9 * BLOCK_BYTES)
    assert len(machine.prefixes.keeps) == 1
    assert machine.memory.make_room(9 * BLOCK_BYTES)  # a request comes first
    assert not machine.prefixes.keeps


def test_prefixes_go_when_they_were_idle_for_long() -> None:
    """Those that were used since stay; a leased one goes once it is free."""
    now = [0.0]
    machine = Machine(1000 * BLOCK_BYTES, 1000 * BLOCK_BYTES)
    idle = IdleRelease(machine.prefixes.trie, lambda: now[0], 100.0)
    idle.release()
    machine.store(2)
    machine.store(3)
    used = [2000 + index for index in range(16 * 3)]
    for now[0] in (7.0, 99.0):
        assert idle.release() == 0
    lease = machine.prefixes.lookup("space", [*used, 1], PLAIN)
    now[0] = 107.0
    assert idle.release() == 2 * BLOCK_BYTES
    now[0] = 500.0
    assert idle.release() == 0
    lease.release()
    assert idle.release() == 3 * BLOCK_BYTES
    machine.prefixes.check_integrity()


def test_idle_prefixes_go_a_few_at_a_time() -> None:
    """A large cache would else stop the streams."""
    now = [0.0]
    machine = Machine(10**9, 10**9)
    for _ in range(MOST_AT_ONCE // 8 + 1):
        machine.store(8)
    idle = IdleRelease(machine.prefixes.trie, lambda: now[0], 10.0)
    idle.release()
    now[0] = 10.0
    assert idle.release() == MOST_AT_ONCE * BLOCK_BYTES
    assert idle.release() == 8 * BLOCK_BYTES
    assert machine.prefixes.memory_usage() == 0
