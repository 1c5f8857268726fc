"""
The KV cache of one sequence under one model, and its holds on that model and on the prefix it reused.

A sequence has one for its model. With a draft model it has a second one, of the same tokens under the other model.

At each moment one place holds the arrays:

    prefix cache --restore--> `cache` --take()--> rows of a `Batch` --leave--> `cache` --release()--> gone

`cache` is None before prefill begins, while the sequence is a row of a batch, and after `release`. `held` counts tokens
wherever the arrays are.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import structlog

from daemon.cache.entry import ModelLease
from daemon.cache.identity import ModelKey
from daemon.cache.mlx.loader import LoadedModel
from daemon.engine.execution.request import Request
from daemon.engine.memory.memory_budget import DECODE_ROOM
from daemon.engine.prompt.places import LEAST_LEAD
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.lease import PrefixLease
from daemon.kv.miss import Miss
from daemon.kv.mlx import sharing
from daemon.kv.mlx.request_kv import Boundary, RequestKV
from daemon.kv.mlx.shared_prefix import SharedPrefix
from daemon.kv.prefix_cache import PrefixCache
from daemon.kv.spec import NotHeldError, Resume
from daemon.shared.machine_faults import pass_on_device_failure

log = structlog.get_logger()

FindsCommon = Callable[["SequenceKV", list[int]], SharedPrefix | None]
"""Returns the prefix that a KV, whose match is leased, can read together with running sequences."""


@dataclass(slots=True)
class Outlook:
    """
    What a KV that has not begun will read together with running sequences, as its bill foresees it (`outlooks.py`).

    Attributes:
        tokens: Tokens that it will read so.
        promised: The most tokens that it was billed for so while other sequences had still to compute some of them.
        trusts: Whether its bill may count on tokens that are still to be computed: no more once that was in vain.
        alike: KVs of which it will read so many tokens.
    """

    tokens: int = 0
    promised: int = 0
    trusts: bool = True
    alike: dict[SequenceKV, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class SequenceKV:
    """
    KV of a sequence, and its rights to share it.

    Attributes:
        model_lease: The hold on the model that computes it.
        namespace: Digest under which it may be shared.
        reads: Whether cached prefixes may be reused.
        writes: Whether it may be stored for others; no more once its namespace was invalidated.
        lends: Whether others may read what it reused; no more once its namespace was invalidated.
        cache: One mlx-lm cache for each layer; None while another place holds the arrays.
        held: Tokens that the arrays hold.
        cached: Prompt tokens that were reused.
        boundary: The state of recurrent layers at the last end of a block.
        prefix: The hold on the prefix that was reused, or is to be.
        in_memory: Prompt tokens that could have been reused without the disk; None if nothing came from there.
        keep: Seconds for which the prompt is evicted after all others, once it is stored; 0 for as any other.
        miss: Why no more of the prompt was reused; None if all was that could be, or none was looked for.
        shared: Leading tokens that may be reused and stored; None for all.
        common: The last prefix that it reads together with other sequences; None if all of it is its own.
        outlook: What it will read so, as far as is known before its lookup.
    """

    model_lease: ModelLease[LoadedModel]
    namespace: str
    reads: bool
    writes: bool
    lends: bool = True
    cache: list[Any] | None = None
    held: int = 0
    cached: int = 0
    boundary: Boundary | None = None
    prefix: PrefixLease | None = None
    in_memory: int | None = None
    keep: float = 0.0
    miss: Miss | None = None
    shared: int | None = None
    common: SharedPrefix | None = None
    outlook: Outlook = field(default_factory=Outlook)

    @property
    def loaded(self) -> LoadedModel:
        """The model that computes it."""
        return self.model_lease.model

    @property
    def model_key(self) -> ModelKey:
        """Identity of that model."""
        return self.loaded.source.key

    @property
    def begun(self) -> bool:
        """Whether its prompt was looked up."""
        return self.cache is not None or self.held > 0

    @property
    def leased(self) -> int:
        """Tokens that it has reused, or is certain to: nothing evicts them before it is looked up."""
        if self.begun:
            return self.cached
        return 0 if self.prefix is None or self.prefix.forgotten else self.prefix.tokens

    @property
    def from_disk(self) -> int:
        """Reused prompt tokens that came from the disk."""
        return 0 if self.in_memory is None else max(0, self.cached - self.in_memory)

    @property
    def base(self) -> int:
        """Tokens of the prefixes that it reads together with others: they are in no array of its own."""
        return 0 if self.common is None else self.common.stop

    @property
    def root(self) -> SharedPrefix | None:
        """The prefix of its first tokens that others read as well; None if all of it is its own."""
        return None if self.common is None else self.common.root

    @property
    def sharing_limit(self) -> int:
        """Leading tokens of it that other sequences may read: what it wrote for others, or had from them."""
        if self.writes:
            return self.held if self.shared is None else self.shared
        return self.cached if self.lends else 0

    def invalidated(self) -> None:
        """Store no more of it, and lend nothing of it to later requests: its namespace was invalidated."""
        self.writes = self.lends = False

    def share(self, other: SequenceKV, *, copy: bool) -> None:
        """
        Let another KV of the same tokens, with nothing computed, stand where this one is.

        Args:
            other: The KV of another sample.
            copy: Whether it gets a copy of the arrays, which the first write to either makes; else a batch holds them.
        """
        other.held, other.cached, other.boundary = self.held, self.cached, self.boundary
        other.writes, other.lends, other.keep = self.writes, self.lends, self.keep
        other.common = self.common
        if copy:
            other.cache = deepcopy(self.cache)

    def share_prompt(self) -> None:
        """Let the further samples of a long prompt read one copy of it."""
        tokens = self.held // BLOCK_TOKENS * BLOCK_TOKENS
        if self.loaded.shares and tokens - self.base >= sharing.LEAST_SHARED:
            self.cache, self.common = sharing.share(self.take(), tokens, DECODE_ROOM, copy=False)

    def sharable(self, prompt: list[int]) -> list[int]:
        """Return the tokens of a prompt that may be shared, and the one after them, which is never restored."""
        return prompt if self.shared is None else prompt[: self.shared + 1]

    def look_up(self, request: Request, prefixes: PrefixCache, *, explained: bool) -> None:
        """
        Lease the longest cached prefix of a prompt; a fault costs time, never the request.

        Args:
            request: The request that has the prompt.
            prefixes: The prefix cache.
            explained: Whether to find out why no more of it can be reused.
        """
        parts, prompt = self.loaded.layout.parts, self.sharable(request.prompt)
        early, self.prefix = self.prefix, None
        self.outlook = Outlook(trusts=self.outlook.trusts)
        try:
            self.prefix = prefixes.lookup(self.namespace, prompt, parts)
            if prefixes.enabled and explained:
                lead = request.places.lead if request.places is not None else LEAST_LEAD
                self.miss = prefixes.explain(self.prefix, prompt, parts, lead)
        except Exception:
            log.exception("prefix_lookup_failed", request_id=request.request_id)
        if early is not None:
            early.release()

    def lease_early(self, request: Request, prefixes: PrefixCache, *, anew: bool = False) -> None:
        """
        Lease what is stored of a prompt before its lookup, which then finds as much; a fault is only logged.

        Args:
            request: The request that has the prompt.
            prefixes: The prefix cache.
            anew: Whether more may be stored than was when something was leased.
        """
        if self.prefix is not None and self.prefix.forgotten:
            self.release_lease()
        if self.prefix is None or anew:
            prompt, parts, before = self.sharable(request.prompt), self.loaded.layout.parts, self.prefix
            try:
                self.prefix = prefixes.lookup(self.namespace, prompt, parts, counted=False)
            except Exception:
                log.exception("prefix_lookup_failed", request_id=request.request_id)
                return
            if before is not None:
                before.release()

    def release_lease(self) -> None:
        """Give up what was leased before the lookup."""
        early, self.prefix = self.prefix, None
        self.outlook.tokens, self.outlook.alike = 0, {}
        if early is not None:
            early.release()

    def restore(self, request: Request, prefixes: PrefixCache, room: int, common: FindsCommon) -> None:
        """
        Copy the KV of the leased prefix, but for what it has in common with running sequences.

        A fault costs time, never the request.

        Args:
            request: The request that has the prompt.
            prefixes: The prefix cache.
            room: Tokens that the caches shall have room for.
            common: Returns the prefix that is in memory already.
        """
        prefix, layout = self.prefix, self.loaded.layout
        assert prefix is not None
        try:
            runs = prefixes.runs(prefix, layout.parts)
            shared = common(self, self.sharable(request.prompt))
            self.cache = layout.restored_cache(self.loaded.model, runs, prefix.checkpoint, prefix.tokens, room, shared)
        except Exception as error:
            pass_on_device_failure(error)
            log.exception("prefix_restore_failed", request_id=request.request_id)
            return
        self.cached, self.common = prefix.tokens, shared
        prefixes.restored(prefix, self.from_disk, self.base)

    def take(self) -> list[Any]:
        """Return the caches to a new owner, a batch."""
        caches, self.cache = self.cache, None
        assert caches is not None, "the KV of a sequence was taken before it was computed, or twice"
        return caches

    def advanced(self, tokens: int, caches: list[Any], row: int | None = None) -> None:
        """
        Count tokens that were fed to the model, and keep the state of recurrent layers at the end of a block.

        Args:
            tokens: How many.
            caches: The caches that the model wrote to.
            row: The row of them, if they are a batch's.
        """
        self.held += tokens
        layout = self.loaded.layout
        if layout.states and self.writes and self.held % BLOCK_TOKENS == 0:
            self.boundary = Boundary(self.held, layout.state(caches, row))

    def store(
        self,
        tokens: list[int],
        prefixes: PrefixCache,
        resume: Resume,
        request_id: str,
        caches: list[Any] | None = None,
        *,
        first: int | None = None,
    ) -> None:
        """
        Store every full block that is not stored yet, and the tail at a resume point; a fault is only logged.

        Args:
            tokens: The tokens that the arrays hold.
            prefixes: The prefix cache.
            resume: Whether requests shall be able to resume where it is now, or after the `first` tokens.
            request_id: The request that a fault is logged for.
            caches: The arrays, if they are in a batch.
            first: How many of the tokens to store; None for all. Nothing if their state is not held any more.
        """
        layout = self.loaded.layout
        caches = caches or self.cache
        if not (self.writes and layout.reusable and caches and self.held):
            return
        if self.shared is not None:
            first = min(self.held if first is None else first, self.shared)
        held = (self.held, self.boundary.tokens if self.boundary is not None else self.held)
        if first is not None and layout.states and first not in held:
            return
        try:
            live = RequestKV(layout, caches, self.held, self.boundary)
            kept = self.keep > 0
            prefixes.store(self.namespace, tokens[:first], layout.parts, live, resume=resume, kept=kept)
        except NotHeldError:
            return  # a window has passed these tokens; the blocks that were stored before it did remain
        except Exception as error:
            pass_on_device_failure(error)
            log.exception("prefix_store_failed", request_id=request_id)

    def forget(self, prompt: list[int], prefixes: PrefixCache) -> None:
        """Drop what was stored, tails too, before logits were found to be no numbers; store no more."""
        if self.writes:
            self.writes = False
            prefixes.forget_prefix(self.namespace, prompt[: max(self.cached + 1, BLOCK_TOKENS)])

    def keep_prompt(self, prompt: list[int], prefixes: PrefixCache, request_id: str) -> None:
        """Keep what is stored of a prompt, if that is asked for; a fault is only logged."""
        seconds, self.keep = self.keep, 0.0  # what is stored from now on is the answer
        if not (seconds and self.writes):
            return
        try:
            kept = prefixes.keep(self.namespace, prompt, self.loaded.layout.parts, seconds)
        except Exception:
            log.exception("prefix_keep_failed", request_id=request_id)
            return
        if not kept:
            log.info("prefix_not_kept", request_id=request_id)

    def release(self) -> None:
        """Give KV, prefix and model back; called exactly once."""
        self.cache = self.boundary = self.common = None
        self.outlook.alike = {}
        if self.prefix is not None:
            self.prefix.release()
        self.model_lease.release()


@dataclass(slots=True)
class DraftKV:
    """
    The KV of a smaller model that guesses for a sequence.

    Attributes:
        kv: The sequence's tokens under the smaller model.
        count: Tokens that it guesses at a time.
    """

    kv: SequenceKV
    count: int
