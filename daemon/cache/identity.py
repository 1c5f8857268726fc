"""
The identity of a model: a key made of its content, so that a copy of a model is the same model.

From a directory to a key, cheapest step first, so that a model which can never be loaded costs little:

1. the small files are read and judged (`model_config.py`);
2. the sizes of the weight files are added, and a model that can never fit is refused;
3. the headers of the weight files are checked (`weight_files.py`);
4. the digests of the weight files are looked up, or computed (`digests.py`);
5. the key is the digest of the names and digests of all these files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from daemon.cache import model_config
from daemon.cache.callbacks import Report, ignore
from daemon.cache.context_length import context_length, most_positions
from daemon.cache.digests import Digests, Stamp, TakesLong
from daemon.cache.generation_config import default_sampling
from daemon.cache.model_config import MAX_CONFIG_BYTES, checked_config, json_object
from daemon.cache.model_files import Roots, allowed, check, read
from daemon.cache.weight_files import estimate_size, read_header, refuse_other_formats, weight_files
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.machine_faults import machine_fault

_QUANTIZATION = "hf_quant_config.json"
"""Tells mlx-lm how to read the weights, where config.json does not."""
_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapters.safetensors"
_DIGESTS = Digests()
"""Those of callers that bring none."""

_Documents = dict[str, bytes]
"""By name, the small files that are part of a key. An adapter's are among them; their names differ."""


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
        branch: The revision that stood for that commit, as it was asked for; empty for the default branch.
        context_override: The context length that a caller chose; None for that of the configuration.
        default_sampling: The sampling options that it recommends, by name. No part of its identity.
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
    branch: str = field(default="", compare=False)
    context_override: int | None = field(default=None, compare=False)
    default_sampling: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def architecture(self) -> str:
        """Its mlx-lm architecture."""
        return str(self.config["model_type"])

    @property
    def num_layers(self) -> int:
        """Number of layers; 0 if the configuration does not say."""
        return model_config.num_layers(self.config)

    @property
    def context_length(self) -> int:
        """Longest prompt plus completion in tokens, within learned positions; 0 if the configuration does not say."""
        wanted, most = self.context_override or context_length(self.config), most_positions(self.config)
        return min(wanted, most) if wanted and most else wanted

    @property
    def vocab_size(self) -> int:
        """Number of token ids; 0 if the configuration does not say."""
        return model_config.vocab_size(self.config)

    @property
    def estimated_kv_bytes_per_token(self) -> int:
        """Bytes of KV of a token if every layer is plain attention with 16-bit values; 0 if unknown."""
        return model_config.estimated_kv_bytes_per_token(self.config)


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
    Check a model directory and return the model with its key.

    Args:
        name: The name it was asked for by.
        path: Its directory.
        adapter_path: Directory of an adapter, if any.
        digests: Looks digests of weight files up, or computes them.
        hub: Whether the directory is a snapshot in the Hub's own cache.
        report: Gets the progress of reading weights that were not seen before; None reads no large file.
        roots: Directories that links may lead into; empty for any.
        afford: Raises if a model of this name and so many bytes can never be loaded; called before weights are read.
        estimate: Whether figures are enough: no large weights are read, and the key is empty instead.

    Raises:
        SidecarError: MODEL_CORRUPT if a file is missing, damaged or no regular file; MODEL_UNSUPPORTED if the model
            brings its own code or has no safetensors weights; MODEL_NOT_FOUND if the adapter is not there or a link
            leads elsewhere; MACHINE_EXHAUSTED or MACHINE_FAULT if the machine cannot read them.
        TakesLong: If large weights have to be read and `report` is None.
    """
    try:
        source, documents, files = _described(name, path, adapter_path, hub, roots)
        afford(name, source.size_bytes)
        adapter_files = [] if source.adapter_path is None else [source.adapter_path / _ADAPTER_WEIGHTS]
        for file in [*files, *adapter_files]:
            _check_header(file, Stamp.of(file))
        report = None if estimate else report
        try:
            weights = [WeightFile(file, digests.digest(file, hub=hub, report=report)) for file in files]
            adapter_weights = [WeightFile(file, digests.digest(file, report=report)) for file in adapter_files]
        except TakesLong as takes_long:
            if not estimate:
                raise TakesLong(source.size_bytes) from takes_long
            return source
        return _with_key(source, documents, weights, adapter_weights)
    except OSError as error:
        cannot = f"a file of {name} cannot be read"
        raise machine_fault(error, cannot) or SidecarError(
            Reason.MODEL_CORRUPT, f"{cannot}: {error.strerror}"
        ) from error


def _described(
    name: str, path: Path, adapter_path: Path | None, hub: bool, roots: Roots
) -> tuple[ModelSource, _Documents, list[Path]]:
    """Return a model without its key, its small files, and its weight files without its adapter's."""
    folders = [path] if adapter_path is None else [path, adapter_path]
    roots = allowed(roots, *folders)
    documents = {"config.json": _config_bytes(name, path, roots)}
    config = checked_config(name, documents["config.json"])
    quantization = None
    if _is_present(path / _QUANTIZATION):
        documents[_QUANTIZATION] = read(path / _QUANTIZATION, roots, MAX_CONFIG_BYTES)
        quantization = json_object(name, _QUANTIZATION, documents[_QUANTIZATION])
    files = _regular_weight_files(path, roots)
    refuse_other_formats(name, path, files)
    source = ModelSource(
        ModelKey(""), name, path, estimate_size(files), config, quantization=quantization, roots=roots,
        revision=path.name if hub else "",  # the Hub's own cache keeps each commit in a directory of its name
        default_sampling=default_sampling(name, path, roots),
    )  # fmt: skip
    if adapter_path is not None:
        source, documents[_ADAPTER_CONFIG] = _with_adapter(source, adapter_path)
    return source, documents, files


def _config_bytes(name: str, path: Path, roots: Roots) -> bytes:
    try:
        return read(path / "config.json", roots, MAX_CONFIG_BYTES)
    except FileNotFoundError:
        raise SidecarError(Reason.MODEL_CORRUPT, f"{name} has no config.json; is it a model directory?") from None


def _regular_weight_files(path: Path, roots: Roots) -> list[Path]:
    """Return the weight files of a directory. A FIFO of such a name is refused: mlx-lm would wait for it."""
    files = weight_files(path)
    for file in files:
        check(file, roots)
    return files


def _with_adapter(source: ModelSource, path: Path) -> tuple[ModelSource, bytes]:
    """Return a model with an adapter and its size, and the adapter's adapter_config.json."""
    files = [path / _ADAPTER_CONFIG, path / _ADAPTER_WEIGHTS]
    missing = [file.name for file in files if not _is_present(file)]
    if missing:
        raise SidecarError(Reason.MODEL_NOT_FOUND, f"adapter {path} has no {' and no '.join(missing)}", field="adapter")
    content = read(files[0], source.roots, MAX_CONFIG_BYTES)
    config = json_object(str(path), _ADAPTER_CONFIG, content)
    check(files[1], source.roots)
    size = source.size_bytes + estimate_size(files)
    return replace(source, adapter_path=path, adapter_config=config, size_bytes=size), content


def _is_present(file: Path) -> bool:
    """Return whether there is a file, or a link to nothing, which is refused when it is opened."""
    return file.exists() or file.is_symlink()


@lru_cache(maxsize=4096)
def _check_header(file: Path, _stamp: Stamp) -> None:
    """Check the header of a weight file, once for each state of the file."""
    read_header(file)


def _with_key(
    source: ModelSource, documents: _Documents, weights: list[WeightFile], adapter_weights: list[WeightFile]
) -> ModelSource:
    """Return a model with its files of weights and the key of its content; an adapter has a single such file."""
    own_documents = {name: content for name, content in documents.items() if name != _ADAPTER_CONFIG}
    source = replace(source, key=ModelKey(_digest(source.path, own_documents, weights)), weights=tuple(weights))
    if source.adapter_path is None:
        return source
    adapter_key = _digest(source.adapter_path, {_ADAPTER_CONFIG: documents[_ADAPTER_CONFIG]}, adapter_weights)
    return replace(source, key=replace(source.key, adapter=adapter_key), adapter_weights=adapter_weights[0])


def _digest(root: Path, documents: dict[str, bytes], weights: Iterable[WeightFile]) -> str:
    """Digest names and contents. Names are relative to the directory, so that a copy of a model has the same digest."""
    state = hashlib.sha256(b"mlx-sidecar/model/2")
    parts = [(os.fsencode(name), hashlib.sha256(content).digest()) for name, content in documents.items()]
    parts += [(os.fsencode(file.path.relative_to(root)), bytes.fromhex(file.digest)) for file in weights]
    for name, content in parts:
        # The length before each name keeps two lists of files from having the same bytes.
        state.update(len(name).to_bytes(8) + name + content)
    return state.hexdigest()
