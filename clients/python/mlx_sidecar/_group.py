"""The part of `stats()` about a group: machines that compute large models together."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_sidecar._cache_stats import ModelStats


@dataclass(frozen=True, slots=True)
class RankStats:
    """
    A machine of a group.

    Attributes:
        rank: Its number; the daemon's machine is 0.
        address: Its address in the configuration.
        problem: Why it was not reached when the group was last started; empty if it was.
        versions: Versions of its software, such as "mlx 0.32.4"; empty before it was reached.
    """

    rank: int
    address: str
    problem: str
    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupStats:
    """
    The group of a daemon.

    Attributes:
        state: "starting", "ready", "stalled", "restarting" or "stopped"; "unspecified" without a group.
        problem: Why it takes no calls; empty if it does, or if that is not known.
        ranks: Its machines.
        models: Its models in memory, most recently used first. Sizes are those of a rank's part.
        pid: Process id of the first rank's engine; 0 while it is not running.
        restarts: Times it was started again since the daemon started.
        limit_bytes: Most bytes that an engine of a rank may use: those of the smallest rank.
        used_bytes: Bytes of weights, prefixes and requests in the engine of each rank.
        decoding: Requests that generate, each of their samples counted.
        generated_tokens: Tokens generated since it was started.
        disk_bytes: Bytes of KV of its models on the disk of each rank.
        disk_budget_bytes: Most of them, by the smallest rank; 0 without a disk tier, or if a directory cannot be used.
        disk_tokens_reused: Tokens that were reused from the disks since it was started.
        disk_faults: Faults of the ranks' disks since then. Each cost time: what was there was computed.
    """

    state: str = "unspecified"
    problem: str = ""
    ranks: tuple[RankStats, ...] = ()
    models: tuple[ModelStats, ...] = ()
    pid: int = 0
    restarts: int = 0
    limit_bytes: int = 0
    used_bytes: int = 0
    decoding: int = 0
    generated_tokens: int = 0
    disk_bytes: int = 0
    disk_budget_bytes: int = 0
    disk_tokens_reused: int = 0
    disk_faults: int = 0
