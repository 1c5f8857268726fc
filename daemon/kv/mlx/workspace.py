"""
The workspace of a forward pass: the memory that it takes beside weights and KV, measured at load and extrapolated.

A pass takes temporary arrays: hidden states, the inner layers of an MLP, and attention scores where the device has no
fused kernel for the shape. How much that is depends on the model, the backend, and the kernels that it chooses. So it
is measured rather than computed. For `width` tokens behind `context` others,

    bytes = width * (fixed(width) + scores(context + width))

`fixed` has a node for each measured width; between nodes it is interpolated, and beyond the last one it goes on as it
rose there, since windows and scans grow with the square of the width. A pass of a decode step has a few tokens, and
buffers that do not shrink with them: its bytes are on the line from a pass of one token, measured as well. `scores` has
nodes for contexts. They are measured with one small width over caches of zeros, which costs no forward pass over a long
prompt. A model with windows alone has no such nodes: its passes are measured behind full windows.

MLX makes room for operations ahead of those that it computes. How many depends on which of two threads is faster, so
that a pass of short operations takes up to a quarter less at times. Short passes are therefore measured several times,
and the largest counts. In long operations the thread that makes room is always as far ahead as it may be.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx

from daemon.kv.mlx import peak
from daemon.kv.mlx.adapters import ADAPTERS
from daemon.kv.mlx.adapters.cache_list import leaves
from daemon.kv.mlx.layout import Layout
from daemon.shared.readings import agreed
from daemon.shared.slices import LONG, Sliced

PROBE = 64
"""Tokens of the smallest pass that is measured. Devices have other kernels for passes of a few tokens."""

TRIES = 4
"""Times that a short pass is measured at most."""

TRY_SECONDS = 0.02
"""Time after which a pass is not measured again. A busy machine needs longer: the smallest ones are tried twice."""

_WIDTHS = (256, 1024)
_CONTEXTS = (3072, 4096)

MOST_SECONDS = 0.25
"""
Time that the widest pass may take, to be worth its measurement. The one before it is always measured: scans of
recurrent layers take twice as much for each of 256 tokens as for each of 64.
"""

_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length")
"""Names of a model's arguments for its positions. A table of positions must not be read beyond its end."""

MARGIN = 1.1
"""A pass is billed so many times what was measured: buffers are rounded up, and their order differs a little."""

Node = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Workspace:
    """
    Bytes that a forward pass takes beside weights and KV.

    Attributes:
        fixed: Bytes of a token by the tokens of the pass, in order.
        scores: Further bytes of a token by the tokens that it attends to, in order.
        single: Bytes of a pass of one token.
    """

    fixed: tuple[Node, ...] = ()
    scores: tuple[Node, ...] = ()
    single: float = 0.0

    def bytes(self, width: int, context: int = 0) -> int:
        """
        Return the bytes of a pass.

        Args:
            width: Tokens that are computed, of all rows.
            context: Most tokens that a row holds before the pass.
        """
        scores = width * _line(self.scores, context + width - PROBE)
        return int(MARGIN * (self._few(width) + scores))

    def _few(self, width: int) -> float:
        """Return the bytes of a pass without scores; of few tokens, on the line from one token to the first node."""
        alike = width * _line(self.fixed, width)
        if not self.fixed or width >= self.fixed[0][0]:
            return alike
        probe, each = self.fixed[0]
        return max(alike, self.single + (probe * each - self.single) * (width - 1) / (probe - 1))


NO_WORK = Workspace()
"""Of a model that was not measured."""


def measuring(model: Any, layout: Layout, seconds: float = MOST_SECONDS) -> Sliced[Workspace]:
    """
    Measure passes of a model with evaluated weights, one for each `next`.

    Args:
        model: The model.
        layout: Its layout.
        seconds: Time that the widest pass may take.
    """
    positions = _positions(model)
    filled = min(_filled(layout), max(0, positions - _WIDTHS[-1]))
    probe = min(PROBE, positions)
    single, _ = yield from _largest(model, layout, 1, filled)
    alone, took = yield from _largest(model, layout, probe, filled)
    scores: list[Node] = [(0, 0.0)]
    for context in _CONTEXTS if layout.shapes and layout.full_bytes(1) else ():
        if context + PROBE <= positions:
            behind, _ = yield from _largest(model, layout, PROBE, context)
            scores.append((context, max(scores[-1][1], (behind - alone) / PROBE)))
    behind_itself = Workspace((), tuple(scores))
    fixed: list[Node] = [(PROBE, alone / probe)]
    for width in _WIDTHS:
        if width > positions or (width > _WIDTHS[0] and took * width / fixed[-1][0] > seconds):
            break
        more, took = yield from _largest(model, layout, width, filled)
        fixed.append((width, max(0.0, more - behind_itself.bytes(width) / MARGIN) / width))
    return Workspace(tuple(fixed), tuple(scores), float(single))


def _filled(layout: Layout) -> int:
    """
    Return the tokens behind which passes of a model without full attention are measured: as many as fill its windows.

    Contexts are not told apart there, and a pass behind full windows attends to the most tokens.
    """
    return 0 if layout.full_bytes(1) else max((group.window or 0 for group in layout.parts.groups), default=0)


def _largest(model: Any, layout: Layout, width: int, context: int) -> Sliced[tuple[int, float]]:
    """Return the largest workspace of a few equal passes, and the seconds of the fastest."""
    most, spent, fastest = 0, 0.0, math.inf
    for again in range(TRIES):
        taken, seconds = yield from _pass(model, layout, width, context)
        most, spent, fastest = max(most, taken), spent + seconds, min(fastest, seconds)
        if spent > TRY_SECONDS and (again or width > PROBE or context):
            break
    return most, fastest


def _pass(model: Any, layout: Layout, width: int, context: int) -> Sliced[tuple[int, float]]:
    """
    Return workspace and seconds of one pass, which is evaluated as those of requests are: as a whole, without logits.

    Layer by layer it would take less: MLX computes the states of several recurrent layers at a time.
    """
    yield LONG
    room = context + width + 1  # a pass that fills a cache replaces its arrays, rather than writing into them
    with peak.measuring() as pass_:
        caches = layout.new_cache(model, room)
        flat = list(leaves(caches))
        if context:
            for cache, shape in zip(flat, layout.shapes, strict=True):
                ADAPTERS[type(cache)].pretend(cache, shape, context)
        mx.eval([cache.state for cache in flat if not cache.empty()])
        began = time.perf_counter()
        model(mx.array([[index % 7 + 1 for index in range(width)]]), cache=caches)
        layout.compact(caches)
        mx.eval([cache.state for cache in caches])
        mx.synchronize()
        seconds = agreed(time.perf_counter() - began)
    sizes = [getattr(cache, "nbytes", None) for cache in flat]
    kv = layout.live_bytes(room, width) if None in sizes else sum(size for size in sizes if size is not None)
    return max(0, pass_.bytes - int(agreed(kv))), seconds


def _line(nodes: Sequence[Node], at: float) -> float:
    """Return the value at a place: on the lines between nodes, and beyond the last as it rose before it."""
    if not nodes:
        return 0.0
    if len(nodes) == 1 or at <= nodes[0][0]:
        return nodes[0][1]
    pairs = list(pairwise(nodes))
    (left, low), (right, high) = next((pair for pair in pairs if at <= pair[1][0]), pairs[-1])
    slope = (high - low) / (right - left)
    return high + (at - right) * (slope if at <= right else max(0.0, slope))


def _positions(model: Any) -> int:
    """Return the positions that a model may have, as far as its arguments say it."""
    arguments: Any = getattr(model, "args", None)
    known = [getattr(arguments, name, None) for name in _LENGTHS]
    text = getattr(arguments, "text_config", None)
    known += [text.get(name) for name in _LENGTHS] if isinstance(text, dict) else []
    return min([count for count in known if isinstance(count, int) and count > 0], default=_CONTEXTS[-1] + PROBE)
