"""The namespaces of the prefix cache by the names that people know: which model, which adapter, salted or not."""

from __future__ import annotations

import hashlib
import os
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
_SHOWN_DIGITS = 16


class NamespaceBook:
    """
    Remembers who asked for a namespace. Runs on the MLX thread.

    Args:
        prefixes: The prefix cache.
    """

    def __init__(self, prefixes: PrefixCache) -> None:
        self._prefixes = prefixes
        self._notes: dict[str, pb.NamespaceStats] = {}

    def note(self, namespace: Namespace, source: ModelSource) -> None:
        """Remember by which names a namespace was asked for last. What stores nothing is forgotten in time."""
        digest = namespace.digest()
        self._notes.pop(digest, None)
        self._notes[digest] = pb.NamespaceStats(
            model=source.name, adapter=_text(source.adapter_path), salted=bool(namespace.salt)
        )
        if len(self._notes) > MOST_NOTED:
            self._forget_some()

    def stats(self) -> list[pb.NamespaceStats]:
        """Describe the namespaces that store most."""
        tallies = self._prefixes.trie.tallies()
        most = nlargest(MOST_SHOWN, tallies.items(), key=lambda item: item[1][0].blocks)
        return [self._describe(digest, *tally) for digest, tally in most]

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


def _text(path: Path | None) -> str:
    """Return a path as text, for which one of bytes has to be changed."""
    return "" if path is None else os.fsencode(path).decode("utf-8", "replace")
