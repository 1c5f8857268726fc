"""
A view of a model that computes logits after the last token of a pass alone.

A head multiplies each hidden state with the whole vocabulary. Of a chunk of a prompt, the logits after its last token
are wanted and no others. So the view calls the code of the model's own class, on an object that differs in one thing:
its trunk returns the last state only. Heads, scales and caps are the model's.

    model(tokens)   ->  trunk(tokens)           ->  head  ->  logits [rows, tokens, vocab]
    view(tokens)    ->  trunk(tokens)[:, -1:]   ->  head  ->  logits [rows, 1, vocab]

The class of a model may do anything there. So each model is tried at load, and one that gives other logits has no view.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import structlog

from daemon.kv.mlx.layerwise import forward_layerwise
from daemon.kv.mlx.layout import Layout
from daemon.kv.mlx.self_test import same_row
from daemon.shared.log_fields import Words, cause
from daemon.shared.machine_faults import machine_fault
from daemon.shared.slices import Sliced

log = structlog.get_logger()

_TRUNKS = ("model", "transformer", "backbone")
"""The names that models of mlx-lm give to the part that computes hidden states."""

_TRIED = (1, 2, 3)
"""Token ids of the trial."""


class LastLogits:
    """
    The view: called like the model, it returns logits of shape [rows, 1, vocab].

    Args:
        model: mlx-lm's module. It stays as it is.
    """

    def __init__(self, model: Any) -> None:
        self.__dict__["_model"] = model

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Run the code of the model's class."""
        return type(self._model).__call__(self, *arguments, **named)

    def __getattr__(self, name: str) -> Any:
        part = getattr(self._model, name)
        if name == "language_model":
            return LastLogits(part)
        return _LastState(part) if name in _TRUNKS else part

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._model, name, value)

    def __contains__(self, name: str) -> bool:
        return name in self._model


class _LastState:
    """A trunk that returns the last of its hidden states; all else of it is as it was."""

    def __init__(self, trunk: Any) -> None:
        self._trunk = trunk

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._trunk(*arguments, **named)[:, -1:]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trunk, name)


def viewing(model: Any, layout: Layout) -> Sliced[LastLogits | None]:
    """Return the view of a model with evaluated arrays, a layer for each `next`; None if its logits are others."""
    view, tokens = LastLogits(model), mx.array([_TRIED])
    expected = yield from forward_layerwise(model, tokens, layout.new_cache(model, len(_TRIED)))
    try:
        got = yield from forward_layerwise(view, tokens, layout.new_cache(model, len(_TRIED)))
    except Exception as error:  # the model's own code may raise anything
        if machine_fault(error, "") is not None:
            raise
        log.info("last_logits_unused", error=cause(error))
        return None
    # Kernels depend on the number of states, and so do the last bits. Logits of another place are far from these.
    if got.shape[:2] == (1, 1) and same_row(got[0, -1], expected[0, -1], math.inf):
        return view
    log.info("last_logits_unused", error=Words("its logits are others"))
    return None
