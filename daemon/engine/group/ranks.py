"""What a group changes about the engine of each of its ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from daemon.cache.digests import TakesLong
from daemon.cache.identity import ModelSource
from daemon.cache.mlx.computing_place import code_of_kv
from daemon.cache.mlx.shard import Shard
from daemon.cache.resolver import Resolver, Wanted, Watcher
from daemon.engine.background.answers import Answers


@dataclass(frozen=True, slots=True)
class Ranks:
    """
    The ranks that compute with an engine.

    Attributes:
        rank: The number of this one.
        count: How many there are.
        limit_bytes: Most bytes of weights, prefixes and requests: those of the smallest rank.
        memory_bytes: Bytes of memory of the smallest machine.
        answers: Takes results of work on other threads.
        own_clock: Seconds of this rank's own clock, for what decides nothing that ranks must agree on.
        aside: Returns a function with readings of this rank alone.
        shard: Which part of a model this rank loads.
        wall: Seconds since 1970, which may jump.
    """

    rank: int
    count: int
    limit_bytes: int
    memory_bytes: int
    answers: Answers
    own_clock: Callable[[], float]
    aside: Callable[[Callable[[], Any]], Callable[[], Any]]
    shard: Shard
    wall: Callable[[], float]

    @property
    def part(self) -> str:
        """Which part of models the pieces on its disk are of. What a part has is decided by mlx-lm."""
        return f"rank {self.rank} of {self.count}, {code_of_kv()}"


class ShardedResolver(Resolver):
    """
    Finds models of which each rank holds a part.

    Whether a lookup is quick depends on the machine, so none is: each model is searched for, and the ranks wait for
    the last of them.
    """

    ranks = 1

    def resolve(self, wanted: Wanted, watcher: Watcher | None = None) -> ModelSource:
        """Return a model, with the bytes of a rank's part; see `Resolver.resolve`."""
        if watcher is None:
            raise TakesLong
        source = super().resolve(wanted, watcher)
        return replace(source, size_bytes=-(-source.size_bytes // self.ranks))
