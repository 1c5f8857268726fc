"""The least recently used item is evicted first, of all partitions or of one."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from daemon.kv.eviction_queue import EvictionQueue


@dataclass(eq=False)
class Item:
    """An item that can be evicted."""

    tick: int
    depth: int = 1
    partition: str = ""
    evictable: bool = True
    queued: bool = False


def test_eviction_takes_oldest_then_deepest_first() -> None:
    queue: EvictionQueue[Item] = EvictionQueue()
    young, old, deep = Item(2), Item(1), Item(1, depth=2)
    for item in (young, old, deep):
        queue.offer(item)

    assert [queue.pop(), queue.pop(), queue.pop(), queue.pop()] == [deep, old, young, None]


def test_eviction_queue_can_pop_one_partition() -> None:
    queue: EvictionQueue[Item] = EvictionQueue()
    mine, theirs = Item(2, partition="mine"), Item(1, partition="theirs")
    queue.offer(mine)
    queue.offer(theirs)

    assert queue.peek("mine") is mine
    assert queue.peek("nobody's") is None
    assert queue.peek() is theirs
    assert queue.pop("mine") is mine
    assert queue.pop() is theirs


def test_reused_item_moves_back_in_the_eviction_queue() -> None:
    queue: EvictionQueue[Item] = EvictionQueue()
    used, other = Item(1), Item(2)
    queue.offer(used)
    queue.offer(other)
    used.tick = 3

    assert queue.pop() is other
    assert queue.pop() is used


def test_unevictable_item_is_skipped_until_offered() -> None:
    queue: EvictionQueue[Item] = EvictionQueue()
    item = Item(1)
    queue.offer(item)
    item.evictable = False
    assert queue.pop() is None
    assert not item.queued

    item.evictable = True
    queue.offer(item)
    queue.offer(item)
    assert list(queue) == [item]


def test_withdrawn_items_leave_the_queue_once_they_are_more_than_half_of_it() -> None:
    queue: EvictionQueue[Item] = EvictionQueue()
    items = [Item(tick) for tick in range(100)]
    for item in items:
        queue.offer(item)

    for item in items[1:]:
        item.evictable = False
        queue.withdraw(item)
        assert len(list(queue)) <= 2 * sum(item.evictable for item in items)

    assert len(list(queue)) == sum(item.queued for item in items)
    assert queue.pop() is items[0]
    assert queue.pop() is None


def test_withdrawn_items_are_at_most_half_of_the_queue_also_as_others_leave() -> None:
    queue: EvictionQueue[Item] = EvictionQueue()
    items = [Item(tick) for tick in range(100)]
    for item in items:
        queue.offer(item)
    for item in items[60:]:
        item.evictable = False
        queue.withdraw(item)

    while (taken := queue.pop()) is not None:
        assert taken is items.pop(0)
        queued = list(queue)
        assert 2 * sum(not item.evictable for item in queued) <= len(queued)

    assert not list(queue)


def test_withdrawal_of_one_item_looks_at_no_other() -> None:
    """Each turn of a conversation forgets the tail of the turn before; thousands of leaves belong to others."""

    class Watched(Item):
        looks = 0

        def __getattribute__(self, name: str) -> object:
            if name == "evictable":
                type(self).looks += 1
            return super().__getattribute__(name)

    queue: EvictionQueue[Item] = EvictionQueue()
    items = [Watched(tick) for tick in range(1000)]
    for item in items:
        queue.offer(item)
    Watched.looks = 0

    for item in items[:400]:
        item.evictable = False
        queue.withdraw(item)

    assert Watched.looks == 0


def test_turns_of_many_salts_leave_nothing_in_the_queue() -> None:
    queue: EvictionQueue[Item] = EvictionQueue()
    for tick, partition in enumerate("abc"):
        queue.offer(Item(tick, partition=partition))

    for tick in range(100):
        turn = Item(10 + tick, partition="abc"[tick % 3])
        queue.offer(turn)
        turn.evictable = False
        queue.withdraw(turn)

    assert len(list(queue)) <= 6
    assert len(queue._heads) <= 6
    assert [item.partition for item in iter(queue.pop, None)] == ["a", "b", "c"]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.sampled_from("abc"), st.booleans())))
def test_eviction_order_holds_for_random_histories(drawn: list[tuple[int, int, str, bool]]) -> None:
    queue: EvictionQueue[Item] = EvictionQueue()
    items = []
    for before, after, partition, evictable in drawn:
        item = Item(before, partition=partition)
        queue.offer(item)
        items.append(item)
        item.tick, item.evictable = max(before, after), evictable

    popped = []
    while (taken := queue.pop()) is not None:
        popped.append(taken)

    assert [item.tick for item in popped] == sorted(item.tick for item in items if item.evictable)
    assert not list(queue)
