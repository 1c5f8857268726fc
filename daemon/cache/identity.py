"""Identity of models: what a directory holds, checked and fingerprinted without reading its weights."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from daemon.cache.sizes import read_header, weight_files
from daemon.errors import Reason, SidecarError

_MODEL_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
_MAX_CONFIG_BYTES = 16_000_000
_MAX_NUMBER = 2**31 - 1
_MAX_BYTES = 2**63 - 1


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
    """

    key: ModelKey
    name: str
    path: Path
    size_bytes: int
    config: dict[str, Any] = field(compare=False, repr=False)
    adapter_path: Path | None = None

    @property
    def architecture(self) -> str:
        """Its mlx-lm architecture."""
        return str(self.config["model_type"])

    @property
    def num_layers(self) -> int:
        """Number of layers; 0 if the configuration does not say."""
        return self._number("num_hidden_layers", "n_layers", "n_layer", "num_layers")

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


def identify(name: str, path: Path, adapter_path: Path | None = None) -> ModelSource:
    """
    Check a model directory and return what it holds.

    Raises:
        SidecarError: MODEL_CORRUPT if a file is missing, damaged or unreadable; MODEL_UNSUPPORTED if the model brings
            its own code or has no safetensors weights; MODEL_NOT_FOUND if the adapter is not there.
    """
    try:
        return _identify(name, path, adapter_path)
    except OSError as error:
        raise SidecarError(Reason.MODEL_CORRUPT, f"a file of {name} cannot be read: {error.strerror}") from error


def _identify(name: str, path: Path, adapter_path: Path | None) -> ModelSource:
    config = read_config(name, path)
    files = weight_files(path)
    if not any(file.parent == path and file.name.startswith("model") for file in files):
        raise SidecarError(
            Reason.MODEL_UNSUPPORTED, f"{name} has no model*.safetensors weights; convert it with mlx_lm.convert"
        )
    adapter_files: list[Path] = []
    if adapter_path is not None:
        adapter_files = _adapter_files(adapter_path)
    weights = _digest(path, [path / "config.json", *files])
    adapter = _digest(adapter_path, adapter_files) if adapter_path else ""
    size = sum(file.stat().st_size for file in (*files, *adapter_files) if file.suffix == ".safetensors")
    return ModelSource(ModelKey(weights, adapter), name, path, size, config, adapter_path)


def read_config(name: str, path: Path) -> dict[str, Any]:
    """
    Read and check config.json.

    Raises:
        SidecarError: MODEL_CORRUPT if it is missing or no JSON object; MODEL_UNSUPPORTED if it asks to run code.
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
    if code := _code_keys(config):
        raise SidecarError(
            Reason.MODEL_UNSUPPORTED,
            f"{name} wants to run its own code ({', '.join(code)}); mlx-sidecar never does that",
        )
    return config


def _code_keys(config: object) -> list[str]:
    """Return the keys, however deep, that make a loader run files of the model."""
    found: set[str] = set()
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            found.update(key for key in ("model_file", "trust_remote_code") if value.get(key))
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
    return sorted(found)


def _adapter_files(path: Path) -> list[Path]:
    files = [path / "adapter_config.json", path / "adapters.safetensors"]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise SidecarError(Reason.MODEL_NOT_FOUND, f"adapter {path} has no {' and no '.join(missing)}", field="adapter")
    return files


def _digest(root: Path, files: list[Path]) -> str:
    """Digest names, headers and stamps; a file that was replaced or written to has another stamp."""
    state = hashlib.sha256(b"mlx-sidecar/model/1")
    for file in files:
        stat = file.stat()
        stamp = f"{file.relative_to(root)}\0{stat.st_ino}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0"
        state.update(os.fsencode(stamp))
        state.update(_content(file, stat.st_ino, stat.st_size, stat.st_ctime_ns))
    return state.hexdigest()


@lru_cache(maxsize=4096)
def _content(file: Path, inode: int, size: int, ctime_ns: int) -> bytes:
    """Return the digest of a small file, or of the checked header of a weight file; memoised by its stamp."""
    data = read_header(file) if file.suffix == ".safetensors" else file.read_bytes()
    return hashlib.sha256(data).digest()
