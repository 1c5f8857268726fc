"""Namespaces by name: what each stores and of what use it was, in a list that stays short."""

from __future__ import annotations

from pathlib import Path

from daemon.cache.identity import ModelKey, ModelSource
from daemon.engine.namespaces import MOST_NOTED, MOST_SHOWN, NamespaceBook
from daemon.kv.block import BLOCK_TOKENS
from daemon.kv.extents import Extent
from daemon.kv.namespace import Namespace
from daemon.kv.prefix_cache import Limits, PrefixCache

BLOCK_BYTES = 100


def cache(blocks: int = 1000) -> PrefixCache:
    """Return a prefix cache with room for so many blocks."""
    return PrefixCache(Limits(blocks, 10 * blocks * BLOCK_BYTES))


def source(name: str = "org/name", adapter: str | None = None) -> ModelSource:
    """Return a model on disk."""
    return ModelSource(ModelKey("w", ""), name, Path("/m"), 1, {}, Path(adapter) if adapter else None)


def namespace(salt: str = "") -> Namespace:
    """Return a namespace."""
    return Namespace("w", "", "layout", salt)


def store(prefixes: PrefixCache, where: Namespace, blocks: int, first: int = 0) -> list[int]:
    """Store a prompt of full blocks and return it."""
    tokens = [first, *range(1, blocks * BLOCK_TOKENS)]
    prefixes.store(
        where.digest(),
        tokens,
        BLOCK_BYTES,
        lambda start, stop: [Extent(object(), (stop - start) * BLOCK_BYTES, 1, stop - start)],
    )
    return tokens


def test_a_namespace_tells_what_it_stores_under_the_name_it_was_asked_for_by() -> None:
    """The salt itself is not shown."""
    prefixes = cache()
    book = NamespaceBook(prefixes)
    plain, salted = namespace(), namespace("secret")
    book.note(plain, source("first/name"))
    book.note(plain, source("org/name"))
    book.note(salted, source(adapter="/lora"))
    store(prefixes, plain, 3)
    store(prefixes, plain, 2, first=9)
    store(prefixes, salted, 1)
    one, two = book.stats()
    assert (one.model, one.adapter, one.salted) == ("org/name", "", False)
    assert (one.blocks, one.bytes, one.branches) == (5, 5 * BLOCK_BYTES, 2)
    assert (two.model, two.adapter, two.salted, two.blocks) == ("org/name", "/lora", True, 1)
    assert one.namespace == plain.digest()[:16]
    assert "secret" not in str(two)


def test_reuse_is_counted_where_it_happened() -> None:
    """A namespace next to it stays at zero."""
    prefixes = cache()
    book = NamespaceBook(prefixes)
    tokens = store(prefixes, namespace(), 3)
    store(prefixes, namespace("other"), 3)
    with prefixes.lookup(namespace().digest(), [*tokens, 1]) as lease:
        prefixes.restored(lease)
    used, unused = sorted(book.stats(), key=lambda one: -one.hits)
    assert (used.hits, used.tokens_reused) == (1, 3 * BLOCK_TOKENS)
    assert (unused.hits, unused.tokens_reused) == (0, 0)


def test_what_is_evicted_or_forgotten_is_no_longer_counted() -> None:
    """A namespace that stores nothing is not listed."""
    prefixes = cache(blocks=4)
    book = NamespaceBook(prefixes)
    store(prefixes, namespace("a"), 3)
    store(prefixes, namespace("b"), 3)
    assert sorted(one.blocks for one in book.stats()) == [1, 3]
    store(prefixes, namespace("c"), 2)
    assert [one.blocks for one in book.stats()] == [
        2,
        2,
    ]  # the least recently used went: "a" altogether, and one of "b"
    prefixes.clear(lambda name: name == namespace("b").digest())
    assert [(one.blocks, one.bytes) for one in book.stats()] == [(2, 2 * BLOCK_BYTES)]
    prefixes.check_integrity()
    prefixes.clear()
    assert book.stats() == []


def test_any_number_of_salts_makes_a_short_list_and_few_notes() -> None:
    """The largest are listed; names of what is stored are kept however many others there were."""
    prefixes = cache()
    book = NamespaceBook(prefixes)
    for number in range(2 * MOST_SHOWN):
        book.note(namespace(f"stored {number}"), source())
        store(prefixes, namespace(f"stored {number}"), 1 + number % 3)
    for number in range(3 * MOST_NOTED):
        book.note(namespace(f"unstored {number}"), source())
    shown = book.stats()
    assert len(shown) == MOST_SHOWN
    assert {one.blocks for one in shown} == {2, 3}
    assert {one.model for one in shown} == {"org/name"}
    assert len(book._notes) <= MOST_NOTED
