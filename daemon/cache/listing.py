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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CachedRepoInfo, CachedRevisionInfo, CacheNotFound, scan_cache_dir

from daemon.cache.context_length import context_length
from daemon.cache.embedding_config import embedding_config
from daemon.cache.hub import is_complete
from daemon.cache.model_config import MAX_CONFIG_BYTES, Config, checked_config
from daemon.cache.model_files import Roots, read
from daemon.cache.resolver import EMBEDDED, EMBEDDED_PATH
from daemon.cache.weight_files import is_weight_file, refuse_other_formats
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.liveness import moved

HUB_CACHE, ROOT, IS_EMBEDDED, ELSEWHERE = "hub_cache", "root", "embedded", ""
"""Places where a model is found; the last one is for models that are in memory alone."""

MOST_MODELS = 4096
"""Most models of one place."""
MOST_FOLDERS = 20_000
"""Most directories below a root that are looked at."""
DEPTH = 3
"""Most directories between a root and a model below it."""

_DEFAULT_BRANCH = "main"
_MOST_NEAR = 3
"""Names that are suggested for a mistyped one."""
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
    try:
        repos = scan_cache_dir(folder).repos
    except CacheNotFound:
        return []
    models = sorted((repo for repo in repos if repo.repo_type == "model" and repo.revisions), key=lambda r: r.repo_id)
    return [_hub_model(repo) for repo in models[:MOST_MODELS]]


def hub_names(folder: Path) -> list[str]:
    """Return the ids of the models of a Hub cache, from the names of its directories alone."""
    names = sorted(path.name for path in folder.glob("models--*--*"))
    return [name.removeprefix("models--").replace("--", "/") for name in names[:MOST_MODELS]]


def root_models(root: Path) -> list[DiskModel]:
    """
    Return the models below a directory of `model_roots`, or the one in it, sorted by name.

    Raises:
        SidecarError: MODEL_NOT_FOUND if there is no such directory: its disk is away, or its name is misspelled.
    """
    if not root.is_dir():
        raise SidecarError(Reason.MODEL_NOT_FOUND, "model_roots names it, and there is no such directory")
    return [described(DiskModel(str(path), path, ROOT), (root.resolve(),)) for path in root_folders(root)]


def root_folders(root: Path) -> list[Path]:
    """Return the directories below a directory, itself included, that have a config.json; at most MOST_MODELS."""
    found: list[Path] = []
    pending = [(root, 0)]
    for _ in range(MOST_FOLDERS):
        if not pending or len(found) == MOST_MODELS:
            break
        folder, depth = pending.pop()
        moved()
        if (folder / "config.json").is_file():
            found.append(folder)
        elif depth < DEPTH:
            pending += [(path, depth + 1) for path in _folders(folder)]
    return sorted(found)


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
        files = [entry for entry in os.scandir(model.path) if entry.is_file()]
    except OSError as error:
        return replace(model, problem=f"its directory cannot be read: {error.strerror}")
    stats = {entry.name: entry.stat() for entry in files}
    weights = [name for name in stats if is_weight_file(name)]
    size = sum(stats[name].st_size for name in weights)
    model = replace(
        model,
        size_bytes=size,
        disk_bytes=model.disk_bytes or sum(stat.st_size for stat in stats.values()),
        last_used=model.last_used or max((stat.st_atime for stat in stats.values()), default=0.0),
        complete=is_complete(model.path),
    )
    try:
        config = checked_config(model.model, read(model.path / "config.json", roots, MAX_CONFIG_BYTES))
        refuse_other_formats(model.model, model.path, [model.path / name for name in stats])
    except SidecarError as error:
        return replace(model, problem=error.message)
    except OSError as error:
        return replace(model, problem=f"config.json cannot be read: {error.strerror}")
    return _able(model, config, roots)


def _able(model: DiskModel, config: Config, roots: Roots) -> DiskModel:
    """Return a model with its figures and with what it can do."""
    template = _template(model.path, roots)
    try:
        embeddings = bool(embedding_config(model.model, model.path, config, roots).pooling)
    except (SidecarError, OSError):
        embeddings = False
    return replace(
        model,
        architecture=str(config["model_type"]),
        context_length=context_length(config),
        quantization_bits=_bits(config),
        chat=bool(template),
        tools=bool(_TOOLS.search(template)),
        reasoning=bool(_REASONING.search(template)),
        embeddings=embeddings,
    )


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


def _hub_model(repo: CachedRepoInfo) -> DiskModel:
    default = [revision for revision in repo.revisions if _DEFAULT_BRANCH in revision.refs]
    revision: CachedRevisionInfo = (
        default[0] if default else max(repo.revisions, key=lambda revision: revision.last_modified)
    )
    model = DiskModel(
        repo.repo_id,
        revision.snapshot_path,
        HUB_CACHE,
        disk_bytes=repo.size_on_disk,
        last_used=repo.last_accessed,
        revision=revision.commit_hash,
    )
    return described(model)


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
    """Return the result of reading a file that may be damaged; None if it is."""
    try:
        return work()
    except (OSError, ValueError, RecursionError, SidecarError):
        return None


def _bits(config: Config) -> int:
    for key in ("quantization", "quantization_config"):
        settings = config.get(key)
        bits = settings.get("bits") if isinstance(settings, dict) else None
        if type(bits) is int and 0 < bits < 64:
            return bits
    return 0
