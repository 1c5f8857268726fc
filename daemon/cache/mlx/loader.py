"""
Loads a model in slices that fit between engine steps.

From a checked model on disk to a model that requests can use:

1. **Assemble** (`assembly.py`): mlx-lm constructs the module. Its arrays are promises: headers were read, weights not.
2. **Weigh** (`module_size.py`): the module's shapes give the bytes that it needs. The load pauses until there is room.
3. **Read** (`weights.py`): the arrays are evaluated in the order of their files, a slice at a time. Threads hash the
   memory that was read into (`hashing.py`).
4. **Compute**: arrays that mlx-lm derives from weights, or adds, are evaluated in slices too.
5. **Self-test** (`self_tests.py`): a first forward pass finds the layout of the KV cache. It is proven that a restored
   cache and a batch compute the same tokens, or the model gets neither reuse nor batches. Hashing goes on meanwhile.
   What a pass takes is measured. What an earlier load found out is neither tested nor measured (`load_notes.py`).
6. **Warm up** (`warm_up.py`), if that is configured.
7. **Compare** the digests with those that the model's key was made of. If a file differs, the load fails, and the
   file is known by its new digest from then on: KV must never be stored under the key of other weights.

The load is a generator on the MLX thread. To close it, or an error, drops all arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import structlog
from mlx_lm import models
from mlx_lm.utils import MODEL_REMAPPING

from daemon.cache.callbacks import Rest, ignore
from daemon.cache.context_length import most_positions
from daemon.cache.digests import SETTLED_NS, Stamp
from daemon.cache.identity import ModelSource
from daemon.cache.load import Loaded, Progress, Stage
from daemon.cache.mlx.assembly import assembling, refuse_partial_adapter
from daemon.cache.mlx.last_logits import LastLogits
from daemon.cache.mlx.load_errors import load_errors
from daemon.cache.mlx.measurements import Measurements
from daemon.cache.mlx.module_size import arrays, nbytes
from daemon.cache.mlx.mtp import NO_HEAD, Head, MtpHead, tried_head
from daemon.cache.mlx.mtp_checkpoints import TakenHead, head_or_reason
from daemon.cache.mlx.self_tests import Verdict, Verdicts
from daemon.cache.mlx.shard import WHOLE, Shard
from daemon.cache.mlx.warm_up import PROMPT, WarmUp, warm_up
from daemon.cache.mlx.weights import FileDigest, Reading
from daemon.cache.pace import SLICE_SECONDS, Pace, paced
from daemon.kv.mlx.guess_passes import Exactness
from daemon.kv.mlx.layout import Layout
from daemon.kv.mlx.workspace import NO_WORK, Workspace, measuring
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.failpoints import failpoint
from daemon.shared.slices import SHORT, Sliced

R = TypeVar("R")

log = structlog.get_logger()

SLICE_BYTES = 1 << 30
"""Most bytes of weights evaluated between two engine steps, whatever the disk can do; see `Pace`."""

_MEASURED = Measurements()
"""Those of callers that bring none."""

Learn = Callable[[Path, Stamp, str], None]
"""Gets a file, its stamp before it was read, and the SHA-256 of the bytes that were read; see `Digests.learn`."""


class MisnamedError(SidecarError):
    """
    The weights that were loaded are not those that the key names. Their files are known by their content from now on:
    look the model up again.

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
        source: The model on disk that was loaded.
        model: mlx-lm's module. Only the MLX thread may touch it.
        layout: How it keeps its KV.
        nbytes: Bytes of its weights.
        vocab_size: Width of its logits.
        joinable: Whether its sequences can share a forward pass.
        guess_exactness: How exact a pass over guessed tokens is.
        guess_exactness_together: The same, if several sequences share the pass.
        work: The memory that a forward pass takes.
        shares: Whether its sequences can read one copy of a prefix that they have in common.
        warmup_time: Seconds that the warm-up took; 0 if there was none.
        mtp: Its MTP head; why it has none otherwise.
        last: Computes logits after the last token of a pass alone; None if that cannot be had.
    """

    source: ModelSource
    model: Any
    layout: Layout
    nbytes: int
    vocab_size: int
    joinable: bool = False
    guess_exactness: Exactness = Exactness.WRONG
    guess_exactness_together: Exactness = Exactness.WRONG
    work: Workspace = NO_WORK
    shares: bool = False
    warmup_time: float = 0.0
    mtp: MtpHead | str = NO_HEAD
    last: LastLogits | None = None


_Slices = Generator[Progress, None, R]
"""Work that reports its progress after each slice, and returns a result."""


@dataclass(frozen=True, slots=True)
class LoadSetup:
    """
    What all loads of an engine have in common.

    Attributes:
        clock: Returns seconds that never go back.
        seconds: Returns how long a slice may take now: running streams wait for it.
        learn: Gets each file with another content than expected; see `Digests.learn`.
        rest: Called by the threads that hash; see `Hashing`.
        room: Gets a model's name when the bytes that it needs were reported and granted, before any of them is taken.
        shard: Cuts the module, so that this rank's part is left. Parts are read from the files, and their digests are
            those that the model was found by.
        measured: What passes of models take that were loaded before.
        verdicts: What self-tests found of models that were loaded before.
    """

    clock: Callable[[], float]
    seconds: Callable[[], float] = lambda: SLICE_SECONDS
    learn: Learn = ignore
    rest: Rest = ignore
    room: Callable[[str], object] = lambda _: None
    shard: Shard = WHOLE
    measured: Measurements = _MEASURED
    verdicts: Verdicts = field(default_factory=Verdicts)

    def sliced(self, work: Sliced[R], progress: Progress) -> _Slices[R]:
        """Do work in slices, reporting the same progress after each."""
        return paced(work, progress, self.clock, self.seconds)


def supported(model_type: str) -> bool:
    """Return whether mlx-lm has a module for a model_type. Not every module is a model: building it may still fail."""
    return MODEL_REMAPPING.get(model_type, model_type) in _module_names()


@cache
def _module_names() -> frozenset[str]:
    return frozenset(file.stem for folder in models.__path__ for file in Path(folder).glob("*.py"))


def load(source: ModelSource, warmup_tokens: int, setup: LoadSetup) -> Generator[Progress, None, Loaded[LoadedModel]]:
    """
    Load a model, a slice for each `next`; the generator returns the model. Closing it abandons the load.

    A slice takes about `setup.seconds()`. It cannot be less than an array of weights, a layer of a forward pass over a
    block, or a piece of the module's assembly.

    Args:
        source: The model on disk.
        warmup_tokens: Tokens of the warm-up; 0 for none.
        setup: What all loads have in common.

    Raises:
        MisnamedError: If the weights are not those that the key names.
        SidecarError: MODEL_UNSUPPORTED or MODEL_CORRUPT; MACHINE_EXHAUSTED or MACHINE_FAULT if it is not the model.
    """
    shard, verdicts = setup.shard, setup.verdicts
    pace = Pace(SLICE_BYTES, setup.seconds)
    with closing(Reading(source, pace, setup.clock, setup.rest)) as reading, shard.noted():
        model, head, needed, computed = yield from _weighed(source, reading, setup)
        setup.room(source.name)
        yield from _evaluate(source, model, computed, reading, setup)
        progress = _loading(max(needed, reading.done), source.size_bytes)
        with load_errors(source):
            layout, verdict = yield from setup.sliced(verdicts.reach(source, model, shard), progress)
            work = yield from _measured(source, model, layout, progress, setup)
        loaded = yield from _with_head(_loaded(source, model, layout, needed, verdict, work), head, progress, setup)
        if warmup_tokens:
            progress = Progress(Stage.WARMING_UP)
            yield progress
            loaded = yield from _warmed_up(loaded, warmup_tokens, progress, setup)
        # Last: the threads that hash have had the time of the self-tests and of the warm-up.
        digests = yield from setup.sliced(reading.digests(setup.seconds), progress)
        _refuse_misnamed(source, digests, setup.learn)
        verdicts.keep(source, layout, verdict, shard)
        setup.measured.keep(source.key, layout, work)
        return Loaded(loaded, loaded.nbytes)


def _weighed(
    source: ModelSource, reading: Reading, setup: LoadSetup
) -> _Slices[tuple[Any, Head | str, int, list[mx.array]]]:
    """
    Assemble the module, and report the bytes that it needs.

    Returns:
        The module, its MTP head or why it has none, these bytes, and those of the arrays that are not read from files.
    """
    shard, progress, taken = setup.shard, _loading(0, source.size_bytes), TakenHead()
    model = yield from setup.sliced(_in_step(assembling(source, reading, taken), source, shard), progress)
    with load_errors(source):
        head = head_or_reason(source, taken, whole=shard is WHOLE)
        if shard is not WHOLE:
            shard.cut(source, model)
            reading.forget()
    everything = arrays(model) + ([] if isinstance(head, str) else arrays(head))
    needed = shard.most(nbytes(everything))
    yield replace(progress, needs=needed)
    return model, head, needed, reading.others(everything)


def _in_step(work: Sliced[R], source: ModelSource, shard: Shard) -> Sliced[R]:
    """Do pieces of work in which the ranks do not meet, so that a rank that fails alone leaves no other waiting."""
    ended: list[R] = []

    def piece() -> bool:
        try:
            return next(work)
        except StopIteration as end:
            ended.append(end.value)
            return SHORT

    with closing(work):
        while not ended:
            kind = shard.together(source, piece)
            if not ended:
                yield kind
    return ended[0]


def _evaluate(
    source: ModelSource, model: Any, computed: list[mx.array], reading: Reading, setup: LoadSetup
) -> _Slices[None]:
    """Read the weights, and compute the other arrays, in slices. Empties `computed`."""
    shard = setup.shard
    with load_errors(source):
        if source.adapter_weights is not None:
            refuse_partial_adapter(model, source.adapter_config, reading.adapter_names)
        for _ in reading.read():
            yield _loading(reading.done, source.size_bytes)
        yield _loading(reading.done, source.size_bytes)
        pace = Pace(SLICE_BYTES, setup.seconds)
        computed.reverse()
        while shard.most(len(computed)):  # each rank has as many slices as the one with the most
            piece = _piece(computed, pace.nbytes)
            size = shard.most(nbytes(piece))
            began = setup.clock()
            shard.together(source, partial(_read, piece))
            pace.measured(size, setup.clock() - began)
            yield _loading(reading.done, source.size_bytes)


def _read(piece: list[mx.array]) -> None:
    """Evaluate arrays that no other rank takes part in."""
    failpoint("load.slice")
    mx.eval(piece)


def _piece(computed: list[mx.array], most: int) -> list[mx.array]:
    """Take arrays off the end that have at most so many bytes, or a single larger array."""
    piece: list[mx.array] = []
    size = 0
    while computed and (not piece or size + computed[-1].nbytes <= most):
        piece.append(computed.pop())
        size += piece[-1].nbytes
    return piece


def _measured(
    source: ModelSource, model: Any, layout: Layout, progress: Progress, setup: LoadSetup
) -> _Slices[Workspace]:
    """Return the memory that passes take: what an earlier load measured, or what is measured now."""
    work = setup.measured.find(source.key, layout)
    if work is None:
        work = yield from setup.sliced(measuring(model, layout), progress)
    return work


def _loaded(
    source: ModelSource, model: Any, layout: Layout, needed: int, verdict: Verdict, work: Workspace
) -> LoadedModel:
    return LoadedModel(
        source,
        model,
        layout,
        needed,
        verdict.vocab_size,
        verdict.joinable,
        verdict.guess_exactness,
        verdict.guess_exactness_together,
        work,
        shares=verdict.joinable and verdict.shares and layout.bills_own,
        last=verdict.view(model),
    )


def _with_head(loaded: LoadedModel, head: Head | str, progress: Progress, setup: LoadSetup) -> _Slices[LoadedModel]:
    """Return a model with its MTP head, or with why it has none. A head that its trial refuses takes no bytes."""
    mtp = yield from setup.sliced(tried_head(loaded.source, head, loaded.model), progress)
    refused = [] if isinstance(head, str) or isinstance(mtp, MtpHead) else arrays(head)
    return replace(loaded, mtp=mtp, nbytes=loaded.nbytes - nbytes(refused))


def _warmed_up(loaded: LoadedModel, tokens: int, progress: Progress, setup: LoadSetup) -> _Slices[LoadedModel]:
    """Warm a model up, and return it with the time that this took."""
    most = most_positions(loaded.source.config)
    tokens = tokens if most is None else min(tokens, most + 1 - len(PROMPT))  # the last one is not fed
    warmup = WarmUp(loaded.model, loaded.layout, tokens)
    yield from setup.sliced(warm_up(warmup, setup.clock), progress)
    return replace(loaded, warmup_time=warmup.seconds)


def _refuse_misnamed(source: ModelSource, digests: list[FileDigest], learn: Learn) -> None:
    """
    Compare what was read with what the key names.

    Raises:
        MisnamedError: If a file differs. Its KV would be stored under the key of other weights.
    """
    misnamed = [file for file in digests if not file.is_expected]
    for file in misnamed:
        log.warning("weight_file_changed", file=file.expected.path.name)
        learn(file.expected.path, file.stamp, file.digest)
    if misnamed:
        raise MisnamedError(source.name, ", ".join(file.expected.path.name for file in misnamed))


def _loading(done: int, total: int) -> Progress:
    return Progress(Stage.LOADING, done, max(done, total))  # arrays may take more than the files
