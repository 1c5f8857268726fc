"""
Prefills one prompt: restores its cached prefix, computes the rest chunk by chunk, and stores it for other prompts.

    0            cached                     done                     length - 1    length
    |--restored--|----computed, stored at---|---------remaining----------|-last token-|
                      the marked points

Layers with windows or recurrent states cannot be resumed just anywhere, so what they hold at *resume points* is stored:
at the ends of messages and of the prompt, where a cached prompt branched off, and where waiting prompts diverge from
this one (`daemon/kv/forks.py`, ADR 11). A chunk ends where the allowance of the turn ends. With recurrent states it
also ends at a resume point before that.

The last chunk takes the last token along, which saves a pass. Prompts that share a pass leave it to the decoder: they
join a batch as rows with a token to feed. So do those with a draft model. Its prefill comes first: both have to hold
the same tokens.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx

from daemon.cache.identity import ModelKey
from daemon.engine.execution.prompt_scores import score_prompt
from daemon.engine.execution.sequence import Sequence
from daemon.engine.execution.sequence_kv import FindsCommon, SequenceKV
from daemon.engine.memory.memory_budget import DECODE_ROOM, SCORED_TOKENS
from daemon.engine.scheduling.policy import MIN_CHUNK, Allowance, ChunkSizer
from daemon.kv.extent_ledger import EXTENT_BLOCKS
from daemon.kv.forks import MOST_FORKS, Beginning, fork, forks
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx.batch_cache import plain
from daemon.kv.prefix_cache import PrefixCache
from daemon.kv.resume import resume_points
from daemon.kv.spec import Resume
from daemon.shared.failpoints import failpoint
from daemon.shared.readings import about_to_wait

TAIL = 64
"""A pass that computes logits after all its tokens, a row of the vocabulary's width each, has fewer than this."""

SHORT = 128
"""
Most remaining tokens of a prompt that shares a pass with others. Longer prompts use a pass well on their own; one after
the other, the first of them has a shorter time to first token.
"""

LONG_PREFILL = 2048
"""A prompt with so many computed tokens gives MLX's free buffers back: decode needs none of their sizes."""


class Prefill:
    """
    Computes one prompt under one model; with a draft model, under the draft model first.

    Args:
        sequence: The request.
        prefixes: The prefix cache.
        sizer: Chooses the size of chunks, and learns from them.
        clock: Seconds that never go back.
        kv: The sequence's KV that is computed, that of its draft model; None for the KV of its own model.

    Attributes:
        sequence: The request.
        beginning: The part of its prompt that others may share.
        stored: Prompt tokens that were reused, or handed to the prefix cache since.
    """

    def __init__(
        self,
        sequence: Sequence,
        prefixes: PrefixCache,
        sizer: ChunkSizer,
        clock: Callable[[], float],
        *,
        kv: SequenceKV | None = None,
    ) -> None:
        self.sequence = sequence
        self._kv = kv or sequence.kv
        self._prefixes = prefixes
        self._sizer = sizer
        self._clock = clock
        self.stored = 0
        self._points: list[int] = []
        self._forks: list[int] = []
        self.beginning = Beginning(self._kv.namespace, self._kv.sharable(sequence.prompt))
        self._shareable = self._kv.loaded.layout.reusable and prefixes.enabled
        draft = sequence.draft if kv is None else None
        self._draft = Prefill(sequence, prefixes, sizer, clock, kv=draft.kv) if draft is not None else None
        self._whole = sequence.draft is None and sequence.pooled is None and sequence.request.max_tokens > 0
        """Whether logits of the last token may be computed: a draft and its model begin to decode with it."""
        self._scored = sequence.request.prompt_logprobs is not None
        self.sizer_key = (self.model_key, "scored") if self._scored else self.model_key
        """What the sizer knows its passes by: scores take time that other prompts of the model do not."""

    @property
    def done(self) -> int:
        """Prompt tokens in the cache."""
        return self._kv.held

    @property
    def begun(self) -> bool:
        """Whether it was looked up."""
        return self._kv.cache is not None

    @property
    def reads(self) -> bool:
        """Whether it reuses tokens that other prompts computed."""
        return self._kv.reads and self._shareable

    @property
    def writes(self) -> bool:
        """Whether others can reuse its tokens: no more once its namespace was invalidated."""
        return self._kv.writes and self._shareable

    @property
    def parts(self) -> list[Prefill]:
        """The prompt as its model computes it, and as its draft model does if there is one."""
        return [self] if self._draft is None else [self._draft, self]

    @property
    def computed(self) -> int:
        """Prompt tokens that were computed rather than reused."""
        return self.done - self._kv.cached

    @property
    def remaining(self) -> int:
        """Prompt tokens left before decode can begin, those of a draft included."""
        return self._left + (self._draft.remaining if self._draft is not None else 0)

    @property
    def _left(self) -> int:
        return max(0, self.sequence.prefill_end - self.done)

    @property
    def pools(self) -> bool:
        """Whether it computes hidden states, of a text to embed."""
        return self.sequence.pooled is not None

    @property
    def model_key(self) -> ModelKey:
        """Its model."""
        return self._kv.model_key

    @property
    def namespace(self) -> str:
        """Digest under which its KV may be shared; namespaces take turns."""
        return self._kv.namespace

    @property
    def program(self) -> str:
        """The program that called; programs take turns."""
        return self.sequence.program

    @property
    def priority(self) -> int:
        """Higher is computed first."""
        return self.sequence.priority

    @property
    def length(self) -> int:
        """Tokens of its prompt that are in no prefix that it shares."""
        return len(self.sequence.prompt) - self._kv.base

    def cost(self, allowance: Allowance) -> float:
        """Return the seconds that the next step is billed."""
        if self._draft is not None and self._draft.remaining:
            return self._draft.cost(allowance)
        return allowance.cost(self._next_step(allowance), self._size(allowance))

    @property
    def short(self) -> bool:
        """Whether the rest can share a pass with that of other prompts; known once it has begun."""
        kv = self._kv
        return (
            self._draft is None
            and not (self._scored or self.sequence.samples)
            and not self._points
            and 0 < self._left <= SHORT
            and kv.loaded.joinable
            and kv.cache is not None
            and plain(kv.cache)
        )

    def begin(self, common: FindsCommon, waiting: Iterable[Beginning] = ()) -> None:
        """
        Look the prompt up and restore the longest cached prefix.

        Args:
            common: Returns the prefix that it can read together with running sequences.
            waiting: Prompts that were not looked up yet; this one becomes resumable where they diverge from it.
        """
        if self._draft is not None:
            self._draft.begin(common)
        kv, times, began = self._kv, self.sequence.times, self._clock()
        room = len(self.sequence.prompt) + min(self.sequence.request.max_tokens, DECODE_ROOM)
        times.started = began  # a draft's lookup and restore, before it, count as waiting
        if kv.reads and kv.loaded.layout.reusable:
            kv.look_up(self.sequence.request, self._prefixes, explained=kv is self.sequence.kv)
        looked_up = self._clock()
        if kv.prefix is not None and kv.prefix.tokens:
            kv.restore(self.sequence.request, self._prefixes, room, common)
        if kv.cache is None:
            kv.cache = kv.loaded.layout.new_cache(kv.loaded.model, room)
        self.stored = kv.held = kv.cached
        self._points = self._resume_points(waiting)
        times.lookup = looked_up - began
        times.restore = self._clock() - looked_up

    def step(self, allowance: Allowance) -> int:
        """
        Compute the next chunk in one pass; the draft's first.

        Returns:
            The number of the prompt's tokens in it; 0 if the draft computed it.
        """
        if self._draft is not None and self._draft.remaining:
            self._draft.step(allowance)
            return 0
        size = self._next_step(allowance)
        failpoint("prefill.chunk")
        began = self._clock()
        last = size == self._left and self._stop != self.done + size and self._takes_last(size)
        self._compute(size + last, logits=last)
        self._sizer.measured(self.sizer_key, size, self._clock() - began)
        self._store()
        self._complete()
        return size

    def store_computed(self) -> None:
        """Store the blocks that were computed since the last store."""
        self._store_blocks(Resume.NO)
        self.stored = self.done

    def prepare_for(self, follower: Beginning) -> None:
        """
        Become resumable where a prompt that has just come diverges from this one.

        If the position is not computed yet, it becomes a resume point. If it is behind, the windows may still hold the
        tokens before it, and it is stored at once.
        """
        if self._kv.loaded.layout.parts.resumes_anywhere:
            return
        parts_at = fork(self.beginning, follower, self._beyond)
        if parts_at > self.done:
            if parts_at not in self._points and sum(point > self.done for point in self._forks) < MOST_FORKS:
                insort(self._points, parts_at)
                self._forks.append(parts_at)
        elif parts_at:
            self._store_blocks(Resume.YES, first=parts_at)

    def was_computed(self, caches: list[Any], states: Any) -> None:
        """Take over that a shared pass, which ended in `states`, computed the rest of the prompt, and store it."""
        if self.sequence.pooled is not None:
            self.sequence.pooled.add(states[-self._left :], self.done)
        self._kv.advanced(self._left, caches)
        self._store_blocks(Resume.NO, caches)
        self._complete()

    def _complete(self) -> None:
        """Once all of the prompt is computed and stored: keep it if that is asked for, and free large buffers."""
        if self._left:
            return
        self._kv.keep_prompt(self.sequence.prompt, self._prefixes, self.sequence.request.request_id)
        if self.computed >= LONG_PREFILL:
            mx.clear_cache()

    def _compute(self, tokens: int, *, logits: bool) -> None:
        """Feed the next tokens of the prompt to the model; keep the logits after the last if they are wanted."""
        kv, sequence = self._kv, self.sequence
        if not tokens:
            return
        assert kv.cache is not None
        chunk = mx.array([sequence.prompt[self.done : self.done + tokens]])
        after = sequence.module(kv, last=not self._scored)(chunk, cache=kv.cache)
        if self._scored:
            score_prompt(sequence, self.done, after.squeeze(0))  # a view; an index would copy all logits
        if sequence.pooled is not None:
            sequence.pooled.add(after.squeeze(0), self.done)
        elif logits:
            sequence.logits = after[:, -1]
            about_to_wait()
            mx.async_eval(sequence.logits)
        kv.loaded.layout.compact(kv.cache)
        about_to_wait()
        mx.eval([cache.state for cache in kv.cache])
        kv.advanced(tokens, kv.cache)

    def _size(self, allowance: Allowance) -> int:
        size = self._sizer.size(self.sizer_key, allowance.long, allowance.least)
        return min(size, SCORED_TOKENS) if self._scored else size

    def _next_step(self, allowance: Allowance) -> int:
        """
        Return the number of tokens of the next chunk: up to the next resume point at most.

        It ends at the resume point, or before it with a whole block: a recurrent state cannot go back to it. Windows
        that a pass leaves hold what any position in it sees, in whole blocks if it began with one. A rest below
        `MIN_CHUNK` tokens is taken along.
        """
        most = min(self._left, (self._stop or len(self.sequence.prompt)) - self.done)
        size = self._size(allowance)
        if size >= most or (self._left < size + MIN_CHUNK and not self._scored):
            return most
        beyond_block = (self.done + size) % BLOCK_TOKENS if self._points else 0
        return size - beyond_block if beyond_block < size else size

    @property
    def _stop(self) -> int | None:
        """The resume point that the next chunk may not pass; None if it may pass all."""
        return self._points[0] if self._points and self._kv.loaded.layout.states else None

    def _takes_last(self, tokens: int) -> bool:
        """Whether a pass over so many tokens, up to the last one of the prompt, computes that too, with its logits."""
        return self._whole and (tokens < TAIL or (self._kv.loaded.last is not None and not self._scored))

    @property
    def _beyond(self) -> int:
        """Shared tokens up to which a resume point gains nothing: they are cached already, or too few to be reused."""
        return max(self._kv.cached, self._prefixes.min_prefix_len - 1)

    def _resume_points(self, waiting: Iterable[Beginning]) -> list[int]:
        """Return the positions at which to store a resumable state; none if every position is resumable."""
        kv = self._kv
        if kv.loaded.layout.parts.resumes_anywhere or not self.writes:
            return []
        branch = kv.prefix.branch if kv.prefix is not None else 0
        self._forks = forks(self.beginning, waiting, self._beyond)
        request = self.sequence.request
        last = len(self.sequence.prompt) if self._takes_last(len(self.sequence.prompt)) else self.sequence.prefill_end
        return resume_points(request.prompt, kv.cached, [branch, *self._forks], request.message_ends, last)

    def _store_blocks(self, resume: Resume, caches: list[Any] | None = None, *, first: int | None = None) -> None:
        kv, name = self._kv, self.sequence.request.request_id
        kv.store(self.sequence.tokens_in(kv), self._prefixes, resume, name, caches, first=first)

    def _store(self) -> None:
        """Store the blocks computed since the last store: at resume points, a full extent at a time, and at the end."""
        reached = [point for point in self._points if point <= self.done]
        del self._points[: len(reached)]
        for point in reached:
            self._store_blocks(Resume.YES, first=point if point < self.done else None)
        if not (reached or self._left == 0 or self.done - self.stored >= EXTENT_BLOCKS * BLOCK_TOKENS):
            return
        if self.done not in reached:
            self._store_blocks(Resume.NO)
        self.stored = self.done
