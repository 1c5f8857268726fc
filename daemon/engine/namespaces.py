"""The namespaces of the prefix cache by the names that people know: which model, which adapter, salted or not."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from heapq import nlargest
from itertools import islice
from pathlib import Path

from daemon.cache.identity import ModelSource
from daemon.kv.namespace import Namespace
from daemon.kv.prefix_cache import PrefixCache
from daemon.kv.tally import Tally
from mlx_sidecar.v1 import sidecar_pb2 as pb

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


class NamespaceBook:
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

    def _describe(self, digest: str, tally: Tally, branches: int) -> pb.NamespaceStats:
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
