"""
The self-tests of a load: what a model's passes can be trusted with, and which models were tested before.

They take about fifty passes over a few tokens each. For a model of tens of gigabytes these are seconds, most of them
spent on reading its weights. The same weights give the same results in the same place (`computing_place.py`), so that
a model is tested once. Ranks of a group test at each load, since they have to do so at the same time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import structlog

from daemon.cache.identity import ModelKey, ModelSource
from daemon.cache.mlx.last_logits import LastLogits, viewing
from daemon.cache.mlx.load_notes import Kind, LoadNotes, name_of
from daemon.cache.mlx.shard import WHOLE, Shard
from daemon.kv.mlx import shared_attention
from daemon.kv.mlx.guess_passes import Exactness, trying
from daemon.kv.mlx.guess_passes_of_rows import trying_rows
from daemon.kv.mlx.layerwise import Pass, forward_layerwise
from daemon.kv.mlx.layout import Layout, describing
from daemon.kv.mlx.self_test import proven, proving, without_reuse
from daemon.kv.mlx.shared_self_test import proving_shared
from daemon.shared.failpoints import failpoint
from daemon.shared.slices import Sliced

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    What the self-tests found.

    Attributes:
        reuses: Whether a restored cache computes what it was copied from does.
        vocab_size: Width of the logits.
        joinable: Whether sequences can share a forward pass.
        guess_exactness: How exact a pass over guessed tokens is.
        guess_exactness_together: The same, if several sequences share the pass.
        shares: Whether sequences can read one copy of a prefix; the modules then attend through `shared_attention`.
        views: Whether logits after the last token of a pass alone can be had.
    """

    reuses: bool
    vocab_size: int
    joinable: bool
    guess_exactness: Exactness
    guess_exactness_together: Exactness
    shares: bool
    views: bool

    def view(self, model: Any) -> LastLogits | None:
        """Return the view of a model that computes logits after the last token alone; None if it has none."""
        return LastLogits(model) if self.views else None


class Verdicts:
    """
    The verdicts on whole models. Belongs to the MLX thread.

    Args:
        notes: Keeps them; for this process only if None.
    """

    def __init__(self, notes: LoadNotes[Verdict] | None = None) -> None:
        self._notes = notes or LoadNotes[Verdict]()

    def reach(self, source: ModelSource, model: Any, shard: Shard) -> Sliced[tuple[Layout, Verdict]]:
        """
        Return the layout of a module with evaluated arrays, and the verdict: of an earlier load, or of tests now.

        A pass over one token finds the layout. Passes compute a layer for each `next`. The verdict is not kept until
        `keep` is called. Each load logs it.
        """
        layout = yield from describing(model)
        known = self._notes.find(_name(source.key, layout)) if shard is WHOLE else None
        if known is None:
            layout, verdict = yield from _testing(source, model, layout, shard)
        else:
            verdict = known
            if layout.reusable and not verdict.reuses:
                layout = without_reuse(layout)
            if verdict.shares:
                shared_attention.install(model)
        log.info(
            "model_tested",
            model=source.name,
            known=known is not None,
            reuses=verdict.reuses,
            joinable=verdict.joinable,
            shares=verdict.shares,
            guess_exactness=verdict.guess_exactness.name.lower(),
            guess_exactness_together=verdict.guess_exactness_together.name.lower(),
        )
        return layout, verdict

    def keep(self, source: ModelSource, layout: Layout, verdict: Verdict, shard: Shard) -> None:
        """Keep a verdict. The weights must be those that the key names."""
        if shard is WHOLE:
            self._notes.keep(_name(source.key, layout), verdict)


def _name(key: ModelKey, layout: Layout) -> str:
    return name_of(key, layout.signature)


def _encoded(verdict: Verdict) -> Any:
    alone, together = verdict.guess_exactness.name, verdict.guess_exactness_together.name
    return {**asdict(verdict), "guess_exactness": alone, "guess_exactness_together": together}


def _decoded(values: Any) -> Verdict:
    flags = {name: values[name] for name in ("reuses", "joinable", "shares", "views")}
    if not all(type(flag) is bool for flag in flags.values()) or type(values["vocab_size"]) is not int:
        raise ValueError("no verdict")
    alone, together = (Exactness[values[name]] for name in ("guess_exactness", "guess_exactness_together"))
    vocab_size = values["vocab_size"]
    return Verdict(vocab_size=vocab_size, guess_exactness=alone, guess_exactness_together=together, **flags)


VERDICTS: Kind[Verdict] = Kind("verdicts.json", 2, _encoded, _decoded)
"""The version goes up whenever the tests of the same code would mean something else by the same words."""


def _testing(source: ModelSource, model: Any, layout: Layout, shard: Shard) -> Sliced[tuple[Layout, Verdict]]:
    layout = yield from proven(model, layout)
    failpoint("load.probed")
    layout = shard.alike(source, layout)
    logits = yield from _a_token(model, layout)
    joinable = yield from proving(model)
    alone = yield from trying(model, layout)
    together = yield from trying_rows(model, alone, joinable=joinable)
    shares = yield from proving_shared(model, layout)
    view = yield from viewing(model, layout)
    vocab_size = int(logits.shape[-1])
    return layout, Verdict(layout.reusable, vocab_size, joinable, alone, together, shares, view is not None)


def _a_token(model: Any, layout: Layout) -> Pass:
    """Compute logits in the way in which requests compute them: their width is the vocabulary's."""
    return forward_layerwise(model, mx.array([[0]]), layout.new_cache(model, 1))
