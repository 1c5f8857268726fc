"""
Loads a model in slices that fit between engine steps. With its assembly and its warm-up, the only part of the model
cache that touches MLX.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import structlog
from mlx_lm import models
from mlx_lm.utils import MODEL_REMAPPING

from daemon.cache.callbacks import Rest, ignore
from daemon.cache.digests import SETTLED_NS, Stamp
from daemon.cache.identity import ModelSource
from daemon.cache.load import Loaded, Progress, Stage
from daemon.cache.mlx.assembly import assembling, refuse_partial_adapter
from daemon.cache.mlx.module_size import arrays, nbytes
from daemon.cache.mlx.warm_up import WarmUp, warm_up
from daemon.cache.mlx.weights import Found, Reading
from daemon.cache.pace import SLICE_SECONDS, Pace, paced
from daemon.kv.mlx.layerwise import Pass, forward_layerwise
from daemon.kv.mlx.layout import Layout
from daemon.kv.mlx.self_test import probing, proving
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.failpoints import failpoint
from daemon.shared.machine_faults import machine_fault

log = structlog.get_logger()

SLICE_BYTES = 1 << 30
"""Most bytes of weights evaluated between two engine steps; see `Pace`."""


_MOST_SAID = 500
"""Characters of what a library says: some list every tensor that is missing."""
_UNREAD = ("[read] Unable to read", "[load_safetensors] Failed to open")
"""How MLX begins if a file cannot be read or opened; it does not say why. Its header and its size were right."""

Learn = Callable[[Path, Stamp, str], None]
"""Called with a file, its state before it was read, and the SHA-256 of what was read; see `Digests.learn`."""


class MisnamedError(SidecarError):
    """
    What was loaded is not what the key names. From now on its files are known by what they hold: ask for it again.

    Args:
        name: The model's name.
        files: Names of the files.
    """

    def __init__(self, name: str, files: str) -> None:
        super().__init__(
            Reason.MODEL_CORRUPT,
            f"{files} of {name} changed on disk, or is not the file that its name says; ask again",
            retry_after=SETTLED_NS / 1e9,
        )


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
    learn: Learn = ignore,
    rest: Rest = ignore,
    room: Callable[[], object] = lambda: None,
) -> Generator[Progress, None, Loaded[LoadedModel]]:
    """
    Load a model, one slice for each `next`; the generator returns the model. Closing it abandons the load.

    A slice takes about `seconds()`; no less than one array of weights, one layer of a forward pass of a block, or
    one of the few pieces in which the module is assembled.

    Args:
        source: What to load.
        warmup_tokens: Tokens of the warm-up; 0 for none.
        clock: Seconds that never go back.
        seconds: Tells how long running streams may wait now.
        learn: Told of each file that holds something else than expected; see `Digests.learn`.
        rest: What the threads take that hash what is read; see `Hashing`.
        room: Called once what the model needs is told and granted, before anything of it takes memory.

    Raises:
        MisnamedError: If what was loaded is not what the key names.
        SidecarError: MODEL_UNSUPPORTED or MODEL_CORRUPT; MACHINE_EXHAUSTED or MACHINE_FAULT if it is not the model.
    """
    reading = Reading(source, Pace(SLICE_BYTES, seconds), clock, rest)
    with closing(reading):
        return (yield from _load(source, reading, warmup_tokens, clock, seconds, learn, room))


def _load(
    source: ModelSource,
    reading: Reading,
    warmup_tokens: int,
    clock: Callable[[], float],
    seconds: Callable[[], float],
    learn: Learn,
    room: Callable[[], object],
) -> Generator[Progress, None, Loaded[LoadedModel]]:
    begun = _progress(0, source.size_bytes)
    with _refusing(source):
        model = yield from paced(assembling(source, reading), begun, clock, seconds)
    everything = arrays(model)
    done = nbytes(everything)
    yield replace(begun, needs=done)
    room()
    if source.adapter_weights is not None:
        with _refusing(source):
            refuse_partial_adapter(model, source.adapter_config, reading.adapter_names)
    computed = reading.others(everything)
    del everything
    with _refusing(source):
        for _ in reading.read():
            yield _progress(reading.done, source.size_bytes)
    yield _progress(reading.done, source.size_bytes)
    pace = Pace(SLICE_BYTES, seconds)
    for piece in _slices(computed, pace):
        failpoint("load.slice")
        began = clock()
        with _refusing(source):
            mx.eval(piece)
        pace.measured(nbytes(piece), clock() - began)
        yield _progress(reading.done, source.size_bytes)
    computed.clear()
    loaded_all = _progress(max(done, reading.done), source.size_bytes)
    with _refusing(source):
        layout = yield from paced(probing(model), loaded_all, clock, seconds)
        logits = yield from paced(_a_token(model, layout), loaded_all, clock, seconds)
        joinable = yield from paced(proving(model), loaded_all, clock, seconds)
    loaded = LoadedModel(source, model, layout, done, int(logits.shape[-1]), joinable)
    last = loaded_all
    if warmup_tokens:
        last = Progress(Stage.WARMING_UP)
        yield last
        warmup = WarmUp(model, layout, warmup_tokens)
        yield from paced(warm_up(warmup, clock), last, clock, seconds)
        loaded = replace(loaded, warmup_time=warmup.seconds)
    found = yield from paced(reading.found(seconds), last, clock, seconds)
    _refuse_misnamed(source, found, learn)
    return Loaded(loaded, done)


def _progress(done: int, total: int) -> Progress:
    return Progress(Stage.LOADING, done, max(done, total))


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
        return SidecarError(
            Reason.MACHINE_FAULT, f"{source.name} cannot be read: {_shortened(said)}; check the disk that it is on"
        )
    unsupported = isinstance(error, ValueError) and "not supported" in said
    reason = Reason.MODEL_UNSUPPORTED if unsupported else Reason.MODEL_CORRUPT
    what = f"{source.name} is not supported by this mlx-lm" if unsupported else cannot
    return SidecarError(reason, f"{what}: {type(error).__name__}: {_shortened(said)}")


def _shortened(said: str) -> str:
    return said if len(said) <= _MOST_SAID else f"{said[:_MOST_SAID]} …"


def _refuse_misnamed(source: ModelSource, found: list[Found], learn: Learn) -> None:
    """The key must name what was read, or its KV would be used with other weights."""
    others = [one for one in found if not one.is_expected]
    for one in others:
        log.warning("a weight file holds other bytes than it was known by", file=one.expected.path.name)
        learn(one.expected.path, one.stamp, one.digest)
    if others:
        names = ", ".join(one.expected.path.name for one in others)
        raise MisnamedError(source.name, names)


def _a_token(model: Any, layout: Layout) -> Pass:
    """Compute logits in the way in which requests compute them: their width is the vocabulary's."""
    return forward_layerwise(model, mx.array([[0]]), layout.new_cache(model, 1))


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


def supported(model_type: str) -> bool:
    """Whether mlx-lm has a module for a model_type. Not every module is a model: building it may still fail."""
    return MODEL_REMAPPING.get(model_type, model_type) in _modules()


@cache
def _modules() -> frozenset[str]:
    return frozenset(file.stem for folder in models.__path__ for file in Path(folder).glob("*.py"))
