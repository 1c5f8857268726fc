"""
Runs requests with a loaded model, from the waiting list to their last event.

    add() -> waiting list -> prefill queue -> decoder of its model -> end
              (a slot,        (its prompt,      (a token a step)
               memory)         chunk by chunk)

`step` is one turn: start sequences that have a slot and fit in memory, decode each model once, do one prefill turn. All
three parts return their outcomes, and the runner alone sends events, counts tokens, and ends sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

from daemon.cache.identity import ModelKey
from daemon.engine.background.background import as_sidecar_error
from daemon.engine.execution.bill import bill
from daemon.engine.execution.decoder import Decoder, Read
from daemon.engine.execution.events import Delta, FinishReason
from daemon.engine.execution.prefill_queue import Begun, Computed, Failed, Postponed, Prefilled, PrefillQueue, Ready
from daemon.engine.execution.readers import Readers
from daemon.engine.execution.row_bills import Bill
from daemon.engine.execution.sequence import Sequence
from daemon.engine.memory.memory_budget import in_use
from daemon.engine.outbox import Outbox
from daemon.engine.output.detokenizer import Token
from daemon.engine.reporting.timings import EngineTimings
from daemon.engine.scheduling.governor import Governors
from daemon.engine.scheduling.policy import ChunkSizer
from daemon.engine.scheduling.prefill_plan import WaitingList
from daemon.kv.prefix_cache import PrefixCache
from daemon.kv.spec import Resume
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.failpoints import failpoint


class Runner:
    """
    Runs sequences in turns.

    Args:
        prefixes: The prefix cache.
        max_batch: Slots of each model: most sequences that prefill or decode at once, each sample counted.
        make_room: Frees memory for so many bytes beside those that running sequences are billed; whether they fit now.
        spare: Frees cached prefixes until so many bytes are free, as far as that helps, and returns how many are.
        outbox: Takes events to the parent.
        clock: Seconds that never go back.
        own_clock: The same, for the times of tokens; see `Decoder`.

    Attributes:
        prompt_tokens: Tokens of prompts that were computed since the start.
        generated_tokens: Tokens that were sampled since the start.
        timings: Histograms of the times between tokens and of the turns, and of the rows of a step.
        governors: What guessing brings for each model.
        max_batch: Slots of each model.
        readers: The running sequences, as readers of prefixes that they have in common.
    """

    def __init__(
        self,
        prefixes: PrefixCache,
        max_batch: int,
        make_room: Callable[[int, int], bool],
        spare: Callable[[int], int],
        outbox: Outbox,
        clock: Callable[[], float],
        own_clock: Callable[[], float],
    ) -> None:
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.timings = EngineTimings()
        self._prefixes = prefixes
        self.governors = Governors()
        self.max_batch = max_batch
        self._make_room = make_room
        self._spare = spare
        self._outbox = outbox
        self._clock, self._own_clock = clock, own_clock
        self._times = ChunkSizer()
        self._waiting: WaitingList[Sequence] = WaitingList()
        self._calls_in_vain: list[int] | None = None
        """The calls that there were when a start was last tried in vain; None if something was being computed."""
        self._unfit: Sequence | None = None
        """The sequence that did not fit in memory in this turn."""
        self._decoders: dict[ModelKey, Decoder] = {}
        self.readers = Readers(self._holders, self._decoders, prefixes)
        self._prefills = PrefillQueue(
            prefixes, self._times, clock, self.readers, lambda: make_room(0, self.live_kv_bytes())
        )

    @property
    def waiting(self) -> int:
        """Sequences that wait for a slot."""
        return len(self._waiting)

    @property
    def prefilling(self) -> int:
        """Sequences in prefill."""
        return len(self._prefills)

    @property
    def computes_prompts(self) -> bool:
        """Whether `step` computes prompts: not if all that are begun are held."""
        return bool(self._prefills.active)

    @property
    def decoding(self) -> int:
        """Sequences that generate."""
        return sum(len(decoder) for decoder in self._decoders.values())

    @property
    def busy(self) -> bool:
        """Whether `step` has work: not if all running sequences are held and no waiting one can start."""
        return bool(self.computes_prompts or self._active or (len(self._waiting) and not self._start_in_vain))

    def fresh(self, seconds: float) -> int:
        """Return how many sequences wait if nothing is being computed and all came within so many seconds; else 0."""
        idle = not (len(self._prefills) or self._active)
        return self._waiting.arrived_since(self._clock() - seconds) if idle else 0

    @property
    def usual_decode(self) -> float | None:
        """Seconds that a turn's decode usually takes, 0 if not known; None if no stream waits for a token."""
        streaming = [model for model, decoder in self._decoders.items() if decoder.active]
        return sum(map(self._times.usual_step, streaming)) if streaming else None

    @property
    def usual_step_awaited(self) -> float:
        """Seconds that a decode step usually takes of the slowest model that sequences wait for; 0 if not known."""
        return max(map(self._times.usual_step, () if self._active else self._waiting.models), default=0.0)

    @property
    def _start_in_vain(self) -> bool:
        """Whether no call has come or gone since a start was tried in vain: another try would be so too, for now."""
        return self._calls_in_vain == self._calls()

    @property
    def _active(self) -> int:
        return sum(decoder.active for decoder in self._decoders.values())

    def sequences(self) -> list[Sequence]:
        """Return all sequences that hold or will hold KV."""
        return [*self._waiting, *self._holders()]

    def live_kv_bytes(self) -> int:
        """Return the bytes that running sequences are billed."""
        return self._bill().total

    def add(self, sequence: Sequence) -> None:
        """Take a sequence with a loaded model, as a whole or not at all: after an error it is the caller's."""
        self._prefills.expect(sequence)
        self._waiting.add(sequence)

    def cancel(self, call_id: int) -> bool:
        """End the sequences of a call at once, store their computed tokens, and return whether there were any."""
        sequences = [sequence for sequence in self.sequences() if sequence.call_id == call_id]
        for decoder in self._decoders.values():
            decoder.leave(sequences)
        for sequence in sequences:
            self._end(sequence)
        for decoder in self._decoders.values():
            decoder.settle()
        return bool(sequences)

    def hold(self, call_id: int, *, held: bool) -> None:
        """Pause the sequences of a call, or resume them; a call that has none is no error."""
        for sequence in [sequence for sequence in self._prefills if sequence.call_id == call_id]:
            sequence.paused = held
        for decoder in self._decoders.values():
            sequences = [sequence for sequence in decoder if sequence.call_id == call_id]
            (decoder.hold if held else decoder.go_on)(sequences)

    def retry(self) -> None:
        """Try to start what waits: memory may have become free of something else than requests, as of weights."""
        self._calls_in_vain = None

    def step(self) -> None:
        """Do one turn: start sequences, decode each model once, and compute a chunk of prefill."""
        for sequence in self._waiting.starting(self._running, self.max_batch, self._fits):
            self._prefills.add(sequence)
        self._conclude_start()
        if rows := self._active:
            self.timings.rows.observe(rows)
        for model, decoder in list(self._decoders.items()):
            began, active = self._clock(), decoder.active
            self._take(decoder, decoder.step(), decoder.firsts())
            if active:
                self._times.stepped(model, self._clock() - began, after_prefill=self._prefills.computed)
        self._prefills.limit_passes(self._spare)
        for outcome in self._prefills.step(self.usual_decode):
            self._prefilled(outcome)

    def _fits(self, sequence: Sequence) -> bool:
        """Whether a sequence that waits fits in memory now. Frees memory for it."""
        self.readers.outlooks.update(sequence)
        billed = self.live_kv_bytes()
        fits = self._make_room(self._bill(sequence).total - billed, billed)
        if not fits:
            self.readers.outlooks.drop(sequence)
            self._unfit = sequence
        return fits

    def _conclude_start(self) -> None:
        """Note whether another start would be in vain; if nothing runs at all, refuse the sequence that did not fit."""
        self._calls_in_vain = None if self.computes_prompts or self._active else self._calls()
        unfit, self._unfit = self._unfit, None
        if unfit is not None and not (len(self._prefills) or self._decoders):
            # Waiting would free no memory. One a turn: those behind it may be smaller, and fit.
            self._fail(unfit, in_use(bill([unfit], ()).total))

    def _prefilled(self, outcome: Prefilled) -> None:
        """Act on an outcome of prefill: send its event, count tokens, and let sequences decode."""
        match outcome:
            case Begun(sequence):
                if sequence.pooled is None:
                    self._outbox.generate(sequence.call_id, sequence.started())
            case Failed(sequence, error):
                self._fail(sequence, as_sidecar_error(error))
            case Postponed(sequence):
                self._waiting.put_back(sequence)
            case Computed(sequence, tokens, done):
                self.prompt_tokens += tokens
                if (scores := sequence.take_scores()) is not None:
                    self._outbox.generate(sequence.call_id, scores)
                if done < sequence.prefill_end and sequence.pooled is None:
                    self._outbox.generate(sequence.call_id, sequence.progress(done))
            case Ready(sequences, caches):
                if sequences[0].pooled is None:
                    self._decode_from_now(sequences, caches)
                else:
                    self._pooled(sequences)

    def _pooled(self, sequences: list[Sequence]) -> None:
        """End texts that are embedded. The calls that wait for them send the vectors."""
        for sequence in sequences:
            assert sequence.pooled is not None
            sequence.pooled.cached = sequence.kv.cached
            sequence.pooled.finish()
            if sequence.pooled.error is not None:
                sequence.kv.forget(sequence.prompt, self._prefixes)
            self._end(sequence)

    def _decode_from_now(self, sequences: list[Sequence], caches: list[Any] | None) -> None:
        """Let sequences decode: their prompts are computed."""
        first = sequences[0]
        if not first.request.max_tokens:
            first.times.first_token = first.times.last_token = self._own_clock()
            self._finish(first, FinishReason.LENGTH)
            return
        self.prompt_tokens += len(sequences)  # their last tokens, which the decoder feeds
        new = Decoder(self.governors.of(first.model_key), self._clock, self._own_clock)
        decoder = self._decoders.setdefault(first.model_key, new)
        decoder.join_together(sequences, caches)
        for call_id in {sequence.call_id for sequence in sequences if sequence.paused}:
            self.hold(call_id, held=True)
        self._take(decoder, decoder.firsts())

    def _calls(self) -> list[int]:
        """Return the calls of all sequences. Ids alone: a sequence would keep its model in memory."""
        return [sequence.call_id for sequence in self.sequences()]

    def _bill(self, *more: Sequence) -> Bill:
        return bill([*self._prefills, *more], [rows for decoder in self._decoders.values() for rows in decoder.groups])

    def _holders(self) -> list[Sequence]:
        return [*self._prefills, *(sequence for decoder in self._decoders.values() for sequence in decoder)]

    def _running(self, model: Hashable) -> int:
        return self._prefills.of(model) + sum(len(decoder) for key, decoder in self._decoders.items() if key == model)

    def _take(self, decoder: Decoder, *reads: Iterable[Read]) -> None:
        """Send tokens of a model's sequences, and end the sequences that are complete."""
        ended: dict[Sequence, FinishReason | SidecarError] = {}
        for tokens in reads:
            for sequence, token, now in tokens:
                if sequence in ended:
                    continue  # tokens that were guessed beyond the end
                end = token if isinstance(token, SidecarError) else self._accept(sequence, token, now)
                if end is not None:
                    ended[sequence] = end
            self._outbox.flush()
        decoder.complete([sequence for sequence, end in ended.items() if isinstance(end, FinishReason)])
        decoder.leave(ended)  # in one call: each call copies the KV of the rows that stay
        errors = {sequence.call_id: sequence for sequence, end in ended.items() if isinstance(end, SidecarError)}
        while ended:
            sequence = next(iter(ended))
            end = ended.pop(sequence)
            if sequence.call_id not in errors and isinstance(end, FinishReason):
                self._finish(sequence, end, others=ended)
            elif isinstance(end, SidecarError) and errors[sequence.call_id] is sequence:
                self._fail(sequence, end, others=ended)
            else:
                self._end(sequence)  # another sample fails, and with it the call
        decoder.settle()

    def _finish(self, sequence: Sequence, reason: FinishReason, others: Iterable[Sequence] = ()) -> None:
        """End a sequence. Its call goes on if it has other samples: running ones, or those of `others`."""
        self._end(sequence)
        more = any(other.call_id == sequence.call_id for other in (*others, *self.sequences()))
        self._outbox.generate(sequence.call_id, sequence.finished(reason, more=more))

    def _fail(self, sequence: Sequence, error: SidecarError, others: Iterable[Sequence] = ()) -> None:
        """End a sequence, and all samples of its call, `others` too, with an error; that of a text finds it there."""
        if error.reason is Reason.NAN_LOGITS:  # other samples hold KV of the same prompt
            for sample in (one for one in (*others, *self.sequences(), sequence) if one.call_id == sequence.call_id):
                sample.kv.forget(sample.prompt, self._prefixes)
        self._end(sequence)
        if sequence.pooled is not None:
            sequence.pooled.error = error
            return
        self.cancel(sequence.call_id)
        self._outbox.fail(sequence.call_id, error)

    def _accept(self, sequence: Sequence, token: Token, now: float) -> FinishReason | None:
        """Take a sampled token, send its text, and return why the sequence has ended; None if it goes on."""
        self.generated_tokens += 1
        if not sequence.generated:
            failpoint("token.first")
        else:
            self.timings.gaps.observe(now - sequence.times.last_token)
        piece, reason = sequence.accept(token, now)
        if piece:
            logprobs = sequence.request.top_logprobs is not None
            self._outbox.generate(sequence.call_id, Delta(piece, logprobs, sequence.request.index))
        if reason is None:
            self._keep_windows(sequence)
        return reason

    def _keep_windows(self, sequence: Sequence) -> None:
        """Store a long answer's blocks while the windows of its layers still hold them."""
        stride = sequence.loaded.layout.parts.stride
        if stride and sequence.kv.held % stride == 0:
            caches, kv = self._decoders[sequence.model_key].caches_of(sequence), sequence.kv
            kv.store(sequence.tokens_in(kv), self._prefixes, Resume.PASSING, sequence.request.request_id, caches)

    def _end(self, sequence: Sequence) -> None:
        """Take a sequence out of every stage, store its computed tokens, and release its memory."""
        self._waiting.remove(sequence)
        self._prefills.drop(sequence)
        if (decoder := self._decoders.get(sequence.model_key)) is not None:
            decoder.leave([sequence])
            if not len(decoder):
                del self._decoders[sequence.model_key]
        for kv in sequence.kvs:
            tokens, first = sequence.tokens_in(kv), sequence.resumable_in(kv)
            kv.store(tokens, self._prefixes, Resume.YES, sequence.request.request_id, first=first)
        sequence.release()
        self.readers.outlooks.renew()
