"""What `stats()` returns: a frozen copy of the daemon's state. Times are seconds or None, sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_sidecar._results import ModelInfo


@dataclass(frozen=True, slots=True)
class DaemonStats:
    """
    The daemon process.

    Attributes:
        version: Version of mlx-sidecar.
        pid: Its process id.
        uptime: Seconds since it started.
        draining: Whether it finishes its last streams before it exits.
        mlx_version: Version of mlx; empty until the engine is up.
        mlx_lm_version: Version of mlx-lm; empty until the engine is up.
        device: What MLX computes on, such as "gpu: Apple M4 Max" or "cpu".
    """

    version: str
    pid: int
    uptime: float | None
    draining: bool
    mlx_version: str
    mlx_lm_version: str
    device: str


@dataclass(frozen=True, slots=True)
class ModelCacheStats:
    """
    The model cache as a whole.

    Attributes:
        cached_models: Models in memory, those being loaded not included.
        max_models: Most models kept in memory at once.
        total_hits: Lookups that found their model loaded.
        total_misses: Lookups that did not.
        hit_rate: Share of hits, 0 to 1; 0 before the first lookup.
        total_memory_bytes: Bytes of all weights in memory, draining ones included.
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
        names: The names that it was asked for by; several may stand for the same content.
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
    One namespace of the prefix cache: prompts that may share KV.

    Attributes:
        namespace: Digits that stand for it.
        model: The name by which its model was last asked for.
        adapter: Directory of its adapter; empty if there is none.
        salted: Whether its requests had a salt.
        blocks: Blocks stored.
        branches: Different first blocks.
        hits: Lookups whose prefix was reused, since it stores anything.
        tokens_reused: Tokens whose KV was reused, since it stores anything.
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
class PrefixCacheStats:
    """
    The prefix cache.

    Attributes:
        blocks: Blocks stored.
        max_blocks: Most blocks stored at once.
        block_tokens: Tokens of a block.
        bytes: Bytes of KV stored.
        budget_bytes: Most bytes of KV stored at once.
        buffers: Device buffers that hold it.
        lookups: Prompts looked up.
        hits: Lookups whose prefix was reused.
        hit_rate: Share of hits, 0 to 1; 0 before the first lookup.
        tokens_looked_up: Tokens of all prompts looked up.
        tokens_reused: Tokens whose KV was reused.
        inserts: Blocks stored since the start.
        evictions: Blocks dropped to make room since the start.
        leases: Requests that hold a cached prefix now.
        checkpoints: Checkpoints of recurrent or windowed state stored.
        namespaces: What each namespace stores, most blocks first; at most 64 of them.
        total_namespaces: Namespaces that store anything.
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


@dataclass(frozen=True, slots=True)
class EngineStats:
    """
    The engine process and its queue.

    Attributes:
        state: "starting", "ready", "stalled", "restarting" or "stopped".
        restarts: Times it was started again since the daemon started.
        step_age: Seconds since the current step began; 0 when idle.
        queued: Requests that wait for their model or a slot.
        prefilling: Requests whose prompt is being computed.
        decoding: Requests that generate.
        prompt_tokens: Prompt tokens computed since the engine started, reused ones not included.
        generated_tokens: Tokens generated since the engine started.
        rejected: Requests refused because the queue was full or the daemon was draining.
        cancelled: Requests that their client cancelled.
        pid: Its process id; 0 while it is not running.
        step_time_p50: Seconds that half of its turns with work to do stayed within; None before the first.
        step_time_p99: Seconds that 99 of 100 turns stayed within.
        token_gap_p50: Seconds that half of the gaps between two tokens of one request stayed within.
        token_gap_p99: Seconds that 99 of 100 gaps stayed within.
        batch_size_p50: Requests that got a token in one turn, or fewer, in half of the turns.
        batch_size_p99: The same for 99 of 100 turns.
    """

    state: str
    restarts: int
    step_age: float | None
    queued: int
    prefilling: int
    decoding: int
    prompt_tokens: int
    generated_tokens: int
    rejected: int
    cancelled: int
    pid: int
    step_time_p50: float | None = None
    step_time_p99: float | None = None
    token_gap_p50: float | None = None
    token_gap_p99: float | None = None
    batch_size_p50: int = 0
    batch_size_p99: int = 0


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """
    The engine's memory, unified memory on a Mac.

    Attributes:
        active_bytes: Bytes in live MLX arrays.
        cache_bytes: Bytes in MLX's pool of freed buffers.
        peak_bytes: Most bytes that were in live arrays at once.
        weights_bytes: Bytes of weights.
        trie_bytes: Bytes of the prefix cache.
        live_kv_bytes: Bytes of KV of running requests.
        headroom_bytes: Bytes that are left below the limit.
        limit_bytes: Most bytes that weights, prefix cache and running requests may use together.
    """

    active_bytes: int
    cache_bytes: int
    peak_bytes: int
    weights_bytes: int
    trie_bytes: int
    live_kv_bytes: int
    headroom_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class LatencyHistogram:
    """
    Spans of time, counted in buckets.

    Attributes:
        bounds: Upper bounds of the buckets in seconds, ascending.
        counts: Spans in each bucket; one more than there are bounds, for what is longer.
        sum: Seconds of all spans together; None before the first.
    """

    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    sum: float | None = None

    @property
    def count(self) -> int:
        """Spans counted."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """
        Return the span in seconds that `share` of all spans (0 to 1) do not exceed, interpolated within its bucket;
        None before the first. What is longer than the last bound counts as that bound.
        """
        rank, below, lower = share * self.count, 0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= rank:
                return lower + (bound - lower) * max(rank - below, 0.0) / count
            below, lower = below + count, bound
        return lower if self.count else None


@dataclass(frozen=True, slots=True)
class LatencyStats:
    """
    How long completed requests took.

    Attributes:
        queue: Preparing the prompt and waiting for a slot.
        load: Waiting for a model to load; only requests that did.
        prefill: Computing what was not cached of the prompt.
        first_token: From arrival to the first token.
        per_token: From one token to the next, the mean of each request.
        total: From arrival to the last token.
    """

    queue: LatencyHistogram = LatencyHistogram()
    load: LatencyHistogram = LatencyHistogram()
    prefill: LatencyHistogram = LatencyHistogram()
    first_token: LatencyHistogram = LatencyHistogram()
    per_token: LatencyHistogram = LatencyHistogram()
    total: LatencyHistogram = LatencyHistogram()


@dataclass(frozen=True, slots=True)
class HistorySample:
    """
    Figures at one time. Counters begin anew when the engine does.

    Attributes:
        age: Seconds ago.
        lookups: Prompts looked up so far.
        hits: Lookups so far whose prefix was reused.
        tokens_looked_up: Tokens so far of all prompts looked up.
        tokens_reused: Tokens so far whose KV was reused.
        prompt_tokens: Prompt tokens computed so far.
        generated_tokens: Tokens generated so far.
        in_flight: Requests that waited or ran.
        weights_bytes: Bytes of weights.
        trie_bytes: Bytes of the prefix cache.
        live_kv_bytes: Bytes of KV of running requests.
    """

    age: float | None
    lookups: int
    hits: int
    tokens_looked_up: int
    tokens_reused: int
    prompt_tokens: int
    generated_tokens: int
    in_flight: int
    weights_bytes: int
    trie_bytes: int
    live_kv_bytes: int


@dataclass(frozen=True, slots=True)
class Stats:
    """
    The state of the daemon, at most about a second old.

    Attributes:
        daemon: The daemon process.
        model_cache: The model cache as a whole.
        models: Each model in memory, most recently used first.
        prefix_cache: The prefix cache.
        engine: The engine process and its queue.
        memory: Memory.
        latency: How long completed requests took, since the daemon started.
        history: Figures of the last hour, oldest first; empty unless it was asked for.
    """

    daemon: DaemonStats
    model_cache: ModelCacheStats
    models: tuple[ModelStats, ...]
    prefix_cache: PrefixCacheStats
    engine: EngineStats
    memory: MemoryStats
    latency: LatencyStats = LatencyStats()
    history: tuple[HistorySample, ...] = ()
