"""Prefill: reuses the cached prefix of a prompt, computes the rest chunk by chunk, and shares what it computed."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import structlog

from daemon.cache.identity import ModelKey
from daemon.engine.execution.sequence import Sequence
from daemon.engine.memory.memory_budget import DECODE_ROOM
from daemon.engine.scheduling.policy import MIN_CHUNK, Allowance, ChunkSizer
from daemon.kv.extent_ledger import EXTENT_BLOCKS
from daemon.kv.forks import MOST_FORKS, Beginning, fork, forks
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx.batch_cache import plain
from daemon.kv.mlx.request_kv import RequestKV
from daemon.kv.prefix_cache import PrefixCache
from daemon.kv.resume import resume_points
from daemon.kv.source import NotHeldError, Resume
from daemon.shared.failpoints import failpoint

TAIL = 64
"""A last chunk of at most so many tokens takes the prompt's last token along, which saves a forward pass. More would
compute logits for all of them, a row as wide as the vocabulary each."""

SHORT = 128
"""The rest of a prompt that can share a pass with others has at most so many tokens. Longer ones keep a pass busy, and
are better computed one after the other: the first has its first token sooner."""

LONG_PREFILL = 2048
"""Tokens after whose computation the buffers that only prefill needs are given back."""

log = structlog.get_logger()


class Prefill:
    """
    Computes one prompt, all but its last token, or all of it and the logits after it if its last chunk is short.
    With a draft model it does that for the draft first.

    Args:
        sequence: The request.
        prefixes: The prefix cache.
        sizer: Chooses the size of chunks.
        clock: Seconds that never go back.
        whole: Whether the last token may be computed too.

    Attributes:
        sequence: The request.
        beginning: What others may share of its prompt.
    """

    def __init__(
        self,
        sequence: Sequence,
        prefixes: PrefixCache,
        sizer: ChunkSizer,
        clock: Callable[[], float],
        *,
        whole: bool = True,
    ) -> None:
        self.sequence = sequence
        self._prefixes = prefixes
        self._sizer = sizer
        self._clock = clock
        self._done = 0
        self._stored = 0
        self._points: list[int] = []
        self._forks: list[int] = []
        self.beginning = Beginning(sequence.namespace, sequence.prompt)
        self._shareable = sequence.loaded.layout.reusable and prefixes.enabled
        draft = sequence.draft
        self._draft = Prefill(draft.sequence, prefixes, sizer, clock, whole=False) if draft is not None else None
        self._whole = whole and draft is None

    @property
    def done(self) -> int:
        """Prompt tokens in the cache."""
        return self._done

    @property
    def stored(self) -> int:
        """Prompt tokens that were reused, or handed to the prefix cache since."""
        return self._stored

    @property
    def begun(self) -> bool:
        """Whether it was looked up."""
        return self.sequence.cache is not None

    @property
    def reads(self) -> bool:
        """Whether it reuses what others computed."""
        return self.sequence.reads and self._shareable

    @property
    def writes(self) -> bool:
        """Whether others can reuse what it computes: no more once it was invalidated."""
        return self.sequence.writes and self._shareable

    @property
    def parts(self) -> list[Prefill]:
        """The prompt as its model computes it, and as its draft model does if there is one."""
        return [self] if self._draft is None else [self._draft, self]

    @property
    def computed(self) -> int:
        """Prompt tokens that were computed rather than reused."""
        return self._done - self.sequence.cached

    @property
    def remaining(self) -> int:
        """Prompt tokens left before decode can begin, those of a draft included."""
        return self._left + (self._draft.remaining if self._draft is not None else 0)

    @property
    def _left(self) -> int:
        return max(0, len(self.sequence.prompt) - 1 - self._done)

    @property
    def model_key(self) -> ModelKey:
        """Its model."""
        return self.sequence.model_key

    @property
    def namespace(self) -> str:
        """Digest under which its KV may be shared."""
        return self.sequence.namespace

    @property
    def priority(self) -> int:
        """Higher is computed first."""
        return self.sequence.priority

    @property
    def length(self) -> int:
        """Tokens of its prompt."""
        return len(self.sequence.prompt)

    def cost(self, allowance: Allowance) -> float:
        """Return the seconds that the next step is billed."""
        if self._draft is not None and self._draft.remaining:
            return self._draft.cost(allowance)
        return allowance.cost(self._next_step(allowance), self._size(allowance))

    @property
    def short(self) -> bool:
        """Whether the rest can share a pass with that of other prompts; known once it has begun."""
        sequence = self.sequence
        return (
            self._draft is None
            and not self._points
            and 0 < self._left <= SHORT
            and sequence.loaded.joinable
            and sequence.cache is not None
            and plain(sequence.cache)
        )

    def begin(self, waiting: Iterable[Beginning] = ()) -> None:
        """
        Look the prompt up and restore what is cached.

        Args:
            waiting: Prompts that were not looked up yet; this one becomes resumable where they part from it.
        """
        if self._draft is not None:
            self._draft.begin()
        sequence = self.sequence
        room = len(sequence.prompt) + min(sequence.max_tokens, DECODE_ROOM)
        began = self._clock()
        sequence.times.started = began
        if sequence.reads and sequence.loaded.layout.reusable:
            self._look_up()
        looked_up = self._clock()
        if sequence.prefix is not None and sequence.prefix.tokens:
            self._restore(room)
        if sequence.cache is None:
            sequence.cache = sequence.loaded.layout.new_cache(sequence.loaded.model, room)
        self._done = self._stored = sequence.held = sequence.cached
        self._points = self._resume_points(waiting)
        sequence.times.lookup = looked_up - began
        sequence.times.restore = self._clock() - looked_up

    def step(self, allowance: Allowance) -> int:
        """Compute up to its chunks in one pass, and return how many of the prompt's tokens; none if the draft's."""
        if self._draft is not None and self._draft.remaining:
            self._draft.step(allowance)
            return 0
        size = self._next_step(allowance)
        failpoint("prefill.chunk")
        began = self._clock()
        at_point = self._points[:1] == [self._done + size]
        last = self._whole and size == self._left and size < TAIL and not at_point
        self._compute(size + last, logits=last)
        self._sizer.measured(self.sequence.loaded.source.key, size, self._clock() - began)
        self._store(at_point=at_point)
        self._clear_up()
        return size

    def store_computed(self) -> None:
        """Store what was computed and is not stored yet."""
        store(self.sequence, self._prefixes, Resume.NO)
        self._stored = self._done

    def prepare_for(self, follower: Beginning) -> None:
        """
        Become resumable where a prompt that has come meanwhile parts from this one.

        Ahead of what is computed, prefill stops there. Behind it, windows may still hold what is needed.
        """
        sequence = self.sequence
        if sequence.loaded.layout.parts.resumes_anywhere:
            return
        parts_at = fork(self.beginning, follower, self._beyond)
        if parts_at > self._done:
            if parts_at not in self._points and sum(point > self._done for point in self._forks) < MOST_FORKS:
                insort(self._points, parts_at)
                self._forks.append(parts_at)
        elif parts_at:
            store(sequence, self._prefixes, Resume.YES, first=parts_at)

    def was_computed(self, caches: list[Any]) -> None:
        """Take note that the rest of the prompt, all but its last token, was computed elsewhere, and share it."""
        rest = self._left
        self._done += rest
        self.sequence.advanced(rest, caches)
        store(self.sequence, self._prefixes, Resume.NO, caches)
        self._clear_up()

    def _clear_up(self) -> None:
        if self._left == 0 and self.computed >= LONG_PREFILL:
            mx.clear_cache()

    def _compute(self, tokens: int, *, logits: bool) -> None:
        sequence = self.sequence
        if not tokens:
            return
        assert sequence.cache is not None
        chunk = mx.array([sequence.prompt[self._done : self._done + tokens]])
        after = sequence.loaded.model(chunk, cache=sequence.cache)
        if logits:
            sequence.logits = after[:, -1]
            mx.async_eval(sequence.logits)
        mx.eval([cache.state for cache in sequence.cache])
        self._done += tokens
        sequence.advanced(tokens, sequence.cache)

    def _size(self, allowance: Allowance) -> int:
        return self._sizer.size(self.sequence.loaded.source.key, allowance.long, allowance.least)

    def _next_step(self, allowance: Allowance) -> int:
        """
        Return how many tokens to compute: up to the next resume point at most, and so that blocks are whole.

        What would be left for a pass of fewer than MIN_CHUNK tokens is taken along.
        """
        size = self._size(allowance)
        size = self._left if self._left < size + MIN_CHUNK else size
        if self._points:
            size = min(size, self._points[0] - self._done)
            beyond_block = (self._done + size) % BLOCK_TOKENS
            size -= beyond_block if beyond_block < size else 0
        return size

    @property
    def _beyond(self) -> int:
        """Tokens that other prompts have to share more of for anything to be gained."""
        return max(self.sequence.cached, self._prefixes.min_prefix_len - 1)

    def _resume_points(self, waiting: Iterable[Beginning]) -> list[int]:
        """Return where the rest of the prompt is to be made resumable; empty if that is so everywhere."""
        sequence = self.sequence
        layout = sequence.loaded.layout
        if layout.parts.resumes_anywhere or not self.writes:
            return []
        branch = sequence.prefix.branch if sequence.prefix is not None else 0
        self._forks = forks(self.beginning, waiting, self._beyond)
        return resume_points(sequence.prompt, sequence.cached, [branch, *self._forks], sequence.message_ends)

    def _store(self, *, at_point: bool) -> None:
        """Share what was computed: at resume points, in steps of an extent, and at the end."""
        if at_point:
            self._points.pop(0)
        if at_point or self._left == 0 or self._done - self._stored >= EXTENT_BLOCKS * BLOCK_TOKENS:
            store(self.sequence, self._prefixes, Resume.YES if at_point else Resume.NO)
            self._stored = self._done

    def _look_up(self) -> None:
        """Lease the longest cached prefix; a fault costs time, never the request."""
        sequence = self.sequence
        try:
            parts = sequence.loaded.layout.parts
            sequence.prefix = self._prefixes.lookup(sequence.namespace, sequence.prompt, parts)
        except Exception:
            log.exception("looking a prompt up failed; the request runs cold", request_id=sequence.request_id)

    def _restore(self, room: int) -> None:
        """Copy the matched KV; a fault costs time, never the request."""
        sequence = self.sequence
        assert sequence.prefix is not None
        try:
            layout, prefix = sequence.loaded.layout, sequence.prefix
            runs = self._prefixes.runs(prefix, layout.parts)
            sequence.cache = layout.restored_cache(sequence.loaded.model, runs, prefix.checkpoint, prefix.tokens, room)
        except Exception:
            log.exception("restoring a cached prefix failed; the request runs cold", request_id=sequence.request_id)
            return
        sequence.cached = sequence.prefix.tokens
        self._prefixes.restored(sequence.prefix)


def store(
    sequence: Sequence,
    prefixes: PrefixCache,
    resume: Resume,
    caches: list[Any] | None = None,
    *,
    first: int | None = None,
) -> None:
    """
    Store every full block of a sequence that is not stored yet; a fault is only logged.

    Args:
        sequence: The request.
        prefixes: The prefix cache.
        resume: Whether requests shall be able to go on where it is now, or after its `first` tokens.
        caches: Its KV, if it is in a batch.
        first: How many of its tokens to store; None for all. Nothing if their state is not held any more.
    """
    layout = sequence.loaded.layout
    caches = caches or sequence.cache
    if not (sequence.writes and layout.reusable and caches and sequence.held):
        return
    if first is not None and layout.states and (sequence.boundary is None or sequence.boundary.tokens != first):
        return
    try:
        live = RequestKV(layout, caches, sequence.held, sequence.boundary)
        prefixes.store(sequence.namespace, sequence.tokens_in_cache[:first], layout.parts, live, resume=resume)
    except NotHeldError:
        return  # a window moved on: what was stored before it did is all there is
    except Exception:
        log.exception("storing a prefix failed; the request goes on", request_id=sequence.request_id)
