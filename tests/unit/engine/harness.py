"""An engine in this process, on this thread: commands go in, events come out, and a test decides when it steps."""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load

from daemon.cache.mlx.measurements import Measurements
from daemon.cache.mlx.self_tests import Verdicts
from daemon.cache.resolver import EMBEDDED_PATH
from daemon.engine.composition import build_engine
from daemon.engine.memory.pressure import Level
from daemon.engine.scheduling.governor import Governor, Source
from daemon.shared.config import Config
from daemon.shared.last_events import ends_call
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb

AnyRequest = (
    pb.GenerateRequest
    | pb.GetOrLoadRequest
    | pb.InvalidateRequest
    | pb.EmbedRequest
    | pb.TokenizeRequest
    | pb.ListModelsRequest
)
"""What opens a call."""

MEASURED = Measurements()
"""What passes take, measured once for all engines of this process."""

TESTED = Verdicts()
"""
What self-tests found, once for all engines of this process. A model of the same content is not tested again, so a test
that needs the steps of a whole load has verdicts of its own.
"""

PATIENCE = 60.0
"""Seconds after which a test that waits for something has failed: machines are shared, and 256 texts take time."""


class Unmoved(Governor):
    """Guesses nothing that a request does not ask for: measured times would decide how many tokens a step gives."""

    def count(self, source: Source, most: int) -> int:
        """Return 0."""
        return 0


class Harness:
    """
    Drives an engine as its loop does.

    Args:
        guesses: Whether tokens are guessed ahead for requests that leave it open, where that gains time.
        measured: What passes of models take, as far as it is known.
        verdicts: What self-tests found of models, as far as it is known.
        warms: Whether a load gets tokenizer and template ready. That starts a process, so most tests go without.
        settings: Configuration keys.

    Attributes:
        engine: The engine.
        events: What it sent, figures left out.
        clock_offset: Seconds that its clocks are ahead.
        slept: Seconds that the machine was asleep.
        pressure: How short of memory the system is said to be.
    """

    def __init__(
        self,
        *,
        guesses: bool = False,
        measured: Measurements = MEASURED,
        verdicts: Verdicts = TESTED,
        warms: bool = False,
        **settings: Any,
    ) -> None:
        self.events: list[ipc.Event] = []
        self.figures = pb.StatsResponse()
        self._sent: list[ipc.Event] = []
        self._lock = threading.Lock()
        self.behind = False
        self._warms = warms
        self.clock_offset = 0.0
        self.slept = 0.0
        self.pressure = Level.NORMAL
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._last_id = 0
        folder = Path(tempfile.mkdtemp(prefix="mlxs-"))
        self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        config = Config(**{"warmup_tokens": 0, "state_dir": folder, **settings})
        self.engine = build_engine(
            config, self, self._inbox.put, self.now, lambda: self.pressure, self.elapsed, known=(measured, verdicts)
        )
        if not guesses:
            unmoved = Unmoved()
            self.engine._runner.governors.of = lambda model: unmoved  # type: ignore[method-assign]

    def now(self) -> float:
        """Return the engine's time."""
        return time.monotonic() + self.clock_offset

    def elapsed(self) -> float:
        """Return the time that its models' time-to-live is counted in."""
        return self.now() + self.slept

    def send(self, event: ipc.Event) -> None:
        """Queue an event of the engine."""
        with self._lock:
            self._sent.append(event)

    def flush(self) -> None:
        """Take what was sent: nobody sees it before."""
        with self._lock:
            for event in self._sent:
                if event.HasField("snapshot"):
                    self.figures = event.snapshot
                else:
                    self.events.append(event)
            self._sent.clear()

    @property
    def models(self) -> int:
        """Models in memory, those in use that were dropped included."""
        return len(self.engine._models.entries())

    def begin(self, request: AnyRequest, program: str = "") -> int:
        """Open a call of a program and return its id."""
        self._last_id += 1
        command = ipc.Command(call_id=self._last_id, program=program)
        kinds = {pb.GenerateRequest: command.generate, pb.GetOrLoadRequest: command.load}
        kinds |= {pb.EmbedRequest: command.embed, pb.TokenizeRequest: command.tokenize}
        kinds |= {pb.ListModelsRequest: command.list_models}
        body: Any = kinds.get(type(request), command.invalidate)
        body.SetInParent()
        body.CopyFrom(request)
        if isinstance(request, pb.GetOrLoadRequest):
            body.skip_warmup |= not self._warms
        self.engine.handle(command)
        return self._last_id

    def cancel(self, call_id: int) -> None:
        """Cancel a call."""
        self.engine.handle(ipc.Command(call_id=call_id, cancel=ipc.Cancel()))

    def step(self) -> None:
        """Do one step; wait for background work if there is nothing else to do."""
        try:
            while True:
                action = self._inbox.get_nowait() if self.engine.busy else self._inbox.get(timeout=0.01)
                action()
        except queue.Empty:
            pass
        self.engine.step()
        if self.engine.pause:
            ready = [call_id for call_id, (_, condition) in self.engine._calls._waiting.items() if condition()]
            assert not ready, f"the loop would wait while calls {ready} can go on"

    def until(self, condition: Callable[[], bool]) -> None:
        """Step until something holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "the engine did not get there"
            self.step()

    def of(self, call_id: int) -> list[ipc.Event]:
        """Return the events of a call so far."""
        return [event for event in self.events if event.call_id == call_id]

    def finish(self, call_id: int) -> list[ipc.Event]:
        """Step until a call has ended, check the shape of its stream, and return its events."""
        self.until(lambda: bool(self.of(call_id)) and ends_call(self.of(call_id)[-1]))
        assert sum(map(ends_call, self.of(call_id))) == 1
        return self.of(call_id)

    def run(self, request: AnyRequest) -> Answer:
        """Run a call to its end."""
        return Answer(self.finish(self.begin(request)))

    def decoding(self, call_id: int) -> bool:
        """Whether a call has had its first delta."""
        return any(event.generate.HasField("delta") for event in self.of(call_id))

    def settle(self) -> None:
        """Step until nothing is left to do, and check that every count agrees and nothing is held."""
        for _ in range(5):
            self.step()
        self.until(lambda: not self.engine.busy and not self.engine._calls)
        self.engine._models.check_integrity()
        self.engine._memory._prefixes.check_integrity()
        assert self.engine._memory._prefixes.trie.leases == 0
        assert all(entry.leases == 0 for entry in self.engine._models.entries())
        assert not self.engine._runner.sequences()
        assert not self.engine._disk.restores

    def close(self) -> None:
        """Stop the engine's threads."""
        self.engine.close()
        self._remove()


class Answer:
    """A call's events, as what tests compare."""

    def __init__(self, events: list[ipc.Event]) -> None:
        self.events = events
        deltas = [event.generate.delta for event in events if event.generate.HasField("delta")]
        self.text = "".join(delta.text for delta in deltas)
        self.ids = [token for delta in deltas for token in delta.token_ids]
        self.logprobs = [entry for delta in deltas for entry in delta.logprobs]
        self.started = next((e.generate.started for e in events if e.generate.HasField("started")), pb.Started())
        self.finished = events[-1].generate.finished
        self.cached = self.finished.usage.cached_tokens
        self.failure = events[-1].failure
        self.info = events[-1].load.ready
        self.invalidated = events[-1].invalidate

    @property
    def content(self) -> tuple[str, list[int], list[pb.TokenLogprob]]:
        """Everything that must not depend on the cache or on neighbours."""
        return self.text, self.ids, self.logprobs


def generate(text: str, **fields: Any) -> pb.GenerateRequest:
    """Return a request to the embedded model."""
    return pb.GenerateRequest(**{"model": "embedded", "text": text, "max_tokens": 12, **fields})


def greedy(
    model: str, ids: Sequence[int], count: int, mode: pb.CacheMode = pb.CACHE_MODE_READ_WRITE
) -> pb.GenerateRequest:
    """Return a request for so many tokens, the likeliest ones, with their log-probabilities."""
    return pb.GenerateRequest(
        model=model,
        tokens=pb.TokenIds(ids=ids),
        max_tokens=count,
        top_logprobs=0,
        stop=pb.Stop(ignore_eos=True),
        cache=pb.CacheOptions(mode=mode),
    )


class Reference:
    """The embedded model as plain mlx-lm runs it: no cache but its own, one token at a time."""

    def __init__(self, path: Path = EMBEDDED_PATH) -> None:
        self.model, self.tokenizer = load(str(path))

    def greedy(self, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
        """Return the greedy continuation, up to the end of the sequence, and its log-probabilities."""
        cache = make_prompt_cache(self.model)
        if len(prompt) > 1:
            self.model(mx.array([prompt[:-1]]), cache=cache)
        ids: list[int] = []
        logprobs: list[float] = []
        token = prompt[-1]
        while len(ids) < count:
            logits = self.model(mx.array([[token]]), cache=cache)[0, -1].astype(mx.float32)
            token = int(mx.argmax(logits).item())  # type: ignore[arg-type]
            if token in self.tokenizer.eos_token_ids:
                break
            ids.append(token)
            logprobs.append(float((logits[token] - mx.logsumexp(logits)).item()))
        return ids, logprobs
