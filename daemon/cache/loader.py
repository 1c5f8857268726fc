"""
Loads a model in slices that fit between engine steps. With its assembly and its warm-up, the only part of the model
cache that touches MLX.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from daemon.cache.assembly import assembling, refuse_partial_adapter
from daemon.cache.built import arrays, nbytes
from daemon.cache.entry import Loaded, Progress, Stage
from daemon.cache.identity import ModelSource, changed
from daemon.cache.pace import SLICE_SECONDS, Pace, paced
from daemon.cache.warmup import WarmUp, warm_up
from daemon.errors import Reason, SidecarError
from daemon.failpoints import failpoint
from daemon.kv.layout import Layout
from daemon.kv.passes import Pass, in_pieces
from daemon.kv.probe import probing
from daemon.kv.rows import proving
from daemon.machine import machine_fault

SLICE_BYTES = 1 << 30
"""Most bytes of weights evaluated between two engine steps; see `Pace`."""

_MOST_SAID = 500
"""Characters of what a library says: some list every tensor that is missing."""
_UNREAD = ("[read] Unable to read", "[load_safetensors] Failed to open")
"""How MLX begins if a file cannot be read or opened; it does not say why."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """
    A model in memory.

    Attributes:
        source: What was loaded.
        model: mlx-lm's module. Only the MLX thread may touch it.
        layout: How it keeps its KV.
        nbytes: Bytes of its weights.
        vocab_size: Width of its logits.
        joinable: Whether its sequences can share a forward pass.
        warmup_time: Seconds that the warm-up took; 0 if there was none.
    """

    source: ModelSource
    model: Any
    layout: Layout
    nbytes: int
    vocab_size: int
    joinable: bool = False
    warmup_time: float = 0.0


def load(
    source: ModelSource,
    warmup_tokens: int,
    clock: Callable[[], float],
    seconds: Callable[[], float] = lambda: SLICE_SECONDS,
    room: Callable[[], object] = lambda: None,
) -> Generator[Progress, None, Loaded[LoadedModel]]:
    """
    Load a model, one slice for each `next`; the generator returns the model. Closing it abandons the load.

    A slice takes about `seconds()`; no less than one array of weights, one layer of a forward pass of a block, or
    one of the few pieces in which the module is assembled. Until the yield that tells what the model needs, no weight
    is read and no memory taken.

    Args:
        source: What to load.
        warmup_tokens: Tokens of the warm-up; 0 for none.
        clock: Seconds that never go back.
        seconds: Tells how long running streams may wait now.
        room: Called once what the model needs is told and granted, before anything of it takes memory.

    Raises:
        SidecarError: MODEL_UNSUPPORTED or MODEL_CORRUPT; MACHINE_EXHAUSTED or MACHINE_FAULT if it is not the model.
    """
    begun = Progress(Stage.LOADING, 0, source.size_bytes)
    with _refusing(source):
        model = yield from paced(assembling(source), begun, clock, seconds)
    weights = arrays(model)
    yield replace(begun, needs=nbytes(weights))
    room()
    with _refusing(source):
        if source.adapter_path is not None:
            refuse_partial_adapter(model, source.adapter_path)
    done = 0
    pace = Pace(SLICE_BYTES, seconds)
    for piece in _slices(weights, pace):
        failpoint("load.slice")
        began = clock()
        with _refusing(source):
            mx.eval(piece)
        size = nbytes(piece)
        pace.measured(size, clock() - began)
        done += size
        yield Progress(Stage.LOADING, done, max(done, source.size_bytes))
    _refuse_if_changed(source)
    loaded_all = Progress(Stage.LOADING, done, max(done, source.size_bytes))
    with _refusing(source):
        layout = yield from paced(probing(model), loaded_all, clock, seconds)
        logits = yield from paced(_a_token(model, layout), loaded_all, clock, seconds)
        joinable = yield from paced(proving(model), loaded_all, clock, seconds)
    loaded = LoadedModel(source, model, layout, done, int(logits.shape[-1]), joinable)
    if warmup_tokens:
        yield Progress(Stage.WARMING_UP)
        warmup = WarmUp(model, layout, warmup_tokens)
        yield from paced(warm_up(warmup, clock), Progress(Stage.WARMING_UP), clock, seconds)
        loaded = replace(loaded, warmup_time=warmup.seconds)
    return Loaded(loaded, done)


@contextmanager
def _refusing(source: ModelSource) -> Iterator[None]:
    """Turn whatever mlx-lm raises into a refusal: what a wrong configuration or file makes it raise can be anything."""
    try:
        yield
    except SidecarError:
        raise
    except Exception as error:
        raise _refusal(source, error) from error


def _refusal(source: ModelSource, error: Exception) -> SidecarError:
    cannot = f"{source.name} cannot be loaded"
    fault = machine_fault(error, cannot)
    if fault is not None:
        return fault
    said = str(error)
    if said.startswith(_UNREAD):
        return _unread(source, said)
    unsupported = isinstance(error, ValueError) and "not supported" in said
    reason = Reason.MODEL_UNSUPPORTED if unsupported else Reason.MODEL_CORRUPT
    what = f"{source.name} is not supported by this mlx-lm" if unsupported else cannot
    return SidecarError(reason, f"{what}: {type(error).__name__}: {_shortened(said)}")


def _unread(source: ModelSource, said: str) -> SidecarError:
    """Tell why a file could not be read: headers and sizes were right, so that the model is not damaged."""
    try:
        if changed(source):
            return _changed(source)
        for file, _ in source.stamps:
            with Path(file).open("rb") as opened:
                opened.read(1)
    except OSError as error:
        fault = machine_fault(error, f"{source.name} cannot be read")
        if fault is not None:
            return fault
    return SidecarError(
        Reason.MACHINE_FAULT, f"{source.name} cannot be read: {_shortened(said)}; check the disk that it is on"
    )


def _shortened(said: str) -> str:
    return said if len(said) <= _MOST_SAID else f"{said[:_MOST_SAID]} …"


def _refuse_if_changed(source: ModelSource) -> None:
    """The key must name what was read, or its KV would be used with other weights."""
    with _refusing(source):
        if changed(source):
            raise _changed(source)


def _changed(source: ModelSource) -> SidecarError:
    return SidecarError(Reason.MODEL_CORRUPT, f"{source.name} changed on disk while it was loaded; ask again")


def _a_token(model: Any, layout: Layout) -> Pass:
    """Compute logits in the way in which requests compute them: their width is the vocabulary's."""
    return in_pieces(model, mx.array([[0]]), layout.new_cache(model, 1))


def _slices(weights: list[mx.array], pace: Pace) -> Iterator[list[mx.array]]:
    """Group arrays so that each group is at most a slice, or a single larger array."""
    piece: list[mx.array] = []
    size = 0
    for array in weights:
        if piece and size + array.nbytes > pace.nbytes:
            yield piece
            piece, size = [], 0
        piece.append(array)
        size += array.nbytes
    if piece:
        yield piece
