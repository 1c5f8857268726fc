"""Prefill: reuses the cached prefix of a prompt, computes the rest chunk by chunk, and shares what it computed."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import structlog

from daemon.engine.ledger import DECODE_ROOM
from daemon.engine.scheduler import ChunkSizer
from daemon.engine.sequence import Sequence
from daemon.kv.adapters.kv_cache import NotHeldError
from daemon.kv.block import BLOCK_TOKENS
from daemon.kv.extents import EXTENT_BLOCKS
from daemon.kv.prefix_cache import PrefixCache

LONG_PREFILL = 2048
"""Tokens after whose computation the buffers that only prefill needs are given back."""

log = structlog.get_logger()


class Prefill:
    """
    Computes one prompt, all but its last token; that one is the first input of decode.

    Args:
        sequence: The request.
        prefixes: The prefix cache.
        sizer: Chooses the size of chunks.
        clock: Seconds that never go back.
    """

    def __init__(
        self, sequence: Sequence, prefixes: PrefixCache, sizer: ChunkSizer, clock: Callable[[], float]
    ) -> None:
        self.sequence = sequence
        self._prefixes = prefixes
        self._sizer = sizer
        self._clock = clock
        self._done = 0
        self._stored = 0

    @property
    def done(self) -> int:
        """Prompt tokens in the cache."""
        return self._done

    @property
    def computed(self) -> int:
        """Prompt tokens that were computed rather than reused."""
        return self._done - self.sequence.cached

    @property
    def remaining(self) -> int:
        """Prompt tokens left before decode can begin."""
        return len(self.sequence.prompt) - 1 - self._done

    def begin(self) -> None:
        """Look the prompt up and restore what is cached."""
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
        self._done = self._stored = sequence.cached
        sequence.times.lookup = looked_up - began
        sequence.times.restore = self._clock() - looked_up

    def step(self) -> int:
        """Compute one chunk and return how many tokens it had."""
        sequence = self.sequence
        model = sequence.loaded
        size = min(self._sizer.size(model.source.key), self.remaining)
        began = self._clock()
        if size:
            chunk = mx.array([sequence.prompt[self._done : self._done + size]])
            model.model(chunk, cache=sequence.cache)
            assert sequence.cache is not None
            mx.eval([cache.state for cache in sequence.cache])
            self._done += size
        elapsed = self._clock() - began
        sequence.times.prefill += elapsed
        self._sizer.measured(model.source.key, size, elapsed)
        # A window forgets: what is in it now may not be there any more after the next chunk.
        pause = 1 if model.layout.windowed else EXTENT_BLOCKS * BLOCK_TOKENS
        if self.remaining == 0 or self._done - self._stored >= pause:
            store(sequence, self._prefixes)
            self._stored = self._done
        if self.remaining == 0 and self.computed >= LONG_PREFILL:
            mx.clear_cache()
        return size

    def _look_up(self) -> None:
        """Lease the longest cached prefix; a fault costs time, never the request."""
        sequence = self.sequence
        try:
            sequence.prefix = self._prefixes.lookup(sequence.namespace, sequence.prompt)
        except Exception:
            log.exception("looking a prompt up failed; the request runs cold", request_id=sequence.request_id)

    def _restore(self, room: int) -> None:
        """Copy the matched KV; a fault costs time, never the request."""
        sequence = self.sequence
        assert sequence.prefix is not None
        try:
            layout = sequence.loaded.layout
            runs = self._prefixes.runs(sequence.prefix)
            sequence.cache = layout.restored_cache(sequence.loaded.model, runs, room)
        except Exception:
            log.exception("restoring a cached prefix failed; the request runs cold", request_id=sequence.request_id)
            return
        sequence.cached = sequence.prefix.tokens
        self._prefixes.restored(sequence.prefix)


def store(sequence: Sequence, prefixes: PrefixCache) -> None:
    """Store every full block that the sequence's cache holds and that is not stored yet; a fault is only logged."""
    layout = sequence.loaded.layout
    caches = sequence.cache
    if not (sequence.writes and layout.reusable and caches):
        return
    try:
        prefixes.store(
            sequence.namespace,
            sequence.tokens_in_cache,
            layout.block_bytes,
            lambda start, stop: layout.pack(caches, start, stop),
        )
    except NotHeldError:
        return  # a window that moved on during decode: what was stored before it did is all there is
    except Exception:
        log.exception("storing a prefix failed; the request goes on", request_id=sequence.request_id)
