"""Loads models in slices so short that running streams hardly notice, with room made for the weights first."""

from __future__ import annotations

from collections.abc import Callable

from daemon.cache.digests import Digests
from daemon.cache.identity import ModelSource
from daemon.cache.load import Load
from daemon.cache.mlx.loader import LoadedModel, LoadSetup, load
from daemon.cache.mlx.measurements import Measurements
from daemon.cache.mlx.self_tests import Verdicts
from daemon.cache.mlx.shard import WHOLE, Shard
from daemon.cache.pace import SLICE_SECONDS
from daemon.engine.background.thread_priority import Streams, resting
from daemon.engine.execution.runner import Runner
from daemon.engine.memory.engine_memory import EngineMemory


class ModelLoader:
    """
    Begins the loads of the model cache. Runs on the MLX thread.

    Args:
        memory: Makes room.
        runner: Tells how long a step of its streams takes.
        digests: Learns what files hold.
        streams: Tells whether the threads that hash weights shall rest.
        clock: Seconds that never go back.
        warmup_tokens: Tokens of the first pass of a model; 0 for none.
        measured: What passes of models take that were loaded before.
        verdicts: What self-tests found of them.
        shard: Which part of a model is loaded.
    """

    def __init__(
        self,
        memory: EngineMemory,
        runner: Runner,
        digests: Digests,
        streams: Streams,
        clock: Callable[[], float],
        warmup_tokens: int,
        measured: Measurements,
        verdicts: Verdicts,
        shard: Shard = WHOLE,
    ) -> None:
        self._memory = memory
        self._runner = runner
        self._warmup_tokens = warmup_tokens
        self._setup = LoadSetup(
            clock=clock,
            seconds=lambda: self.slice_seconds(),
            learn=digests.learn,
            rest=resting(streams.are_active),
            # By then the real size is known and counts as used, so there is no further need.
            room=lambda name: memory.make_room_for_weights(name, 0),
            shard=shard,
            measured=measured,
            verdicts=verdicts,
        )

    def begin(self, source: ModelSource, skip_warmup: bool) -> Load[LoadedModel]:
        """
        Free memory for a model and return its load, which is driven slice by slice.

        Raises:
            SidecarError: BUDGET_IN_USE, here and by the load, if its weights do not fit beside running requests.
        """
        self._memory.make_room_for_weights(source.name, source.size_bytes)
        return load(source, 0 if skip_warmup else self._warmup_tokens, self._setup)

    def slice_seconds(self) -> float:
        """Return how long a slice of a load may take: no longer than a step of the streams that wait for it."""
        usual = self._runner.usual_decode
        return SLICE_SECONDS if usual is None else min(SLICE_SECONDS, usual)
