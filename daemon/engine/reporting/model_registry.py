"""Two registries: the contents that each model name has stood for, and the model that each namespace belongs to."""

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
"""Contents remembered although nothing of them is in memory."""
NAMES = 64
"""Names remembered of each content, the latest. Links alone can give a directory any number of names."""


class NameRegistry:
    """
    Maps model names to contents, and contents to cache layouts. Invalidate finds by it what is to be dropped.

    An entry stays for as long as weights or prefixes of its content are in memory. So a name finds everything that was
    ever stored under it, also after its files changed.

    Args:
        kept: Whether weights or prefixes of a content are in memory, or being loaded.
        most: Contents remembered, the latest, although nothing of them is in memory.
    """

    def __init__(self, kept: Callable[[ModelKey], bool], most: int = MOST) -> None:
        self._kept = kept
        self._most = self._room = most
        self._contents: OrderedDict[ModelKey, OrderedDict[str, tuple[int, ModelSource]]] = OrderedDict()
        """By content, its names with the moment and source of their last use; both in the order of last use."""
        self._layouts: dict[ModelKey, set[str]] = {}
        self._moments = count()

    def __len__(self) -> int:
        return sum(map(len, self._contents.values()))

    def seen(self, source: ModelSource) -> None:
        """Remember the content that a name stands for now."""
        names = self._contents.setdefault(source.key, OrderedDict())
        self._contents.move_to_end(source.key)
        if names:  # equal contents share one configuration, which may be large
            source = replace(source, config=next(iter(names.values()))[1].config)
        names[source.name] = next(self._moments), source
        names.move_to_end(source.name)
        if len(names) > NAMES:
            names.popitem(last=False)
        if len(self._contents) > self._room:
            self._forget()

    def note_layout(self, namespace: Namespace) -> None:
        """Remember a layout under which prefixes may be stored; prefixes may stay longer in memory than their model."""
        self._layouts.setdefault(ModelKey(namespace.weights, namespace.adapter), set()).add(namespace.layout)

    def keys(self, name: str) -> set[ModelKey]:
        """Return the contents that a name has stood for."""
        return {key for key, names in self._contents.items() if name in names}

    def latest(self, name: str) -> ModelSource | None:
        """Return the model that a name stood for last; its files may be gone. None if the name is unknown."""
        uses = [names[name] for names in self._contents.values() if name in names]
        return max(uses, key=lambda use: use[0])[1] if uses else None

    def layouts(self, key: ModelKey) -> set[str]:
        """Return the layouts under which prefixes of a content may be stored."""
        return self._layouts.get(key, set())

    def _forget(self) -> None:
        """
        Forget contents of which nothing is in memory, the oldest first.

        If more than `most` are in memory, the next look waits until their number has doubled: a look at each new
        content would make the total cost quadratic.
        """
        for key in list(self._contents):
            if len(self._contents) <= self._most:
                break
            if not self._kept(key):
                del self._contents[key]
        self._layouts = {key: layouts for key, layouts in self._layouts.items() if key in self._contents}
        over = len(self._contents) > self._most
        self._room = 2 * len(self._contents) if over else self._most


MOST_SHOWN = 64
"""Namespaces that Stats lists. There may be any number: each salt makes its own."""
MOST_NOTED = 1024
"""Namespaces that are remembered by name although they store nothing."""
MANY = 1024
CHOICE_SECONDS = 1.0
"""
Seconds between two searches for the namespaces that store most, if there are more than MANY. A search through 65,000
takes 80 ms, and figures are sent at the end of every call.
"""

_SHOWN_DIGITS = 16


class NamespaceRegistry:
    """
    Maps namespaces to model names, and describes for Stats the namespaces that store most. Runs on the MLX thread.

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
        """Remember the model name that a namespace was last used by; it is forgotten in time if nothing is stored."""
        digest = namespace.digest()
        self._notes.pop(digest, None)
        self._notes[digest] = pb.NamespaceStats(
            model=source.name, adapter=_text(source.adapter_path), salted=bool(namespace.salt)
        )
        if len(self._notes) > self._room:
            self._forget_some()

    def stats(self) -> list[pb.NamespaceStats]:
        """Describe the namespaces that store most, at most MOST_SHOWN."""
        trie, now = self._prefixes.trie, self._clock()
        if now - self._chosen_at >= CHOICE_SECONDS or len(trie.namespaces) <= MANY:
            largest = nlargest(MOST_SHOWN, trie.tallies().items(), key=lambda item: item[1][0].blocks)
            self._chosen, self._chosen_at = [digest for digest, _ in largest], now
        tallies = [(digest, trie.tally(digest)) for digest in self._chosen]
        return [self._describe(digest, *tally) for digest, tally in tallies if tally is not None]

    def _describe(self, digest: str, tally: NamespaceCounters, branches: int) -> pb.NamespaceStats:
        answer = pb.NamespaceStats()
        answer.CopyFrom(self._notes.get(digest, answer))
        answer.namespace = shown(digest)
        answer.blocks, answer.branches = tally.blocks, branches
        answer.hits, answer.tokens_reused = tally.hits, tally.tokens_reused
        return answer

    def _forget_some(self) -> None:
        """Forget the older half of the empty namespaces: requests of the newer half may be about to store."""
        stored = self._prefixes.trie.tallies()
        unstored = [digest for digest in self._notes if digest not in stored]
        for digest in islice(unstored, (len(unstored) + 1) // 2):
            del self._notes[digest]
        # Room for half as many again: otherwise each further request would look through all.
        self._room = max(MOST_NOTED, len(self._notes) + MOST_NOTED // 2)


def shown(namespace: str) -> str:
    """Return the digits that stand for a namespace in Stats: a salt cannot be read from them."""
    return hashlib.sha256(namespace.encode()).hexdigest()[:_SHOWN_DIGITS]


def _text(path: Path | None) -> str:
    """Return a path as text; bytes that are no UTF-8 are replaced."""
    return "" if path is None else os.fsencode(path).decode("utf-8", "replace")
