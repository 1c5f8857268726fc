"""Results of `stats()` for the model cache and the prefix cache. Times are seconds or None, sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlx_sidecar._model_info import ModelInfo


@dataclass(frozen=True, slots=True)
class ModelCacheStats:
    """
    The model cache as a whole.

    Attributes:
        cached_models: Models in memory, without models that are being loaded.
        max_models: Most models kept in memory at once.
        total_hits: Lookups that found their model loaded.
        total_misses: Lookups that found it not loaded.
        hit_rate: Share of hits, 0 to 1; 0 before the first lookup.
        total_memory_bytes: Bytes of all weights in memory, with draining models.
        budget_bytes: Most bytes of weights in memory; 0 means that caching is disabled.
        evictions: Models dropped to make room or because they were idle too long.
        oldest_entry_age: Seconds; None when the cache is empty.
    """

    cached_models: int
    max_models: int
    total_hits: int
    total_misses: int
    hit_rate: float
    total_memory_bytes: int
    budget_bytes: int
    evictions: int
    oldest_entry_age: float | None


@dataclass(frozen=True, slots=True)
class ModelStats:
    """
    One model in memory.

    Attributes:
        info: The model.
        state: "loading", "ready" or "draining".
        in_use: Requests that use it now.
        use_count: Times it was asked for since it was loaded.
        age: Seconds since it was loaded.
        idle: Seconds since it was last used; 0 while in use.
        expires_in: Seconds until it is stale; None while pinned or in use.
        pinned: Whether it is pinned.
        names: The names under which it was requested; several names can stand for the same content.
    """

    info: ModelInfo
    state: str
    in_use: int
    use_count: int
    age: float | None
    idle: float | None
    expires_in: float | None
    pinned: bool
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NamespaceStats:
    """
    One namespace of the prefix cache. Prompts of the same namespace may share KV.

    Attributes:
        namespace: Its id of 16 digits. It does not reveal the salt.
        model: The name under which its model was last requested.
        adapter: Directory of its adapter; empty if there is none.
        salted: Whether its requests had a salt.
        blocks: Blocks stored.
        branches: Different first blocks.
        hits: Lookups with a reused prefix, counted from its first stored block.
        tokens_reused: Tokens with reused KV, counted from its first stored block.
    """

    namespace: str
    model: str
    adapter: str
    salted: bool
    blocks: int
    branches: int
    hits: int
    tokens_reused: int


@dataclass(frozen=True, slots=True)
class KeptPrefix:
    """
    A prefix that is evicted after all that are not kept.

    Attributes:
        namespace: The id of its namespace.
        tokens: Its tokens.
        bytes: Bytes that a request needs to go on after it, with blocks that others share.
        expires_in: Seconds until it is evicted as any other.
    """

    namespace: str
    tokens: int
    bytes: int
    expires_in: float | None


@dataclass(frozen=True, slots=True)
class MissCounts:
    """
    Lookups that did not reuse all that could be reused, by reason; see `Miss`.

    Attributes:
        never_seen: No stored prompt begins as the prompt does.
        diverged: The closest stored prompt differs.
        evicted: More was stored, and was evicted.
        invalidated: More was stored, and was invalidated.
        other_namespace: More was stored in another namespace.
        too_short: Too few tokens.
        resume_point: More is stored, and the next resume point lies earlier.
    """

    never_seen: int = 0
    diverged: int = 0
    evicted: int = 0
    invalidated: int = 0
    other_namespace: int = 0
    too_short: int = 0
    resume_point: int = 0


@dataclass(frozen=True, slots=True)
class PrefixCacheStats:
    """
    The prefix cache.

    Attributes:
        blocks: Blocks stored, tails included.
        max_blocks: Most blocks stored at once.
        block_tokens: Tokens of a block.
        bytes: Bytes of KV stored.
        budget_bytes: Most bytes of KV stored at once, now.
        buffers: Device buffers that hold it.
        lookups: Prompts looked up.
        hits: Lookups with a reused prefix.
        hit_rate: Share of hits, 0 to 1; 0 before the first lookup.
        tokens_looked_up: Tokens of all prompts looked up.
        tokens_reused: Tokens with reused KV.
        inserts: Blocks stored since the start.
        evictions: Blocks dropped to make room since the start.
        leases: Requests that hold a cached prefix now.
        checkpoints: Checkpoints of recurrent or windowed state stored.
        namespaces: The namespaces with the most blocks, at most 64.
        total_namespaces: Number of namespaces with stored blocks.
        kept: Prefixes that are kept, those whose time is over first, at most 64.
        misses: Lookups that did not reuse all that could be reused, by reason.
        total_kept: Number of kept prefixes.
        kept_bytes: Bytes of all kept prefixes.
        kept_budget_bytes: Most bytes of kept prefixes.
        kept_yielded: Kept prefixes that yielded before their time was over, for want of room.
        evictable_bytes: Bytes that could be evicted now: what no running request holds.
        most_bytes: Most that `budget_bytes` can be: what `kv_cache_mb` allows, or a quarter of the machine's memory.
        disk_bytes: Bytes of KV on the disk.
        disk_blocks: Blocks on the disk; some of them are in memory as well.
        disk_budget_bytes: Most bytes on the disk now; 0 if there is no disk tier, or its directory cannot be used.
        disk_hits: Requests that reused tokens from the disk.
        disk_tokens_reused: These tokens.
        disk_written_bytes: Bytes written to the disk since the start.
        disk_faults: Faults of the disk since the start; each cost time.
        shared_prefixes: Prefixes that running requests read together, each from one copy of its KV.
        shared_readers: Running requests that read one of them.
        shared_bytes: Bytes of KV of these prefixes, beside `bytes`.
        tokens_shared: Tokens of `tokens_reused` that were read where another request had them, and not copied.
        shared_copied_tokens: Tokens that were copied to become part of such a prefix.
        tails: Ends of prompts and answers with fewer tokens than a block; they count as blocks.
        tail_tokens_reused: Tokens with reused KV beyond the last whole block of a prompt.
    """

    blocks: int
    max_blocks: int
    block_tokens: int
    bytes: int
    budget_bytes: int
    buffers: int
    lookups: int
    hits: int
    hit_rate: float
    tokens_looked_up: int
    tokens_reused: int
    inserts: int
    evictions: int
    leases: int
    checkpoints: int
    namespaces: tuple[NamespaceStats, ...] = ()
    total_namespaces: int = 0
    kept: tuple[KeptPrefix, ...] = ()
    misses: MissCounts = field(default_factory=MissCounts)
    total_kept: int = 0
    kept_bytes: int = 0
    kept_budget_bytes: int = 0
    kept_yielded: int = 0
    evictable_bytes: int = 0
    most_bytes: int = 0
    disk_bytes: int = 0
    disk_blocks: int = 0
    disk_budget_bytes: int = 0
    disk_hits: int = 0
    disk_tokens_reused: int = 0
    disk_written_bytes: int = 0
    disk_faults: int = 0
    shared_prefixes: int = 0
    shared_readers: int = 0
    shared_bytes: int = 0
    tokens_shared: int = 0
    shared_copied_tokens: int = 0
    tails: int = 0
    tail_tokens_reused: int = 0
