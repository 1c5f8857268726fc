"""
Lists the models of this machine from their files: those in the Hub's local cache, below directories, and the embedded.

Everything is bounded, and no weights are read: a directory may hold anything, and so may a configuration. Each function
blocks on its disk; what takes long gives signs of life. A model that cannot be described is listed with its problem.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from daemon.cache.context_length import context_length
from daemon.cache.digests import Stamp
from daemon.cache.embedding_config import MODULES, embedding_config
from daemon.cache.hub import is_complete, list_state
from daemon.cache.hub_folders import HubFolder, hub_folders, hub_ids
from daemon.cache.model_config import MAX_CONFIG_BYTES, Config, checked_config
from daemon.cache.model_files import Roots, read
from daemon.cache.resolver import EMBEDDED, EMBEDDED_PATH
from daemon.cache.unchanged import Findings, State
from daemon.cache.weight_files import is_weight_file
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.liveness import moved
from daemon.shared.machine_faults import machine_fault

HUB_CACHE, ROOT, IS_EMBEDDED, ELSEWHERE = "hub_cache", "root", "embedded", ""
"""Places where a model is found; the last one is for models that are in memory alone."""

MOST_MODELS = 4096
"""Most models of one place."""
MOST_FOLDERS = 20_000
"""Most directories below a root that are looked at."""
DEPTH = 3
"""Most directories between a root and a model below it."""

_NAMELESS = "it has a name of the Hub from before organisations, which cannot be asked for; fetch it as org/name"
_MOST_NEAR = 3
"""Names that are suggested for a mistyped one."""
_READ = (".json", ".jinja", ".safetensors")
"""How names of files end that tell what a model can do, or that its weights are there."""
_TOLD = Findings[tuple[Path, Roots, State], dict[str, Any]](most=2 * MOST_MODELS)
"""What files of models told, see `_told`: programs list models every few seconds, and few of them change."""
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
_TOOLS = re.compile(r"\btools\b")
_REASONING = re.compile(r"\b(enable_thinking|thinking|reasoning_content|reasoning_effort)\b|<think>")


@dataclass(frozen=True, slots=True)
class DiskModel:
    """
    A model on the disk. Figures that its files do not tell are 0.

    Attributes:
        model: The name to ask for it by.
        path: Its directory.
        place: HUB_CACHE, ROOT, IS_EMBEDDED or ELSEWHERE.
        size_bytes: Bytes of its weights, `model*.safetensors`.
        disk_bytes: Bytes of all its files; in the Hub's cache those of all its revisions.
        complete: Whether all its weights are on the disk.
        last_used: Seconds since 1970 of the last access, as the file system records it.
        revision: In the Hub's cache: commit of the default branch, or without that the commit fetched last.
        architecture: Its mlx-lm architecture; empty if there is no good config.json.
        context_length: Most tokens of prompt and completion.
        quantization_bits: Bits of a quantised weight.
        chat: Whether it has a chat template.
        tools: Whether its template reads tools.
        reasoning: Whether its template knows of reasoning.
        embeddings: Whether it says how its hidden states are pooled.
        problem: Why it cannot be loaded; empty if nothing is known against it.
    """

    model: str
    path: Path
    place: str
    size_bytes: int = 0
    disk_bytes: int = 0
    complete: bool = False
    last_used: float = 0.0
    revision: str = ""
    architecture: str = ""
    context_length: int = 0
    quantization_bits: int = 0
    chat: bool = False
    tools: bool = False
    reasoning: bool = False
    embeddings: bool = False
    problem: str = ""


def hub_models(folder: Path) -> list[DiskModel]:
    """Return the models of a Hub cache, sorted by name; none if there is no such directory."""
    return [described(_hub_model(found)) for found in hub_folders(folder, MOST_MODELS)]


def hub_names(folder: Path) -> list[str]:
    """Return the names of a Hub cache that can be asked for, from those of its directories alone."""
    return [name for name in hub_ids(folder) if "/" in name][:MOST_MODELS]


def root_models(root: Path) -> list[DiskModel]:
    """
    Return the models below a directory of `model_roots`, or the one in it, sorted by name.

    Raises:
        SidecarError: MODEL_NOT_FOUND if there is no such directory: its disk is away, or its name is misspelled.
            MACHINE_FAULT if it cannot be entered.
    """
    try:
        if not root.is_dir():
            raise SidecarError(Reason.MODEL_NOT_FOUND, "model_roots names it, and there is no such directory")
        folders = root_folders(root)
    except PermissionError as error:
        raise machine_fault(error, "model_roots names it") or error from error
    return [described(DiskModel(str(path), path, ROOT), (root.resolve(),)) for path in folders]


def root_folders(root: Path) -> list[Path]:
    """
    Return the directories below a directory, itself included, that have a config.json; at most MOST_MODELS.

    Raises:
        PermissionError: If it cannot be entered. Such a directory below it is passed over.
    """
    found: list[Path] = []
    pending = [(root, 0)]
    for _ in range(MOST_FOLDERS):
        if not pending or len(found) == MOST_MODELS:
            break
        folder, depth = pending.pop()
        moved()
        if _has_config(folder, root):
            found.append(folder)
        elif depth < DEPTH:
            pending += [(path, depth + 1) for path in _folders(folder)]
    return sorted(found)


def _has_config(folder: Path, root: Path) -> bool:
    """Return whether a directory has a config.json; not if it cannot be entered, like a disk's `lost+found`."""
    try:
        return (folder / "config.json").is_file()
    except PermissionError:
        if folder == root:
            raise
        return False


def embedded_model() -> list[DiskModel]:
    """Return the model that ships with the daemon."""
    return [described(DiskModel(EMBEDDED, EMBEDDED_PATH, IS_EMBEDDED))]


def described(model: DiskModel, roots: Roots = ()) -> DiskModel:
    """
    Return a model with everything that its files tell beside its name and place.

    Args:
        model: The model.
        roots: Where its files may lie; see `model_files.allowed`.
    """
    moved()
    try:
        stats = {entry.name: entry.stat() for entry in os.scandir(model.path) if entry.is_file()}
    except OSError as error:
        return replace(model, problem=f"its directory cannot be read: {error.strerror}")
    model = replace(
        model,
        size_bytes=sum(stats[name].st_size for name in stats if is_weight_file(name)),
        disk_bytes=model.disk_bytes or sum(stat.st_size for stat in stats.values()),
        last_used=model.last_used or max((stat.st_atime for stat in stats.values()), default=0.0),
    )
    try:
        states = (_state(stats), _pooling_state(model.path) if MODULES in stats else ())
        told = _TOLD.of((model.path, roots, list_state(model.path)), states, lambda: _told(model, roots))
        return replace(model, **told)
    except SidecarError as error:
        problem = error.message
    except OSError as error:
        problem = f"{Path(error.filename or model.path).name} cannot be read: {error.strerror}"
    with suppress(OSError, SidecarError):
        model = replace(model, complete=is_complete(model.path))
    return replace(model, problem=problem)


def _state(stats: Mapping[str, os.stat_result]) -> State:
    """Return the state of the files that `_told` reads."""
    return tuple((name, Stamp.from_status(stats[name])) for name in sorted(stats) if name.endswith(_READ))


def _pooling_state(path: Path) -> State:
    """Return the state of the configurations below a model's directory: one of them may be that of its pooling."""
    return _state({str(file): file.stat() for file in path.glob("*/config.json") if file.is_file()})


def _told(model: DiskModel, roots: Roots) -> dict[str, Any]:
    """
    Read what the files of a model tell beside their sizes and times, and return it as fields of a DiskModel.

    Raises:
        SidecarError: If the model cannot be loaded.
        OSError: If a file cannot be read.
    """
    config = checked_config(model.model, read(model.path / "config.json", roots, MAX_CONFIG_BYTES))
    template = _template(model.path, roots)
    try:
        embeddings = bool(embedding_config(model.model, model.path, config, roots).pooling)
    except SidecarError:
        embeddings = False
    return {
        "complete": is_complete(model.path),
        "architecture": str(config["model_type"]),
        "context_length": context_length(config),
        "quantization_bits": _bits(config),
        "chat": bool(template),
        "tools": bool(_TOOLS.search(template)),
        "reasoning": bool(_REASONING.search(template)),
        "embeddings": embeddings,
    }


def close_names(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that a mistyped name may stand for, the likeliest first."""
    by_key: dict[str, str] = {}
    for other in known:
        for key in _comparable(other):
            by_key.setdefault(key, other)
    keys = _comparable(name)
    near = [by_key[match] for key in keys for match in difflib.get_close_matches(key, by_key, n=_MOST_NEAR, cutoff=0.7)]
    return [other for other in dict.fromkeys(near) if other != name][:_MOST_NEAR]


def _comparable(name: str) -> list[str]:
    """Return what of a name is compared: of a path its end alone, because all models of a directory begin alike."""
    whole = name.lower()
    end = whole.rpartition("/")[2]
    return [end] if whole.startswith("/") else [whole, end]


def _hub_model(found: HubFolder) -> DiskModel:
    return DiskModel(
        found.model,
        found.snapshot,
        HUB_CACHE,
        disk_bytes=found.disk_bytes,
        last_used=found.last_used,
        revision=found.snapshot.name,
        problem="" if "/" in found.model else _NAMELESS,
    )


def _folders(folder: Path) -> Iterator[Path]:
    """Yield the directories in a directory that a model may be in; none if it cannot be read."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
    except OSError:
        return
    for entry in entries:
        if not entry.name.startswith(".") and _is_folder(entry):
            yield Path(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _template(path: Path, roots: Roots) -> str:
    """Return the text of a chat template; empty if there is none that can be read."""
    for name in _TEMPLATES:
        text: str = _attempt(lambda name=name: read(path / name, roots, MAX_CONFIG_BYTES).decode())  # type: ignore[misc]
        if text and not name.endswith(".json"):
            return text
        settings = _attempt(lambda text=text: json.loads(text)) if text else None  # type: ignore[misc]
        template = settings.get("chat_template") if isinstance(settings, dict) else None
        if template:  # a text, or several by purpose
            return template if isinstance(template, str) else json.dumps(template)
    return ""


def _attempt(work: Callable[[], Any]) -> Any:
    """Return the result of reading a file that may be missing or damaged; None if it is."""
    try:
        return work()
    except (FileNotFoundError, ValueError, RecursionError, SidecarError):
        return None


def _bits(config: Config) -> int:
    for key in ("quantization", "quantization_config"):
        settings = config.get(key)
        bits = settings.get("bits") if isinstance(settings, dict) else None
        if type(bits) is int and 0 < bits < 64:
            return bits
    return 0
