"""The engine's memory: cached prefixes make room before idle models do, and only as much as is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from daemon.engine.memory.engine_memory import EngineMemory
from daemon.engine.memory.memory_budget import MemoryBudget, Use
from daemon.engine.memory.prefix_budget import PrefixBudget
from daemon.shared.errors import Reason, SidecarError

LIMIT = 1000


class FakeCache:
    """
    A cache of some bytes, of which some can be freed.

    Attributes:
        total_bytes: Bytes in use.
        asked: Bytes that it was asked to free, each time.
        bills: How often running requests were billed.
        keeps: How many of the bytes are kept.
    """

    def __init__(self, nbytes: int, spare: int) -> None:
        self.total_bytes = nbytes
        self.keeps = SimpleNamespace(free_bytes=0)
        self.asked: list[int] = []
        self.bills = 0
        self._spare = spare

    @property
    def spare_bytes(self) -> int:
        """Return the bytes that can be freed."""
        return self._spare

    def memory_usage(self) -> int:
        """Return the bytes in use."""
        return self.total_bytes

    def evictable_bytes(self) -> int:
        """Return the bytes that can be freed."""
        return self._spare

    def live_kv_bytes(self) -> int:
        """Return the bytes in use."""
        self.bills += 1
        return self.total_bytes

    def limit(self, nbytes: int) -> None:
        """Take a limit."""

    def shed(self, nbytes: int) -> int:
        """Free what can be freed, at most what is asked for."""
        self.asked.append(nbytes)
        freed = min(nbytes, self._spare)
        self._spare -= freed
        self.total_bytes -= freed
        return freed


class Parts:
    """The memory of an engine with 400 bytes of weights, 300 of prefixes and 200 of running requests."""

    def __init__(self) -> None:
        self.models = FakeCache(400, spare=250)
        self.prefixes = FakeCache(300, spare=200)
        self.memory = EngineMemory(MemoryBudget(LIMIT), cast("Any", self.prefixes))
        self.staged = 0
        self.runner = FakeCache(200, spare=0)
        self.memory.watch(cast("Any", self.models), cast("Any", self.runner), lambda: self.staged)


@pytest.mark.parametrize(
    ("need", "prefixes", "models", "fits"),
    [(100, [], [], True), (150, [50], [], True), (450, [350], [150], True), (551, [], [], False)],
)
def test_a_request_gets_room_from_prefixes_first(need: int, prefixes: list[int], models: list[int], fits: bool) -> None:
    """Nothing is freed that is not needed, and nothing at all if it would be too little: the request waits then."""
    parts = Parts()
    assert parts.memory.use() == Use(400, 300, 200)
    assert parts.memory.make_room(need) is fits
    assert (parts.prefixes.asked, parts.models.asked) == (prefixes, models)


def test_what_is_in_use_already_gets_as_much_room_as_there_is() -> None:
    """Running requests have grown, and none of them waits: less beyond the limit is better than more."""
    parts = Parts()
    parts.runner.total_bytes = 900
    assert not parts.memory.make_room(0)
    assert (parts.prefixes.asked, parts.models.asked) == ([600], [400])


def test_running_requests_are_billed_once_for_each_decision() -> None:
    """A bill of many requests takes a while, and freeing prefixes or models does not change it."""
    parts = Parts()
    parts.memory.prefix_budget = PrefixBudget.of(LIMIT, LIMIT, parts.memory.budget)
    assert parts.memory.make_room(450)
    assert parts.runner.bills == 1
    parts.memory.spare(600)
    assert parts.runner.bills == 2


@pytest.mark.parametrize(
    ("need", "prefixes", "models"), [(100, [0], [0]), (150, [50], [0]), (450, [350], [150]), (0, [0], [0])]
)
def test_weights_get_room_from_prefixes_first(need: int, prefixes: list[int], models: list[int]) -> None:
    """The model cache has made room in its own budget by then."""
    parts = Parts()
    parts.memory.make_room_for_weights("org/model", need)
    assert (parts.prefixes.asked, parts.models.asked) == (prefixes, models)


def test_weights_that_do_not_fit_beside_requests_free_nothing() -> None:
    """They would be in vain. The error tells by how much it is too little."""
    parts = Parts()
    with pytest.raises(SidecarError, match=r"org/model: running requests.*leave 551 B too little") as refused:
        parts.memory.make_room_for_weights("org/model", 651)
    assert refused.value.reason is Reason.BUDGET_IN_USE
    assert (parts.prefixes.asked, parts.models.asked) == ([], [])


def test_what_is_read_for_a_load_does_not_refuse_it() -> None:
    """A call reads ahead what its prompt has on the disk, and then loads its model."""
    parts = Parts()
    parts.staged = 60
    parts.memory.make_room_for_weights("org/model", 550)
    assert parts.models.total_bytes == 150


def test_bytes_on_their_way_to_the_disk_count() -> None:
    """A request that needs the same room waits for them, or frees prefixes."""
    parts = Parts()
    parts.staged = 60
    assert parts.memory.use() == Use(400, 300, 200, 60)
    assert parts.memory.make_room(50)
    assert parts.prefixes.asked == [10]


@pytest.mark.parametrize(("need", "asked", "fits"), [(100, [], True), (300, [200], True), (301, [], False)])
def test_disk_gets_room_from_prefixes_if_there_is_enough(need: int, asked: list[int], fits: bool) -> None:
    """No prefix goes for a piece that does not fit all the same."""
    parts = Parts()
    assert parts.memory.has_room(need) is fits
    assert parts.prefixes.asked == asked


def test_disk_gets_no_room_from_kept_prefixes() -> None:
    parts = Parts()
    parts.prefixes.keeps.free_bytes = 150
    assert not parts.memory.has_room(151)
    assert not parts.prefixes.asked
    assert parts.memory.has_room(150)


@pytest.mark.parametrize(("need", "fits"), [(750, True), (751, False)])
def test_request_alone_is_not_refused_for_bytes_on_their_way(need: int, fits: bool) -> None:
    """They are free soon, and no request runs whose end it could wait for."""
    parts = Parts()
    parts.runner.total_bytes, parts.staged = 0, 60
    assert parts.memory.make_room(need) is fits
