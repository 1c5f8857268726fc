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


def test_pruning_drops_unevictable_items_at_once() -> None:
    queue: EvictionQueue[Item] = EvictionQueue()
    gone, stays = Item(1), Item(2)
    for item in (gone, stays):
        queue.offer(item)
    gone.evictable = False

    queue.prune()

    assert list(queue) == [stays]
    assert queue.pop() is stays


def test_pruning_in_vain_takes_no_memory() -> None:
    """Each turn of a conversation prunes, and there is a partition for each salt."""
    queue: EvictionQueue[Item] = EvictionQueue()
    for tick, partition in enumerate("abc"):
        queue.offer(Item(tick, partition=partition))

    for _ in range(10):
        queue.prune()

    assert len(queue._heads) == 3
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
