"""The engine's memory: the bytes in use, and what is freed when a request or a model needs room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from daemon.cache.identity import ModelSource
from daemon.cache.mlx.loader import LoadedModel
from daemon.cache.model_cache import ModelCache
from daemon.engine.execution.runner import Runner
from daemon.engine.memory.memory_budget import MemoryBudget, Use, weights_in_use
from daemon.engine.memory.prefix_budget import PrefixBudget
from daemon.kv.prefix_cache import PrefixCache


class EngineMemory:
    """
    Adds up the bytes in use, and frees memory for what needs room below the limit. Runs on the MLX thread.

    The model cache and the runner ask for room, and what they hold counts as used. So both are built with this object,
    and `watch` names them afterwards.

    Args:
        budget: The limit.
        prefixes: The prefix cache.
        prefix_budget: How much of it the prefix cache may take; None for its own limit.
    """

    def __init__(self, budget: MemoryBudget, prefixes: PrefixCache, prefix_budget: PrefixBudget | None = None) -> None:
        self.budget = budget
        self.prefix_budget = prefix_budget
        self._prefixes = prefixes
        self._models: ModelCache[ModelSource, LoadedModel]
        self._runner: Runner
        self._staged: Callable[[], int] = int

    def watch(
        self, models: ModelCache[ModelSource, LoadedModel], runner: Runner, staged: Callable[[], int] = int
    ) -> None:
        """
        Name the model cache, the runner, and a function that counts what is on its way to or from the disk.

        It is called once, before any of them does anything.
        """
        self._models = models
        self._runner = runner
        self._staged = staged

    def use(self, live: int | None = None) -> Use:
        """
        Return the bytes in use.

        Args:
            live: Bytes that running requests are billed now, if they are known: a bill of many requests takes a while.
        """
        live = self._runner.live_kv_bytes() if live is None else live
        return Use(self._models.total_bytes, self._prefixes.memory_usage(), live, self._staged())

    def limit_prefixes(self, live: int | None = None) -> None:
        """Let the prefix cache take what is left beside weights and running requests now, and evict the rest."""
        if self.prefix_budget is not None:
            self._prefixes.limit(self.prefix_budget.bytes(self.use(live)))

    def spare(self, wanted: int) -> int:
        """Free cached prefixes until `wanted` bytes are free, as far as that helps, and return how many are."""
        live = self._runner.live_kv_bytes()
        self.shed_prefixes(wanted, live)
        return max(0, self.budget.headroom(self.use(live)))

    def has_room(self, need: int) -> bool:
        """
        Free cached prefixes until `need` bytes are free, and tell whether they are.

        None are freed if that would be too few, or if kept ones would have to go.
        """
        free = self.budget.headroom(self.use())
        ordinary = self._prefixes.evictable_bytes() - self._prefixes.keeps.free_bytes
        return free >= need or (free + ordinary >= need and self.spare(need) >= need)

    def shed_prefixes(self, need: int, live: int | None = None) -> None:
        """Free cached prefixes until `need` bytes fit, as far as that helps."""
        self._prefixes.shed(self.budget.shortfall(need, self.use(live)))

    def make_room_for_weights(self, name: str, need: int) -> None:
        """
        Free cached prefixes, then idle models, until the weights of a model fit beside running requests.

        Args:
            name: The model.
            need: Bytes of its weights; 0 if they count as used already.

        Raises:
            SidecarError: BUDGET_IN_USE if they do not fit. Nothing is freed that would be too little.
        """
        live = self._runner.live_kv_bytes()
        lacking = self._lacking(need, live)
        if lacking <= self._prefixes.evictable_bytes() + self._models.spare_bytes:
            self.shed_prefixes(need, live)
            self._models.shed(self._lacking(need, live))
            lacking = self._lacking(need, live)
        if lacking:
            raise weights_in_use(name, lacking)

    def make_room(self, need: int, live: int | None = None) -> bool:
        """
        Free cached prefixes, then idle models, until `need` bytes fit; tell whether they do.

        Nothing is freed for a request that does not fit all the same: it waits until others end. What is in use already
        is another matter: as much is freed as helps.

        Bytes on their way to or from the disk count beside running requests: what does not fit waits. Alone, it would
        be refused instead. So they do not count then, as for weights: they are free soon.

        Args:
            need: Bytes beside those in use; 0 for what is in use already.
            live: Bytes that running requests are billed now, if they are known.
        """
        live = self._runner.live_kv_bytes() if live is None else live  # what is freed below is no running request's
        self.limit_prefixes(live)
        lacking = self._lacking_beside_requests(need, live)
        if need and lacking > self._prefixes.evictable_bytes() + self._models.spare_bytes:
            return False
        shortfall = self.budget.shortfall(need, self.use(live))
        if shortfall:
            shortfall -= self._prefixes.shed(shortfall)
        if shortfall > 0:
            self._models.shed(shortfall)
        return not self._lacking_beside_requests(need, live)

    def _lacking_beside_requests(self, need: int, live: int) -> int:
        """Return what a request lacks: it waits for bytes on their way to or from the disk, unless it is alone."""
        return self.budget.shortfall(need, self.use(live)) if live else self._lacking(need, live)

    def _lacking(self, need: int, live: int) -> int:
        """Return what weights or a request alone lack. Bytes on their way to or from the disk are free soon."""
        return self.budget.shortfall(need, replace(self.use(live), staged=0))
