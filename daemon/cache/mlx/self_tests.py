"""
The self-tests of a load: what a model's passes can be trusted with, and which of its models this process has tested.

They take about fifty passes over a few tokens each. For a model of tens of gigabytes these are seconds, most of them
spent on reading its weights. Within one process the same weights give the same results, so a model that is loaded
again is not tested again. Nothing is kept for later processes: the tests guard against changes that no key names, such
as another BLAS or driver. Ranks of a group test at each load, since they have to do so at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from daemon.cache.identity import ModelKey, ModelSource
from daemon.cache.lru_dict import LruDict
from daemon.cache.mlx.last_logits import LastLogits, viewing
from daemon.cache.mlx.measurements import MOST_MODELS
from daemon.cache.mlx.shard import WHOLE, Shard
from daemon.kv.mlx import shared_attention
from daemon.kv.mlx.ahead import Ahead, trying
from daemon.kv.mlx.ahead_rows import trying_rows
from daemon.kv.mlx.layerwise import Pass, forward_layerwise
from daemon.kv.mlx.layout import Layout
from daemon.kv.mlx.self_test import probing, proving
from daemon.kv.mlx.shared_self_test import proving_shared
from daemon.shared.failpoints import failpoint
from daemon.shared.slices import Sliced


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    What the self-tests found.

    Attributes:
        layout: How the model keeps its KV.
        vocab_size: Width of its logits.
        joinable: Whether its sequences can share a forward pass.
        ahead: How exact a pass over guessed tokens is.
        ahead_together: The same, if several sequences share the pass.
        shares: Whether its sequences can read one copy of a prefix; its modules then attend through `shared_attention`.
        views: Whether logits after the last token of a pass alone can be had.
    """

    layout: Layout
    vocab_size: int
    joinable: bool
    ahead: Ahead
    ahead_together: Ahead
    shares: bool
    views: bool

    def view(self, model: Any) -> LastLogits | None:
        """Return the view of a model that computes logits after the last token alone; None if it has none."""
        return LastLogits(model) if self.views else None


class Verdicts:
    """The verdicts on whole models that this process has loaded. One thread at a time."""

    def __init__(self) -> None:
        self._known = LruDict[ModelKey, Verdict](MOST_MODELS)

    def reach(self, source: ModelSource, model: Any, shard: Shard) -> Sliced[Verdict]:
        """
        Return the verdict on a module with evaluated arrays: that of an earlier load, or that of tests now.

        Tests compute a layer for each `next`. The verdict is not kept until `keep` is called.
        """
        known = self._known.get(source.key) if shard is WHOLE else None
        if known is None:
            return (yield from _testing(source, model, shard))
        if known.shares:
            shared_attention.install(model)
        return known

    def keep(self, source: ModelSource, verdict: Verdict, shard: Shard) -> None:
        """Keep a verdict. The weights must be those that the key names."""
        if shard is WHOLE:
            self._known.put(source.key, verdict)


def _testing(source: ModelSource, model: Any, shard: Shard) -> Sliced[Verdict]:
    layout = yield from probing(model)
    failpoint("load.probed")
    layout = shard.alike(source, layout)
    logits = yield from _a_token(model, layout)
    joinable = yield from proving(model)
    ahead = yield from trying(model, layout)
    together = yield from trying_rows(model, ahead, joinable=joinable)
    shares = yield from proving_shared(model, layout)
    view = yield from viewing(model, layout)
    return Verdict(layout, int(logits.shape[-1]), joinable, ahead, together, shares, view is not None)


def _a_token(model: Any, layout: Layout) -> Pass:
    """Compute logits in the way in which requests compute them: their width is the vocabulary's."""
    return forward_layerwise(model, mx.array([[0]]), layout.new_cache(model, 1))
