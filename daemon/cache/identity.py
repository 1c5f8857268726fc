"""Identity of models: what a directory holds, checked, and named by its content alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

from daemon.cache.callbacks import Report, ignore
from daemon.cache.digests import Digests, Stamp, TakesLong
from daemon.cache.model_files import Roots, allowed, check, read
from daemon.cache.weight_files import estimate_size, read_header, refuse_other_formats, weight_files
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.machine_faults import machine_fault

_MODEL_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
_LAYER_KEYS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_QUANTIZATION = "hf_quant_config.json"
"""Tells mlx-lm how to read the weights, where config.json does not."""
_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapters.safetensors"
_COUNT = re.compile(r"(^|_)(layers?|loops|experts|heads?|blocks|depth|stages|mult)$")
"""Keys that say how often something is built or done."""
_MAX_COUNT = 10_000
_MAX_CONFIG_BYTES = 16_000_000
_MAX_NUMBER = 2**31 - 1
_MAX_BYTES = 2**63 - 1
_DIGESTS = Digests()
"""Those of callers that bring none."""


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Two models with equal keys are the same model. Digests, in hexadecimal."""

    weights: str
    adapter: str = ""

    def __str__(self) -> str:
        return self.weights[:16] + (f"+{self.adapter[:16]}" if self.adapter else "")


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A safetensors file that is loaded, and the SHA-256 that it is expected to have, in hexadecimal."""

    path: Path
    digest: str


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
        weights: The files of weights that are loaded.
        quantization: Its hf_quant_config.json; None if it has none.
        adapter_config: Its adapter's adapter_config.json.
        adapter_weights: Its adapter's weights.
        roots: Where its files may lie, links followed; see `model_files.allowed`.
        revision: The commit of the Hub that it is; empty if it does not come from there.
    """

    key: ModelKey
    name: str
    path: Path
    size_bytes: int
    config: dict[str, Any] = field(compare=False, repr=False)
    adapter_path: Path | None = None
    weights: tuple[WeightFile, ...] = field(default=(), compare=False, repr=False)
    quantization: Any = field(default=None, compare=False, repr=False)
    adapter_config: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    adapter_weights: WeightFile | None = field(default=None, compare=False, repr=False)
    roots: Roots = field(default=(), compare=False, repr=False)
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
    report: Report | None = ignore,
    roots: Roots = (),
    afford: Callable[[str, int], None] = ignore,
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
        roots: Directories that links may lead into; empty for any.
        afford: Raises if a model of this name and so many bytes can never be loaded; called before weights are read.
        estimate: Whether figures are enough: no weights are read that take long, and the key is empty instead.

    Raises:
        SidecarError: MODEL_CORRUPT if a file is missing, damaged or no regular file; MODEL_UNSUPPORTED if the model
            brings its own code or has no safetensors weights; MODEL_NOT_FOUND if the adapter is not there or a link
            leads elsewhere; MACHINE_EXHAUSTED or MACHINE_FAULT if the machine cannot read them.
        TakesLong: If weights have to be read and `report` is None.
    """
    try:
        source, documents, files = _described(name, path, adapter_path, hub, roots)
        afford(name, source.size_bytes)
        for file in files:
            _check_header(file, Stamp.of(file))
        try:
            return _with_key(source, documents, files, digests, hub, None if estimate else report)
        except TakesLong as takes:
            if not estimate:
                raise TakesLong(source.size_bytes) from takes
            return source
    except OSError as error:
        cannot = f"a file of {name} cannot be read"
        raise machine_fault(error, cannot) or SidecarError(
            Reason.MODEL_CORRUPT, f"{cannot}: {error.strerror}"
        ) from error


_Documents = dict[str, bytes]
"""Small files that are part of a key, by name; those of an adapter too, whose names differ."""


def _described(
    name: str, path: Path, adapter_path: Path | None, hub: bool, roots: Roots
) -> tuple[ModelSource, _Documents, list[Path]]:
    """Return a model without its key, its small files, and the files of its weights, an adapter's last."""
    folders = [path] if adapter_path is None else [path, adapter_path]
    roots = allowed(roots, *folders)
    documents = {"config.json": _config_bytes(name, path, roots)}
    config = _checked_config(name, documents["config.json"])
    quantization = None
    if (path / _QUANTIZATION).exists() or (path / _QUANTIZATION).is_symlink():
        documents[_QUANTIZATION] = read(path / _QUANTIZATION, roots, _MAX_CONFIG_BYTES)
        quantization = _json(name, _QUANTIZATION, documents[_QUANTIZATION])
    files = _regular(path, roots)
    refuse_other_formats(name, path, files)
    source = ModelSource(
        ModelKey(""), name, path, estimate_size(files), config, quantization=quantization, roots=roots,
        revision=path.name if hub else "",  # the Hub's own cache keeps each commit in a directory of its name
    )  # fmt: skip
    if adapter_path is not None:
        source, documents[_ADAPTER_CONFIG] = _with_adapter(source, adapter_path)
        files = [*files, adapter_path / _ADAPTER_WEIGHTS]
    return source, documents, files


def _with_key(
    source: ModelSource, documents: _Documents, files: list[Path], digests: Digests, hub: bool, report: Report | None
) -> ModelSource:
    """Return a model with the key of its content; reads weights that were not seen before."""
    adapter_file = None if source.adapter_path is None else files.pop()
    weights = [WeightFile(file, digests.digest(file, hub=hub, report=report)) for file in files]
    loaded = tuple(one for one in weights if one.path.parent == source.path and one.path.name.startswith("model"))
    own = {name: content for name, content in documents.items() if name != _ADAPTER_CONFIG}
    key = ModelKey(_digest(source.path, own, weights))
    if source.adapter_path is None or adapter_file is None:
        return replace(source, key=key, weights=loaded)
    adapter = WeightFile(adapter_file, digests.digest(adapter_file, hub=False, report=report))
    added = _digest(source.adapter_path, {_ADAPTER_CONFIG: documents[_ADAPTER_CONFIG]}, [adapter])
    return replace(source, key=replace(key, adapter=added), weights=loaded, adapter_weights=adapter)


def _with_adapter(source: ModelSource, path: Path) -> tuple[ModelSource, bytes]:
    """Return a model with an adapter that was measured, and the adapter's description."""
    files = [path / _ADAPTER_CONFIG, path / _ADAPTER_WEIGHTS]
    missing = [file.name for file in files if not (file.exists() or file.is_symlink())]
    if missing:
        raise SidecarError(Reason.MODEL_NOT_FOUND, f"adapter {path} has no {' and no '.join(missing)}", field="adapter")
    content = read(files[0], source.roots, _MAX_CONFIG_BYTES)
    config = _json(str(path), _ADAPTER_CONFIG, content)
    check(files[1], source.roots)
    size = source.size_bytes + estimate_size(files)
    return replace(source, adapter_path=path, adapter_config=config, size_bytes=size), content


def _regular(path: Path, roots: Roots) -> list[Path]:
    """Return the safetensors files below a directory; a FIFO of such a name would be waited for by mlx-lm."""
    for file in sorted(path.rglob("*.safetensors")):
        check(file, roots)
    return weight_files(path)


def _config_bytes(name: str, path: Path, roots: Roots) -> bytes:
    try:
        return read(path / "config.json", roots, _MAX_CONFIG_BYTES)
    except FileNotFoundError:
        raise SidecarError(Reason.MODEL_CORRUPT, f"{name} has no config.json; is it a model directory?") from None


def _json(name: str, file: str, content: bytes) -> dict[str, Any]:
    """
    Return a JSON object.

    Raises:
        SidecarError: MODEL_CORRUPT if it is none.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SidecarError(Reason.MODEL_CORRUPT, f"{file} of {name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise SidecarError(Reason.MODEL_CORRUPT, f"{file} of {name} is no JSON object")
    return value


def _checked_config(name: str, content: bytes) -> dict[str, Any]:
    """
    Return the content of config.json.

    Raises:
        SidecarError: MODEL_CORRUPT if it is no JSON object or absurd; MODEL_UNSUPPORTED if it asks mlx-lm to run code.
    """
    config = _json(name, "config.json", content)
    if not isinstance(config.get("model_type"), str):
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


def _digest(root: Path, documents: dict[str, bytes], weights: Iterable[WeightFile]) -> str:
    """Digest names and contents, whatever the directory, so that a copy of a model is the same model."""
    state = hashlib.sha256(b"mlx-sidecar/model/2")
    parts = [(os.fsencode(name), hashlib.sha256(content).digest()) for name, content in documents.items()]
    parts += [(os.fsencode(one.path.relative_to(root)), bytes.fromhex(one.digest)) for one in weights]
    for name, content in parts:
        state.update(len(name).to_bytes(8) + name + content)
    return state.hexdigest()


@lru_cache(maxsize=4096)
def _check_header(file: Path, _stamp: Stamp) -> None:
    """Check the header of a weight file, once for each state of it."""
    read_header(file)
