"""The configuration: a frozen dataclass, with the help and the reader of each key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from daemon.shared.config_file import ConfigError as ConfigError
from daemon.shared.config_values import (
    Reader,
    read_aliases,
    read_hosts,
    read_http_listen,
    read_level,
    read_optional_path,
    read_origins,
    read_path,
    read_paths,
    read_seconds,
    read_switch,
    whole,
    whole_or_auto,
)
from daemon.shared.group_values import DEVICES_TEXT, read_backend, read_group_listen, read_ranks, read_shardings

FILE_NAME = "config.toml"

ENV_PREFIX = "MLX_SIDECAR_"
TEST_PREFIX = "MLX_SIDECAR_TEST_"
"""Prefix of variables for tests, which are not settings."""


def _default_socket() -> Path:
    from mlx_sidecar._address import default_socket_path

    return Path(default_socket_path())


def default_state_dir() -> Path:
    """Return the directory that holds config.toml unless a variable or a flag names another."""
    return Path.home() / ".mlx-sidecar"


def _about(text: str, read: Reader, more: str = "", metavar: str = "") -> dict[str, Any]:
    """
    Return the metadata of a key.

    Args:
        text: A line for `--help`.
        read: Its reader.
        more: More text for docs/configuration.md.
        metavar: What `--help` calls its value; empty if its type says that.
    """
    return {"help": text, "read": read, "more": more, "metavar": metavar}


@dataclass(frozen=True, slots=True)
class Config:
    """
    All settings of the daemon. `metadata["help"]` of a field describes it in one line.

    `load_config` checks values; the constructor does not.
    """

    socket: Path = field(
        default_factory=_default_socket,
        metadata=_about(
            "Unix socket that clients connect to", read_path, "At most 103 bytes; its directory is private."
        ),
    )
    state_dir: Path = field(
        default_factory=default_state_dir,
        metadata=_about(
            "Directory that holds config.toml",
            read_path,
            "Also digests.json (which large weight files were read), measurements.json and verdicts.json (what loads "
            "found out), so that a restart need not, and run_history (what was typed in conversations); all may be "
            "deleted. Only a variable or a flag can set it.",
        ),
    )
    model_cache_mb: int = field(
        default=24_576,
        metadata=_about(
            "Most MiB of weights kept in memory; 0 keeps none",
            whole(0),
            "Or the memory ceiling, if that is less. With 0 each call loads, runs and frees.",
        ),
    )
    max_models: int = field(default=4, metadata=_about("Most models kept in memory at once", whole(1)))
    model_ttl: float = field(
        default=3_600.0,
        metadata=_about(
            "Time until an idle model is stale, in seconds or as 1h30m",
            read_seconds,
            "With 0 it is dropped as soon as it is idle.",
        ),
    )
    evict_on_memory_pressure: bool = field(
        default=True,
        metadata=_about(
            "Whether to free memory when the system runs short of it",
            read_switch,
            "Cached prefixes go first, half of them at a time, then idle models. Also: idle models make room for "
            "requests that need memory.",
        ),
    )
    kv_cache_mb: int | Literal["auto"] = field(
        default="auto",
        metadata=_about(
            "Most MiB of cached prefixes, or auto; 0 keeps none",
            whole_or_auto(0),
            "`auto` is a quarter of the machine's memory. It is never more than the ceiling leaves beside weights "
            "and running requests. Blocks that were not used for `model_ttl` go, but not within a minute.",
            "MiB|auto",
        ),
    )
    kv_disk_mb: int | Literal["auto"] = field(
        default="auto",
        metadata=_about(
            "Most MiB of cached prefixes on the disk, or auto; 0 keeps none",
            whole_or_auto(0),
            "`auto` is 8 GiB or a twentieth of what is free, whichever is less. The last tenth of a disk stays free, "
            "and at most twice this is written in a day. With 0 what is there is removed at the start. On the first "
            "machine of a group, its own models and the group's have half each. See [The disk tier](kv-tier.md).",
            "MiB|auto",
        ),
    )
    kv_disk_dir: Path | None = field(
        default=None,
        metadata=_about(
            "Directory for cached prefixes on the disk; empty is kv in state_dir",
            read_optional_path,
            "It must be this user's alone (mode 0700), and is created so. One daemon uses it at a time. Parts of "
            "models of a group lie in `group` below it.",
        ),
    )
    wire_weights: bool = field(
        default=False,
        metadata=_about(
            "Whether weights stay in physical memory",
            read_switch,
            "A Mac with macOS 15 or newer can then neither compress nor swap them out. They are wired when a model is "
            "loaded, and never for a request. See [Wired weights](operations.md#wired-weights) before you set it.",
        ),
    )
    max_cache_blocks: int = field(
        default=262_144,
        metadata=_about("Most blocks of 16 tokens in the prefix cache; 0 keeps none", whole(0)),
    )
    min_prefix_len: int = field(
        default=16, metadata=_about("Fewest tokens of a cached prefix that are worth reusing", whole(1))
    )
    warmup_tokens: int = field(
        default=32, metadata=_about("Most tokens to run through a model after its load; 0 runs none", whole(0))
    )
    max_queue: int = field(default=64, metadata=_about("Most requests that wait; more are refused", whole(1)))
    max_queue_share: int = field(
        default=100,
        metadata=_about(
            "Most percent of max_queue that waits for one program",
            whole(1, 100),
            "At least one request. Programs take turns in any case; a share keeps places free for the others. Calls of "
            "unknown programs count as those of one.",
        ),
    )
    max_batch: int = field(
        default=16,
        metadata=_about("Most requests, or samples of them, that a model answers at once", whole(1)),
    )
    drain_timeout: float = field(
        default=30.0,
        metadata=_about("Time that streams may go on after SIGTERM, in seconds or as 1m", read_seconds),
    )
    log_level: Literal["debug", "info", "warning", "error"] = field(
        default="info", metadata=_about("What to log at least: debug, info, warning or error", read_level)
    )
    log_file: Path | None = field(
        default=None,
        metadata=_about(
            "File to log to, rotated; empty logs to stderr",
            read_optional_path,
            "Rotated at 10 MiB, five old files are kept, mode 0600; SIGHUP opens it anew.",
        ),
    )
    model_roots: tuple[Path, ...] = field(
        default=(), metadata=_about("Directories that models may be loaded from; none allows all", read_paths)
    )
    http_listen: str = field(
        default="",
        metadata=_about(
            'Where to serve HTTP: "unix", "127.0.0.1:PORT", or empty for nowhere',
            read_http_listen,
            "See [HTTP](http.md). `unix` is http.sock beside the daemon's socket, for this user alone; a port needs "
            "the token that `mlx-sidecar http --print-token` prints. Other addresses are refused.",
            "ADDRESS",
        ),
    )
    http_origins: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "Origins of browser pages that may call over HTTP; none allows none",
            read_origins,
            "Such as `http://localhost:3000`. A page needs the token as well.",
            "ORIGIN",
        ),
    )
    aliases: Mapping[str, str] = field(
        default_factory=dict,
        metadata=_about(
            "Short names for models, valid wherever a model is named",
            read_aliases,
            'In the file a table, `[aliases]`, with one line for each: `fast = "mlx-community/Qwen3-8B-4bit"`. A short '
            "name has letters, digits and `.`, `_`, `-`, `+`, `:` (then it is quoted), and stands for a Hub id, a "
            "directory, `embedded` or another short name. The daemon that a client calls decides what it stands for.",
            "NAME=MODEL",
        ),
    )
    http_hosts: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "More host names for requests on the HTTP port; none allows loopback alone",
            read_hosts,
            "Such as `host.docker.internal`. Where the door listens stays the same.",
            "HOST",
        ),
    )
    http_hygiene: bool = field(
        default=True,
        metadata=_about(
            "Whether lines that clients change in system prompts are moved or dropped",
            read_switch,
            "They would keep prompts from being reused. [HTTP](http.md#prefix-hygiene) has each line, and why.",
        ),
    )
    tracing: bool = field(
        default=False,
        metadata=_about(
            "Whether to send a span of each call to an OpenTelemetry collector",
            read_switch,
            "Needs the extra `otel`. Where to and how is said by the standard variables, such as "
            "OTEL_EXPORTER_OTLP_ENDPOINT (default http://localhost:4317). Spans hold names, figures and times, never a "
            "prompt.",
        ),
    )
    group_ranks: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "Addresses of the machines that compute large models together; none is no group",
            read_ranks,
            "In the file `ranks` of a table `[group]`, and so are the other keys of a group. The first is the IPv4 "
            "address of this machine, each other one the `IP:PORT` where another machine runs `mlx-sidecar join`. See "
            "[Several machines](group.md).",
            "ADDRESS",
        ),
    )
    group_key_file: Path | None = field(
        default=None,
        metadata=_about(
            "File with the key that all machines of a group share",
            read_optional_path,
            "`mlx-sidecar group key` makes one. Only its owner may read it (mode 0600).",
        ),
    )
    group_listen: str = field(
        default="",
        metadata=_about(
            'Where this machine joins a group: "IP:PORT", or empty for nowhere',
            read_group_listen,
            "For `mlx-sidecar join` alone; `serve` never listens on a network. The address is one of this machine, and "
            "MLX's ring uses it too.",
            "IP:PORT",
        ),
    )
    group_backend: Literal["auto", "ring", "jaccl"] = field(
        default="auto",
        metadata=_about(
            "What moves tensors between the machines of a group: ring, jaccl, or auto",
            read_backend,
            "`ring` is TCP, `jaccl` RDMA over Thunderbolt. `auto` is `jaccl` if `group_devices` is set and MLX has it "
            "on each machine. The first machine's counts.",
            "auto|ring|jaccl",
        ),
    )
    group_devices: Path | None = field(
        default=None,
        metadata=_about("File with the RDMA devices between the machines, for jaccl", read_optional_path, DEVICES_TEXT),
    )
    group_memory_mb: int | Literal["auto"] = field(
        default="auto",
        metadata=_about(
            "Most MiB that the models of a group take on this machine, or auto",
            whole_or_auto(1),
            "`auto` is three quarters of the memory ceiling on the first machine, where other models get the rest, and "
            "all of it on the others. The smallest machine decides for all.",
            "MiB|auto",
        ),
    )
    group_models: Mapping[str, str] = field(
        default_factory=dict,
        metadata=_about(
            "Models that all machines of the group compute together",
            read_shardings,
            'In the file a table, `[group.models]`: `"mlx-community/Large-4bit" = "tensor"`. `tensor` gives each '
            "machine a part of each layer, `pipeline` some of the layers. `auto` is `tensor`, or else `pipeline`, if "
            "the model exceeds this machine's budget, and `none` otherwise. `none` is the same as no line: this "
            "machine runs the model alone.",
            "MODEL=SHARDING",
        ),
    )

    @property
    def model_cache_bytes(self) -> int:
        """Most bytes of weights kept in memory."""
        return self.model_cache_mb << 20

    @property
    def most_waiting_of_program(self) -> int:
        """Most requests of one program that wait."""
        return max(1, self.max_queue * self.max_queue_share // 100)

    @property
    def kv_cache_bytes(self) -> int | None:
        """Most bytes of cached prefixes; None for what suits the machine."""
        return None if self.kv_cache_mb == "auto" else self.kv_cache_mb << 20

    @property
    def kv_disk_bytes(self) -> int | None:
        """Most bytes of cached prefixes on the disk; None for what suits the disk."""
        return None if self.kv_disk_mb == "auto" else self.kv_disk_mb << 20

    @property
    def kv_disk_folder(self) -> Path:
        """The directory of cached prefixes on the disk."""
        return self.kv_disk_dir or self.state_dir / "kv"

    @property
    def kv_disk_group_folder(self) -> Path:
        """The directory of cached prefixes of models of a group: of this machine's parts of them."""
        return self.kv_disk_folder / "group"

    def to_json(self) -> str:
        """Return all values as one line of JSON, for `config_sources.from_json` in another process."""
        return json.dumps(asdict(self), default=str)


KEYS: Mapping[str, Field[Any]] = {one.name: one for one in fields(Config)}
"""Each key's field, in the order that documentation lists them."""
