"""The engine's turn: what the MLX thread does with each command, and in which order it works in each step."""

from __future__ import annotations

from daemon.cache.pace import Share
from daemon.engine.background.background import as_sidecar_error
from daemon.engine.background.thread_priority import Streams
from daemon.engine.calls.driver import CallDriver, Services
from daemon.engine.calls.embed import embed
from daemon.engine.calls.generate import generate
from daemon.engine.calls.invalidate import Invalidator, invalidate
from daemon.engine.calls.list_models import list_models
from daemon.engine.calls.load import load
from daemon.engine.calls.tokenize import tokenize
from daemon.engine.memory.buffers import BufferCache
from daemon.engine.memory.engine_memory import EngineMemory
from daemon.engine.memory.pressure import Relief
from daemon.engine.memory.wiring import Wiring
from daemon.engine.prompt.chat_templates import Templates
from daemon.engine.scheduling.batching_window import BatchingWindow, most_seconds
from daemon.kv.disk.tier import DiskTier
from daemon.kv.idle import IdleRelease
from daemon.v1 import ipc_pb2 as ipc

SWEEP_SECONDS = 1.0
"""How often idle models are checked and figures are sent when nothing happens."""


class Engine:
    """
    Loads models and runs requests, in small steps. `composition.build_engine` builds it. Runs on the MLX thread.

    Args:
        services: The parts that calls use.
        invalidator: Drops models and prefixes.
        templates: The processes that render chat templates.
        memory: Frees memory for what running requests have grown by.
        buffers: MLX's cache of freed buffers.
        relief: Frees memory when the system is short of it.
        streams: Told whether requests decode.
        idle: Frees prefixes that were not used for long.
        wiring: Wires the weights of loaded models, if that is configured.
        disk: The tier below the prefix cache.
    """

    def __init__(
        self,
        services: Services,
        invalidator: Invalidator,
        templates: Templates,
        memory: EngineMemory,
        buffers: BufferCache,
        relief: Relief,
        streams: Streams,
        idle: IdleRelease,
        wiring: Wiring,
        disk: DiskTier,
    ) -> None:
        self._services = services
        self._clock = services.clock
        self._models = services.models
        self._runner = services.runner
        self._outbox = services.outbox
        self._background = services.background
        self._invalidator = invalidator
        self._templates = templates
        self._memory = memory
        self._buffers = buffers
        self._relief = relief
        self._streams = streams
        self._disk = disk
        self._idle = idle
        self._wiring = wiring
        self._calls = CallDriver(self._outbox.fail)
        self._batching_window = BatchingWindow(self._clock)
        self._share = Share()
        self._swept = self._clock()

    @property
    def busy(self) -> bool:
        """Whether there is work."""
        return self._models.busy or self._runner.busy or self._disk.busy

    @property
    def pause(self) -> float:
        """Seconds for which `step` can wait for commands; 0 if it has something to do at once."""
        if not self.busy:
            return SWEEP_SECONDS
        return 0.0 if self._models.busy or self._disk.busy else self._batching_wait()

    @property
    def stuck(self) -> int:
        """Threads that hang; any thread may ask."""
        return len(self._background.stuck())

    def handle(self, command: ipc.Command) -> None:
        """Begin or end a call."""
        kind, call_id = command.WhichOneof("body"), command.call_id
        if kind == "load":
            self._calls.begin(call_id, load(self._services, call_id, command.load))
        elif kind == "generate":
            self._calls.begin(call_id, generate(self._services, call_id, command.generate, command.program))
        elif kind == "invalidate":
            self._calls.begin(call_id, invalidate(self._services, self._invalidator, call_id, command.invalidate))
        elif kind == "embed":
            self._calls.begin(call_id, embed(self._services, call_id, command.embed, command.program))
        elif kind == "tokenize":
            self._calls.begin(call_id, tokenize(self._services, call_id, command.tokenize))
        elif kind == "list_models":
            self._calls.begin(call_id, list_models(self._services, call_id, command.list_models))
        elif kind == "cancel":
            self._cancel(call_id)
        elif kind == "hold":
            self._hold(call_id, held=command.hold.held)
        elif kind == "recall":
            self._recall(call_id, command)

    def _hold(self, call_id: int, *, held: bool) -> None:
        if call_id in self._services.embeds_held:
            self._services.embeds_held[call_id] = held
        else:
            self._runner.hold(call_id, held=held)

    def _recall(self, call_id: int, command: ipc.Command) -> None:
        """Keep a pin and a time to live, asked of the engine before this one, for the next load of the model."""
        try:
            self._services.lookup.prefer(command.recall.model, command.recall.revision)
            self._services.overrides.apply(command)
        except Exception as error:
            self._outbox.fail(call_id, as_sidecar_error(error))

    def step(self) -> None:
        """
        Do one turn: resume calls, one step of the runner, one slice of a load, and now and then a sweep; resume calls.

        A slice of a load is left out while streams have not yet been served for as long as the last slice took.
        """
        began = self._clock()
        self._calls.poll()
        runs = not self._batching_wait() and self._runner.busy
        if runs:
            self._runner.step()
        streaming = self._runner.usual_decode is not None  # sequences that are held do not count
        self._streams.active = streaming
        self._share.served(self._clock() - began)
        if self._disk.busy:
            self._disk.step(prompts=self._runner.computes_prompts)
        loads = self._models.busy and (self._share.due or not streaming)
        if loads:
            self._load_slice()
        if runs or loads:
            self._runner.timings.steps.observe(self._clock() - began)
            self._buffers.turned()
        if self._clock() - self._swept >= SWEEP_SECONDS:
            self._sweep()
        self._calls.poll()  # a call that this turn lets go on does so now: the loop may wait for a command next

    def close(self) -> None:
        """Stop background work."""
        self._background.close()
        self._templates.close()

    def _load_slice(self) -> None:
        began = self._clock()
        self._models.step()
        self._wire()
        self._share.loaded(self._clock() - began)

    def _wire(self) -> None:
        if not self._models.busy:
            self._wiring.update(self._models.total_bytes)

    def _batching_wait(self) -> float:
        """Return the seconds for which requests that could start wait for others. Each look moves the window on."""
        step = self._runner.usual_step_awaited
        fresh = self._runner.fresh(most_seconds(step))
        return self._batching_window.remaining(fresh, len(self._services.coming), step)

    def _cancel(self, call_id: int) -> None:
        if not self._calls.cancel(call_id) and self._runner.cancel(call_id):
            self._outbox.publish()

    def _sweep(self) -> None:
        self._swept = self._clock()
        self._background.tick()
        self._templates.trim()
        self._disk.tick()
        self._models.evict_stale()
        self._idle.release()
        self._wire()
        self._memory.make_room(0)  # for what running requests have grown by
        self._runner.retry()
        if self._relief.check() or not self.busy:
            self._buffers.clear()
        self._outbox.publish()
