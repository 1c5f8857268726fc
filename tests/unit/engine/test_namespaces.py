"""Namespaces by name: what each stores and of what use it was, in a list that stays short."""

from __future__ import annotations

from pathlib import Path

from daemon.cache.identity import ModelKey, ModelSource
from daemon.engine.reporting.model_registry import MOST_NOTED, MOST_SHOWN, NamespaceRegistry
from daemon.kv.keys import BLOCK_TOKENS, Namespace
from tests.unit.kv.fake_kv import FakePrefixes, prompt


def source(name: str = "org/name", adapter: str | None = None) -> ModelSource:
    """Return a model on disk."""
    return ModelSource(ModelKey("w", ""), name, Path("/m"), 1, {}, Path(adapter) if adapter else None)


def namespace(salt: str = "") -> Namespace:
    """Return a namespace."""
    return Namespace("w", "", "layout", salt)


def store(prefixes: FakePrefixes, where: Namespace, blocks: int, first: int = 1) -> list[int]:
    """Store a prompt of full blocks and return it."""
    tokens = prompt(first, *range(2, blocks + 1))
    prefixes.store(where.digest(), tokens)
    return tokens


def test_namespace_stats_have_the_requested_name() -> None:
    """The salt itself is not shown."""
    prefixes = FakePrefixes()
    book = NamespaceRegistry(prefixes.cache)
    plain, salted = namespace(), namespace("secret")
    book.note(plain, source("first/name"))
    book.note(plain, source("org/name"))
    book.note(salted, source(adapter="/lora"))
    store(prefixes, plain, 3)
    store(prefixes, plain, 2, first=9)
    store(prefixes, salted, 1)
    one, two = book.stats()
    assert (one.model, one.adapter, one.salted) == ("org/name", "", False)
    assert (one.blocks, one.branches) == (5, 2)
    assert (two.model, two.adapter, two.salted, two.blocks) == ("org/name", "/lora", True, 1)
    assert one.namespace != two.namespace
    assert "secret" not in str(two)


def test_reuse_is_counted_in_its_namespace() -> None:
    """A namespace next to it stays at zero."""
    prefixes = FakePrefixes()
    book = NamespaceRegistry(prefixes.cache)
    tokens = store(prefixes, namespace(), 3)
    store(prefixes, namespace("other"), 3)
    assert prefixes.reuse(namespace().digest(), [*tokens, 1]) == tokens
    used, unused = sorted(book.stats(), key=lambda one: -one.hits)
    assert (used.hits, used.tokens_reused) == (1, 3 * BLOCK_TOKENS)
    assert (unused.hits, unused.tokens_reused) == (0, 0)


def test_evicted_blocks_leave_the_namespace_stats() -> None:
    """A namespace that stores nothing is not listed."""
    prefixes = FakePrefixes(blocks=4)
    book = NamespaceRegistry(prefixes.cache)
    store(prefixes, namespace("a"), 3)
    store(prefixes, namespace("b"), 3)
    store(prefixes, namespace("c"), 2)
    assert sum(one.blocks for one in book.stats()) == prefixes.cache.trie.blocks == 4
    dropped = prefixes.cache.clear(lambda name: name == namespace("c").digest()).blocks
    assert dropped == 2
    assert sum(one.blocks for one in book.stats()) == 2
    prefixes.cache.check_integrity()
    prefixes.cache.clear()
    assert book.stats() == []


def test_namespace_list_is_bounded_for_many_salts() -> None:
    """The largest are listed; names of what is stored are kept however many others there were."""
    prefixes = FakePrefixes()
    book = NamespaceRegistry(prefixes.cache)
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
