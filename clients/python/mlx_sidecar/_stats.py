"""The result of `stats()`: a frozen copy of the daemon's state. Times are seconds or None, sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlx_sidecar._cache_stats import ModelCacheStats, ModelStats, PrefixCacheStats
from mlx_sidecar._group import GroupStats
from mlx_sidecar._latency import LatencyStats


@dataclass(frozen=True, slots=True)
class HttpStats:
    """
    The process that serves HTTP for the daemon.

    Attributes:
        state: "off", "starting", "serving" or "restarting"; "unspecified" from a daemon that has no HTTP.
        address: What clients connect to: a path, or "127.0.0.1:PORT"; empty while it does not listen.
        pid: Its process id; 0 while it is not running.
        restarts: Its restarts since the daemon started.
    """

    state: str = "unspecified"
    address: str = ""
    pid: int = 0
    restarts: int = 0


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
        device: Device of MLX, such as "gpu: Apple M4 Max" or "cpu".
        http: The process that serves HTTP.
    """

    version: str
    pid: int
    uptime: float | None
    draining: bool
    mlx_version: str
    mlx_lm_version: str
    device: str
    http: HttpStats = field(default_factory=HttpStats)


@dataclass(frozen=True, slots=True)
class StuckWork:
    """
    Background work for a model that hangs. Calls that need the same work are refused until it progresses.

    Attributes:
        work: "lookup", "list", "read", "fetch", "tokenizer", "template", "prompt" or "kv_disk".
        model: The model, under its requested name.
        silent: Seconds since its last progress.
    """

    work: str
    model: str
    silent: float | None


@dataclass(frozen=True, slots=True)
class CallerStats:
    """
    A process that calls.

    Attributes:
        pid: Its process id; 0 for all calls of unknown processes.
        program: Name of its program; empty for an unknown process.
        declared: Whether the latest call named this process itself, and the kernel confirms only that it is connected.
        waiting: Its calls that wait for their model or a slot.
        running: Its other open calls.
        calls: Its calls since the daemon started.
        last_call: Seconds since its latest call arrived.
    """

    pid: int
    program: str
    declared: bool
    waiting: int
    running: int
    calls: int
    last_call: float | None


@dataclass(frozen=True, slots=True)
class GuessStats:
    """
    What one source of guesses brought for one model in memory.

    Attributes:
        model: The model, under its first requested name.
        source: "ngram" or "draft".
        guessed: Tokens guessed since the engine started.
        accepted: Guessed tokens that the model accepted.
        gain: Tokens a second of passes with guesses, divided by those without; 0 if it was not measured.
        parked: Whether it lost, and is only tried now and then.
    """

    model: str
    source: str
    guessed: int
    accepted: int
    gain: float
    parked: bool


@dataclass(frozen=True, slots=True)
class EngineStats:
    """
    The engine process and its queue.

    Attributes:
        state: "starting", "ready", "stalled", "restarting" or "stopped".
        restarts: Its restarts since the daemon started.
        step_age: Seconds since the current step began; 0 when idle.
        queued: Requests that wait for their model or a slot.
        prefilling: Requests in prefill.
        decoding: Requests in decode.
        prompt_tokens: Prompt tokens computed since the engine started, without reused tokens.
        generated_tokens: Tokens generated since the engine started.
        rejected: Requests refused because the queue was full or the daemon was draining.
        cancelled: Requests that their client cancelled.
        pid: Its process id; 0 while it is not running.
        step_time_p50: Median duration of a turn with work in seconds; None before the first.
        step_time_p99: 99th percentile of the same.
        token_gap_p50: Median time between two tokens of one request in seconds.
        token_gap_p99: 99th percentile of the same.
        batch_size_p50: Median number of requests with a token in one turn.
        batch_size_p99: 99th percentile of the same.
        stuck: Background work that hangs, for example on a lost network disk; empty if none does.
        callers: Processes that call: those with open calls first, then by their latest call; at most 32.
        guesses: What guessing ahead brought, for each model in memory and source.
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
    stuck: tuple[StuckWork, ...] = ()
    callers: tuple[CallerStats, ...] = ()
    guesses: tuple[GuessStats, ...] = ()


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
        headroom_bytes: Free bytes below the limit.
        limit_bytes: Limit of the sum of weights, prefix cache and KV of running requests.
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
class HistorySample:
    """
    A sample of the history. Counters start at zero after a restart of the engine.

    Attributes:
        age: Seconds ago.
        lookups: Prompts looked up so far.
        hits: Lookups so far with a reused prefix.
        tokens_looked_up: Tokens so far of all prompts looked up.
        tokens_reused: Tokens so far with reused KV.
        prompt_tokens: Prompt tokens computed so far.
        generated_tokens: Tokens generated so far.
        in_flight: Requests that waited or ran.
        weights_bytes: Bytes of weights.
        trie_bytes: Bytes of the prefix cache.
        live_kv_bytes: Bytes of KV of running requests.
        disk_tokens_reused: Tokens so far that were reused from the disk; `tokens_reused` has them as well.
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
    disk_tokens_reused: int = 0


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
        latency: Durations of completed requests since the daemon started.
        history: Samples of the last hour, oldest first; empty unless requested.
        group: The machines that compute large models together, if there are any. All other parts are about the models
            that the daemon's machine runs alone.
    """

    daemon: DaemonStats
    model_cache: ModelCacheStats
    models: tuple[ModelStats, ...]
    prefix_cache: PrefixCacheStats
    engine: EngineStats
    memory: MemoryStats
    latency: LatencyStats = field(default_factory=LatencyStats)
    history: tuple[HistorySample, ...] = ()
    group: GroupStats = field(default_factory=GroupStats)
