"""Known contents: what each name stood for, so that invalidating a name finds all that was kept under it. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from daemon.cache.identity import ModelKey, ModelSource
from daemon.kv.namespace import Namespace

MOST = 256


class Known:
    """
    Remembers names, contents and layouts for as long as something is kept under them.

    Args:
        kept: Whether weights or prefixes of a content are in memory, or on their way.
        most: Contents remembered although nothing is kept of them (any more), the latest; what is kept is never
            forgotten.
    """

    def __init__(self, kept: Callable[[ModelKey], bool], most: int = MOST) -> None:
        self._kept = kept
        self._most = most
        self._sources: OrderedDict[tuple[str, ModelKey], ModelSource] = OrderedDict()
        self._layouts: dict[ModelKey, set[str]] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def seen(self, source: ModelSource) -> None:
        """Remember which content a name stands for now."""
        self._sources[source.name, source.key] = source
        self._sources.move_to_end((source.name, source.key))
        if len(self._sources) > self._most:
            self._forget()

    def shares(self, namespace: Namespace) -> None:
        """Remember a layout under which prefixes may be stored; they outlive their model's stay in memory."""
        self._layouts.setdefault(ModelKey(namespace.weights, namespace.adapter), set()).add(namespace.layout)

    def keys(self, name: str) -> set[ModelKey]:
        """Return the contents that a name stood for."""
        return {key for known, key in self._sources if known == name}

    def latest(self, name: str) -> ModelSource | None:
        """Return what a name stood for last; its files may be gone."""
        return next((self._sources[pair] for pair in reversed(self._sources) if pair[0] == name), None)

    def layouts(self, key: ModelKey) -> set[str]:
        """Return the layouts under which prefixes of a content may be stored."""
        return self._layouts.get(key, set())

    def _forget(self) -> None:
        for pair in list(self._sources):
            if len(self._sources) <= self._most:
                break
            if not self._kept(pair[1]):
                del self._sources[pair]
        contents = {key for _, key in self._sources}
        self._layouts = {key: layouts for key, layouts in self._layouts.items() if key in contents}
