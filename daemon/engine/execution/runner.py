"""The runner: sequences that have their model, from waiting for a slot to their last event."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from daemon.cache.identity import ModelKey
from daemon.engine.background.background import as_sidecar_error
from daemon.engine.execution.decoder import Decoder
from daemon.engine.execution.prefill import store
from daemon.engine.execution.prefill_queue import PrefillQueue
from daemon.engine.execution.sequence import Sequence, delta
from daemon.engine.memory.memory_budget import kv_need
from daemon.engine.output.detokenizer import Token
from daemon.engine.reporting.timings import EngineTimings
from daemon.engine.scheduling.policy import Turns, startable
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.prefix_cache import PrefixCache
from daemon.kv.source import Resume
from daemon.shared.errors import RETRY_SECONDS, Reason, SidecarError
from daemon.shared.failpoints import failpoint
from daemon.shared.wording import size
from mlx_sidecar.v1 import sidecar_pb2 as pb


class Replies(Protocol):
    """Where answers go."""

    def generate(self, call_id: int, event: pb.GenerateResponse) -> None:
        """Send an event of a Generate call; `finished` ends the call."""

    def fail(self, call_id: int, error: SidecarError) -> None:
        """End a call with an error."""

    def flush(self) -> None:
        """Write deltas that were sent; other events are written at once."""


@dataclass(slots=True)
class Totals:
    """Tokens since the start."""

    prompt_tokens: int = 0
    generated_tokens: int = 0


class Runner:
    """
    Runs sequences: one decode step for each model's running sequences, then one chunk of one prefill.

    Args:
        prefixes: The prefix cache.
        max_batch: Most sequences of one model that run at once.
        make_room: Frees memory for a sequence of so many KV bytes, and tells whether it fits now.
        replies: Where events go.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        prefixes: PrefixCache,
        max_batch: int,
        make_room: Callable[[int], bool],
        replies: Replies,
        clock: Callable[[], float],
    ) -> None:
        self.totals = Totals()
        self.gauges = EngineTimings()
        self._prefixes = prefixes
        self._max_batch = max_batch
        self._make_room = make_room
        self._replies = replies
        self._clock = clock
        self._waiting: list[Sequence] = []
        self._prefills = PrefillQueue(prefixes, self, clock)
        self._starts: Turns[Sequence] = Turns()
        self._stuck = False
        """Whether nobody can start before somebody who runs goes on or ends."""
        self._decoders: dict[ModelKey, Decoder] = {}

    @property
    def waiting(self) -> int:
        """Sequences that wait for a slot."""
        return len(self._waiting)

    @property
    def prefilling(self) -> int:
        """Sequences whose prompt is being computed."""
        return len(self._prefills)

    @property
    def decoding(self) -> int:
        """Sequences that generate."""
        return sum(len(decoder) for decoder in self._decoders.values())

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do at once: not if those that run are held and those that wait, wait."""
        return bool(len(self._prefills) or self._active or (self._waiting and not self._stuck))

    def fresh(self, seconds: float) -> int:
        """Return how many sequences came just now, if nothing is being computed and none came longer ago than that."""
        if len(self._prefills) or self._active:
            return 0
        since = self._clock() - seconds
        return 0 if any(sequence.times.arrived < since for sequence in self._waiting) else len(self._waiting)

    @property
    def usual_decode(self) -> float | None:
        """Seconds that a turn's decode usually takes, 0 if that is not known; None if nobody waits for a token."""
        streaming = [model for model, decoder in self._decoders.items() if decoder.active]
        return sum(map(self._prefills.usual_step, streaming)) if streaming else None

    @property
    def usual_step_awaited(self) -> float:
        """Seconds that a decode step usually takes of the slowest model that sequences wait for; 0 if not known."""
        models = {sequence.model_key for sequence in self._waiting} if not self._active else ()
        return max(map(self._prefills.usual_step, models), default=0.0)

    @property
    def _active(self) -> int:
        return sum(decoder.active for decoder in self._decoders.values())

    def sequences(self) -> list[Sequence]:
        """Return all sequences that hold or will hold KV."""
        return [*self._waiting, *self._holders()]

    def live_kv_bytes(self) -> int:
        """Return the KV bytes that running sequences were promised."""
        return sum(map(kv_bytes, self._holders()))

    def add(self, sequence: Sequence) -> None:
        """Take a sequence whose model is loaded."""
        self._stuck = False
        self._waiting.append(sequence)
        self._prefills.expect(sequence)

    def cancel(self, call_id: int) -> bool:
        """End a sequence at once and tell whether there was one; what it had computed is stored."""
        for sequence in self.sequences():
            if sequence.call_id == call_id:
                self._end(sequence)
                return True
        return False

    def hold(self, call_id: int, *, held: bool) -> None:
        """Give a sequence that generates no more tokens, or let it go on; any other call is no error."""
        self._stuck = False
        for decoder in self._decoders.values():
            for sequence in [sequence for sequence in decoder if sequence.call_id == call_id]:
                (decoder.hold if held else decoder.go_on)(sequence)

    def step(self) -> None:
        """Do one round: start what can start, decode each model once, prefill a chunk: of one prompt, or short ones."""
        self._start()
        if rows := self._active:
            self.gauges.rows.observe(rows)
        for model, decoder in list(self._decoders.items()):
            began, active = self._clock(), decoder.active
            self._decode(decoder)
            if active:
                self._prefills.stepped(model, self._clock() - began)
        self._prefills.step(self.usual_decode)

    def _start(self) -> None:
        def fits(sequence: Sequence) -> bool:
            return self._make_room(kv_bytes(sequence))

        while (sequence := startable(self._waiting, self._running, self._max_batch, fits, self._starts)) is not None:
            self._waiting.remove(sequence)
            self._prefills.add(sequence)
        if self._waiting and not (len(self._prefills) or self._decoders):
            self._refuse(self._waiting[0])
        self._stuck = not (len(self._prefills) or self._active)

    def begun(self, sequence: Sequence) -> None:
        """Tell the caller that its prompt was looked up."""
        self._replies.generate(sequence.call_id, sequence.started())

    def failed(self, sequence: Sequence, error: Exception) -> None:
        """End a sequence whose prompt could not be begun."""
        self._end(sequence)
        self._replies.fail(sequence.call_id, as_sidecar_error(error))

    def computed(self, sequence: Sequence, tokens: int, done: int) -> None:
        """Count tokens of a prompt, and tell the caller if more are to come."""
        self.totals.prompt_tokens += tokens
        if done < len(sequence.prompt) - 1:
            self._replies.generate(sequence.call_id, sequence.progress(done))

    def ready(self, sequences: list[Sequence], caches: list[Any] | None) -> None:
        """Let sequences decode whose prompts are computed."""
        self.totals.prompt_tokens += len(sequences)
        decoder = self._decoders.setdefault(sequences[0].model_key, Decoder())
        if caches is None:
            decoder.join(sequences[0])
        else:
            decoder.join_together(sequences, caches)

    def _refuse(self, sequence: Sequence) -> None:
        """Refuse a sequence for which there is no room although nothing runs: waiting would not make any."""
        error = SidecarError(
            Reason.BUDGET_IN_USE,
            f"the request needs {size(kv_bytes(sequence))} of KV cache, and models that are in use or pinned leave "
            "less; try again shortly, or unload a model",
            metadata={"needed_bytes": str(kv_bytes(sequence))},
            retry_after=RETRY_SECONDS,
        )
        self._end(sequence)
        self._replies.fail(sequence.call_id, error)

    def _holders(self) -> list[Sequence]:
        return [*self._prefills, *(sequence for decoder in self._decoders.values() for sequence in decoder)]

    def _running(self, model: Hashable) -> int:
        return self._prefills.of(model) + sum(len(decoder) for key, decoder in self._decoders.items() if key == model)

    def _decode(self, decoder: Decoder) -> None:
        ended: dict[Sequence, pb.FinishReason | SidecarError] = {}
        for tokens in (decoder.firsts(), decoder.step()):
            for sequence, token in tokens:
                if sequence in ended:
                    continue  # what was guessed beyond its end
                end = token if isinstance(token, SidecarError) else self._accept(sequence, token)
                if end is not None:
                    ended[sequence] = end
            self._replies.flush()
        decoder.leave(ended)
        for sequence, end in ended.items():
            self._finish(sequence, end)

    def _finish(self, sequence: Sequence, end: pb.FinishReason | SidecarError) -> None:
        if not isinstance(end, SidecarError):
            self._end(sequence)
            self._replies.generate(sequence.call_id, sequence.finished(end))
            return
        if end.reason is Reason.NAN_LOGITS:
            self._forget(sequence)
        self._end(sequence)
        self._replies.fail(sequence.call_id, end)

    def _accept(self, sequence: Sequence, token: Token) -> pb.FinishReason | None:
        """Take a sampled token, tell the caller, and return why the sequence has ended, if it has."""
        self.totals.generated_tokens += 1
        now = self._clock()
        if not sequence.generated:
            failpoint("token.first")
        else:
            self.gauges.gaps.observe(now - sequence.times.last_token)
        piece, reason = sequence.accept(token, now)
        if piece:
            event = delta(piece, logprobs=sequence.top_logprobs is not None)
            self._replies.generate(sequence.call_id, event)
        if reason is None:
            self._keep_windows(sequence)
        return reason

    def _keep_windows(self, sequence: Sequence) -> None:
        """Store what a long answer's windows are about to forget, while they still hold it."""
        stride = sequence.loaded.layout.parts.stride
        if stride and sequence.held % stride == 0:
            caches = self._decoders[sequence.model_key].caches_of(sequence)
            store(sequence, self._prefixes, Resume.PASSING, caches)

    def _forget(self, sequence: Sequence) -> None:
        """Drop what a sequence stored whose KV, as it turned out, may hold no numbers."""
        if sequence.writes:
            sequence.writes = False
            self._prefixes.forget_prefix(sequence.namespace, sequence.prompt[: sequence.cached + BLOCK_TOKENS])

    def _end(self, sequence: Sequence) -> None:
        """Store what a sequence computed, wherever it is, and free what it holds."""
        self._stuck = False
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        self._prefills.drop(sequence)
        decoder = self._decoders.get(sequence.model_key)
        if decoder is not None:
            decoder.leave([sequence])
            if not len(decoder):
                del self._decoders[sequence.model_key]
        store(sequence, self._prefixes, Resume.YES)
        if sequence.draft is not None:
            store(sequence.draft.sequence, self._prefixes, Resume.YES)
        sequence.release()


def kv_bytes(sequence: Sequence) -> int:
    """Return the KV bytes that a sequence is billed."""
    done = len(sequence.generated)
    own = kv_need(sequence.loaded.layout, len(sequence.prompt) + done, sequence.max_tokens - done)
    return own + (kv_bytes(sequence.draft.sequence) if sequence.draft is not None else 0)
