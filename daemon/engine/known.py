"""Known contents: what each name stood for, so that invalidating a name finds all that was kept under it. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from itertools import count

from daemon.cache.identity import ModelKey, ModelSource
from daemon.kv.namespace import Namespace

MOST = 256
NAMES = 64
"""Names remembered of each content, those that were used last. Links alone can give a directory any number of them."""


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
