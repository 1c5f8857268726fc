"""Identity of models: what a directory holds, checked, and named by its content alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

from daemon.cache.digests import Digests, Report, Stamp, TakesLong
from daemon.cache.formats import refuse_other_formats
from daemon.cache.sizes import estimate_size, read_header, weight_files
from daemon.errors import Reason, SidecarError
from daemon.machine import machine_fault

_MODEL_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
_LAYER_KEYS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_COUNT = re.compile(r"(^|_)(layers?|loops|experts|heads?|blocks|depth|stages|mult)$")
"""Keys that say how often something is built or done."""
_MAX_COUNT = 10_000
_MAX_CONFIG_BYTES = 16_000_000
_MAX_NUMBER = 2**31 - 1
_MAX_BYTES = 2**63 - 1
_DIGESTS = Digests()
"""Those of callers that bring none."""


def _ignore(_done: int, _total: int) -> None:
    """Nobody watches."""


def _afford_all(_name: str, _nbytes: int) -> None:
    """There is room for everything."""


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Two models with equal keys are the same model. Digests, in hexadecimal."""

    weights: str
    adapter: str = ""

    def __str__(self) -> str:
        return self.weights[:16] + (f"+{self.adapter[:16]}" if self.adapter else "")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """
    A model on disk, ready to be loaded.

    Attributes:
        key: Identity of its content.
        name: The name it was asked for by.
        path: Its directory.
        size_bytes: Bytes of its weights and its adapter's on disk.
        config: Its config.json.
        adapter_path: Directory of its adapter, if any.
        stamps: The state of each file that the key was made of; see `changed`.
        revision: The commit of the Hub that it is; empty if it does not come from there.
    """

    key: ModelKey
    name: str
    path: Path
    size_bytes: int
    config: dict[str, Any] = field(compare=False, repr=False)
    adapter_path: Path | None = None
    stamps: tuple[tuple[str, Stamp], ...] = field(default=(), compare=False, repr=False)
    revision: str = field(default="", compare=False)

    @property
    def architecture(self) -> str:
        """Its mlx-lm architecture."""
        return str(self.config["model_type"])

    @property
    def num_layers(self) -> int:
        """Number of layers; 0 if the configuration does not say."""
        return self._number(*_LAYER_KEYS)

    @property
    def context_length(self) -> int:
        """Longest prompt plus completion in tokens; 0 if the configuration does not say."""
        return self._number(*_CONTEXT_KEYS)

    @property
    def vocab_size(self) -> int:
        """Number of token ids; 0 if the configuration does not say."""
        return self._number("vocab_size")

    @property
    def estimated_kv_bytes_per_token(self) -> int:
        """Bytes of KV of one token if every layer is plain attention with 16-bit values; 0 if unknown."""
        heads = self._number("num_attention_heads", "n_head")
        kv_heads = self._number("num_key_value_heads") or heads
        hidden = self._number("hidden_size", "n_embd")
        head_dim = self._number("head_dim") or (hidden // heads if heads else 0)
        return min(2 * 2 * self.num_layers * kv_heads * head_dim, _MAX_BYTES)

    def _number(self, *names: str) -> int:
        nested = self.config.get("text_config")
        for scope in (self.config, nested if isinstance(nested, dict) else {}):
            for name in names:
                value = scope.get(name)
                if type(value) is int and 0 < value <= _MAX_NUMBER:
                    return value
        return 0


def identify(
    name: str,
    path: Path,
    adapter_path: Path | None = None,
    *,
    digests: Digests = _DIGESTS,
    hub: bool = False,
    report: Report | None = _ignore,
    afford: Callable[[str, int], None] = _afford_all,
    estimate: bool = False,
) -> ModelSource:
    """
    Check a model directory and return what it holds. Sizes and headers come first, so that weights which can never be
    loaded are not read.

    Args:
        name: The name it was asked for by.
        path: Its directory.
        adapter_path: Directory of an adapter, if any.
        digests: Knows the content of weight files, or reads them.
        hub: Whether the directory is a snapshot in the Hub's own cache.
        report: Gets the progress of reading weights that were not seen before; None reads none that take long.
        afford: Raises if a model of this name and so many bytes can never be loaded; called before weights are read.
        estimate: Whether figures are enough: no weights are read that take long, and the key is empty instead.

    Raises:
        SidecarError: MODEL_CORRUPT if a file is missing or damaged; MODEL_UNSUPPORTED if the model brings its own code
            or has no safetensors weights; MODEL_NOT_FOUND if the adapter is not there; MACHINE_EXHAUSTED or
            MACHINE_FAULT if the machine cannot read them.
        TakesLong: If weights have to be read and `report` is None.
    """
    try:
        return _identify(name, path, adapter_path, digests, hub, report, afford, estimate)
    except OSError as error:
        cannot = f"a file of {name} cannot be read"
        raise machine_fault(error, cannot) or SidecarError(
            Reason.MODEL_CORRUPT, f"{cannot}: {error.strerror}"
        ) from error


def _identify(
    name: str,
    path: Path,
    adapter_path: Path | None,
    digests: Digests,
    hub: bool,
    report: Report | None,
    afford: Callable[[str, int], None],
    estimate: bool,
) -> ModelSource:
    config = read_config(name, path)
    files = weight_files(path)
    refuse_other_formats(name, path, files)
    adapter_files = [] if adapter_path is None else _adapter_files(adapter_path)
    named = [path / "config.json", *files]
    stamps = _stamps([*named, *adapter_files])
    size = estimate_size([*files, *adapter_files])
    afford(name, size)
    _check_headers([*named, *adapter_files])
    try:
        weights = _digest(path, named, digests, hub, None if estimate else report)
        adapter = _digest(adapter_path, adapter_files, digests, False, None if estimate else report)
        key = ModelKey(weights, adapter)
    except TakesLong as takes:
        if not estimate:
            raise TakesLong(size) from takes
        key = ModelKey("")
    # The Hub's own cache keeps each commit in a directory of its name.
    return ModelSource(key, name, path, size, config, adapter_path, stamps, path.name if hub else "")


def changed(source: ModelSource) -> bool:
    """
    Whether a file that the key was made of is not as it was, or another came. Reads none of them.

    Raises:
        OSError: If the machine does not tell.
    """
    adapter_files = [] if source.adapter_path is None else _adapter_files(source.adapter_path)
    try:
        return _stamps([source.path / "config.json", *weight_files(source.path), *adapter_files]) != source.stamps
    except (FileNotFoundError, NotADirectoryError):
        return True


def read_config(name: str, path: Path) -> dict[str, Any]:
    """
    Read and check config.json.

    Raises:
        SidecarError: MODEL_CORRUPT if it is missing, no JSON object or absurd; MODEL_UNSUPPORTED if it asks mlx-lm to
            run code.
    """
    file = path / "config.json"
    if not file.is_file():
        raise SidecarError(Reason.MODEL_CORRUPT, f"{name} has no config.json; is it a model directory?")
    if file.stat().st_size > _MAX_CONFIG_BYTES:
        raise SidecarError(Reason.MODEL_CORRUPT, f"config.json of {name} is larger than 16 MB")
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SidecarError(Reason.MODEL_CORRUPT, f"config.json of {name} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise SidecarError(Reason.MODEL_CORRUPT, f"config.json of {name} has no model_type")
    if not _MODEL_TYPE.fullmatch(config["model_type"]):
        raise SidecarError(Reason.MODEL_UNSUPPORTED, f"config.json of {name} has a model_type that is no name")
    if absurd := _absurd_counts(config):
        raise SidecarError(Reason.MODEL_CORRUPT, f"config.json of {name} has an absurd {', '.join(absurd)}")
    if code := _code_keys(config):
        raise SidecarError(
            Reason.MODEL_UNSUPPORTED,
            f"{name} wants to run its own code ({', '.join(code)}); mlx-sidecar never does that",
        )
    return config


def _code_keys(config: object) -> list[str]:
    """Return the keys, however deep, that make a loader run files of the model."""
    return sorted({key for key, value in _pairs(config) if key in ("model_file", "trust_remote_code") and value})


def _absurd_counts(config: object) -> list[str]:
    """Return the keys, however deep, that would have things built until memory is full: before any weight is read."""
    return sorted(
        {key for key, value in _pairs(config) if _is_number(value) and value > _MAX_COUNT and _COUNT.search(key)}
    )


def _is_number(value: object) -> TypeGuard[int | float]:
    return type(value) in (int, float)


def _pairs(config: object) -> Iterator[tuple[str, object]]:
    """Walk through all keys and values of a JSON document."""
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from value.items()
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _adapter_files(path: Path) -> list[Path]:
    files = [path / "adapter_config.json", path / "adapters.safetensors"]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise SidecarError(Reason.MODEL_NOT_FOUND, f"adapter {path} has no {' and no '.join(missing)}", field="adapter")
    return files


def _stamps(files: list[Path]) -> tuple[tuple[str, Stamp], ...]:
    return tuple((str(file), Stamp.of(file)) for file in files)


def _check_headers(files: list[Path]) -> None:
    for file in files:
        if file.suffix == ".safetensors":
            _check_header(file, Stamp.of(file))


def _digest(root: Path | None, files: list[Path], digests: Digests, hub: bool, report: Report | None) -> str:
    """Digest names and contents, whatever the directory, so that a copy of a model is the same model."""
    if root is None:
        return ""
    state = hashlib.sha256(b"mlx-sidecar/model/2")
    for file in files:
        if file.suffix == ".safetensors":
            content = bytes.fromhex(digests.digest(file, hub=hub, report=report))
        else:
            content = hashlib.sha256(file.read_bytes()).digest()
        name = os.fsencode(file.relative_to(root))
        state.update(len(name).to_bytes(8) + name + content)
    return state.hexdigest()


@lru_cache(maxsize=4096)
def _check_header(file: Path, _stamp: Stamp) -> None:
    """Check the header of a weight file, once for each state of it."""
    read_header(file)
