"""Model registry: the contents that each name has stood for, and the models that each namespace belongs to."""

from __future__ import annotations

import hashlib
import math
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from heapq import nlargest
from itertools import count, islice
from pathlib import Path

from daemon.cache.identity import ModelKey, ModelSource
from daemon.kv.keys import Namespace
from daemon.kv.nodes import NamespaceCounters
from daemon.kv.prefix_cache import PrefixCache
from mlx_sidecar.v1 import sidecar_pb2 as pb

MOST = 256
NAMES = 64
"""Names remembered of each content, those that were used last. Links alone can give a directory any number of them."""


class NameRegistry:
    """
    Remembers names, contents and layouts for as long as something is kept under them.

    Args:
        kept: Whether weights or prefixes of a content are in memory, or on their way.
        most: Contents remembered although nothing is kept of them (any more), the latest; what is kept is never
            forgotten.
    """

    def __init__(self, kept: Callable[[ModelKey], bool], most: int = MOST) -> None:
        self._kept = kept
        self._most = self._room = most
        self._contents: OrderedDict[ModelKey, OrderedDict[str, tuple[int, ModelSource]]] = OrderedDict()
        """Names by content, each with the moment of its last use; in both, the one used last is the last."""
        self._layouts: dict[ModelKey, set[str]] = {}
        self._moments = count()

    def __len__(self) -> int:
        return sum(map(len, self._contents.values()))

    def seen(self, source: ModelSource) -> None:
        """Remember which content a name stands for now."""
        names = self._contents.setdefault(source.key, OrderedDict())
        self._contents.move_to_end(source.key)
        if names:  # the same content has the same configuration, which may be large
            source = replace(source, config=next(iter(names.values()))[1].config)
        names[source.name] = next(self._moments), source
        names.move_to_end(source.name)
        if len(names) > NAMES:
            names.popitem(last=False)
        if len(self._contents) > self._room:
            self._forget()

    def shares(self, namespace: Namespace) -> None:
        """Remember a layout under which prefixes may be stored; they outlive their model's stay in memory."""
        self._layouts.setdefault(ModelKey(namespace.weights, namespace.adapter), set()).add(namespace.layout)

    def keys(self, name: str) -> set[ModelKey]:
        """Return the contents that a name stood for."""
        return {key for key, names in self._contents.items() if name in names}

    def latest(self, name: str) -> ModelSource | None:
        """Return what a name stood for last; its files may be gone."""
        found = [names[name] for names in self._contents.values() if name in names]
        return max(found, key=lambda one: one[0])[1] if found else None

    def layouts(self, key: ModelKey) -> set[str]:
        """Return the layouts under which prefixes of a content may be stored."""
        return self._layouts.get(key, set())

    def _forget(self) -> None:
        """Forget what nothing is kept of. Where more than `most` is kept, it is looked through only now and then."""
        for key in list(self._contents):
            if len(self._contents) <= self._most:
                break
            if not self._kept(key):
                del self._contents[key]
        self._layouts = {key: layouts for key, layouts in self._layouts.items() if key in self._contents}
        over = len(self._contents) > self._most
        self._room = 2 * len(self._contents) if over else self._most


MOST_SHOWN = 64
"""Namespaces that Stats lists: with many salts there may be any number of them."""
MOST_NOTED = 1024
MANY = 1024
CHOICE_SECONDS = 1.0
"""
Of more namespaces than MANY, those that store most are looked for so often only: going through 65,000 of them takes
80 ms, and figures are sent at the end of every call.
"""

_SHOWN_DIGITS = 16


class NamespaceRegistry:
    """
    Remembers who asked for a namespace. Runs on the MLX thread.

    Args:
        prefixes: The prefix cache.
        clock: Seconds that never go back.
    """

    def __init__(self, prefixes: PrefixCache, clock: Callable[[], float] = lambda: 0.0) -> None:
        self._prefixes = prefixes
        self._clock = clock
        self._room = MOST_NOTED
        self._chosen: list[str] = []
        self._chosen_at = -math.inf
        self._notes: dict[str, pb.NamespaceStats] = {}

    def note(self, namespace: Namespace, source: ModelSource) -> None:
        """Remember by which names a namespace was asked for last. What stores nothing is forgotten in time."""
        digest = namespace.digest()
        self._notes.pop(digest, None)
        self._notes[digest] = pb.NamespaceStats(
            model=source.name, adapter=_text(source.adapter_path), salted=bool(namespace.salt)
        )
        if len(self._notes) > self._room:
            self._forget_some()

    def stats(self) -> list[pb.NamespaceStats]:
        """Describe the namespaces that store most."""
        trie, now = self._prefixes.trie, self._clock()
        if now - self._chosen_at >= CHOICE_SECONDS or len(trie.namespaces) <= MANY:
            most = nlargest(MOST_SHOWN, trie.tallies().items(), key=lambda item: item[1][0].blocks)
            self._chosen, self._chosen_at = [digest for digest, _ in most], now
        found = [(digest, trie.tally(digest)) for digest in self._chosen]
        return [self._describe(digest, *tally) for digest, tally in found if tally is not None]

    def _describe(self, digest: str, tally: NamespaceCounters, branches: int) -> pb.NamespaceStats:
        answer = pb.NamespaceStats()
        answer.CopyFrom(self._notes.get(digest, answer))
        answer.namespace = hashlib.sha256(digest.encode()).hexdigest()[:_SHOWN_DIGITS]
        answer.blocks, answer.branches = tally.blocks, branches
        answer.hits, answer.tokens_reused = tally.hits, tally.tokens_reused
        return answer

    def _forget_some(self) -> None:
        """Keep what is stored, and the latest half of the rest: their requests may be about to store."""
        stored = self._prefixes.trie.tallies()
        unstored = [digest for digest in self._notes if digest not in stored]
        for digest in islice(unstored, (len(unstored) + 1) // 2):
            del self._notes[digest]
        self._room = max(MOST_NOTED, len(self._notes) + MOST_NOTED // 2)  # or each request would look through all


def _text(path: Path | None) -> str:
    """Return a path as text, for which one of bytes has to be changed."""
    return "" if path is None else os.fsencode(path).decode("utf-8", "replace")
