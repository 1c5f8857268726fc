"""
The embedding settings of a model: pooling, normalisation, instructions and dimensions, read from its own files.

The files are those of sentence-transformers (https://sbert.net/docs/package_reference/sentence_transformer/models.html):
`modules.json` names the modules, the configuration of its pooling module has the pooling mode,
`config_sentence_transformers.json` has the instructions, and `sentence_bert_config.json` may bound the length. A model
without `modules.json` says nothing about its pooling. Nothing that would change the vectors is ignored: a module or a
mode that the daemon does not compute is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.cache.model_config import MAX_CONFIG_BYTES, json_object
from daemon.cache.model_files import Roots, read
from daemon.shared.errors import Reason, SidecarError

LAST_TOKEN, MEAN, CLS = "last_token", "mean", "cls"
"""Ways of pooling that the daemon computes."""

_MODES = {"lasttoken": LAST_TOKEN, "mean": MEAN, "cls": CLS}
"""By the name that newer configurations give in `pooling_mode`."""
_FLAGS = {
    "pooling_mode_lasttoken": LAST_TOKEN,
    "pooling_mode_mean_tokens": MEAN,
    "pooling_mode_cls_token": CLS,
}
"""By the switch that older configurations have for each mode."""
_FLAG_PREFIX = "pooling_mode_"

MODULES = "modules.json"
_INSTRUCTIONS, _LENGTH = "config_sentence_transformers.json", "sentence_bert_config.json"

_WIDTHS = "matryoshka_dimensions"


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    """
    What the files of a model say about its embeddings.

    Attributes:
        pooling: LAST_TOKEN, MEAN or CLS; empty if the model says nothing.
        normalize: Whether vectors get length 1.
        instructed: Whether the tokens of the instruction are pooled too, where all tokens are pooled.
        instructions: Texts that are put before a text, by name.
        default: The name of the instruction that is used if the request names none; None for no instruction.
        dimensions: Numbers of a vector if the request does not say; None for the width of the model.
        widths: The only numbers that a vector may have, if the model lists them.
        max_tokens: Most tokens of a text with its instruction; 0 if only the context bounds it.
    """

    pooling: str = ""
    normalize: bool = True
    instructed: bool = True
    instructions: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None
    dimensions: int | None = None
    widths: tuple[int, ...] = ()
    max_tokens: int = 0


def embedding_config(name: str, path: Path, config: Mapping[str, Any], roots: Roots = ()) -> EmbeddingConfig:
    """
    Read the embedding settings of a model. Blocks on its disk.

    Args:
        name: The model's name, for errors.
        path: Its directory.
        config: Its config.json.
        roots: Where its files may lie; see `model_files.allowed`.

    Raises:
        SidecarError: MODEL_UNSUPPORTED if its vectors need something that the daemon does not compute; MODEL_CORRUPT if
            a file is damaged; MODEL_NOT_FOUND if a link leads elsewhere.
    """
    _refuse_both_ways(name, config)
    modules = _modules(name, path, roots)
    pooling, instructed = _pooling(name, path, modules, roots)
    instructions = _object(name, path / _INSTRUCTIONS, roots)
    prompts = {key: text for key, text in _mapping(instructions, "prompts").items() if isinstance(text, str)}
    default = instructions.get("default_prompt_name")
    length = _object(name, path / _LENGTH, roots)
    if length.get("do_lower_case"):
        raise SidecarError(
            Reason.MODEL_UNSUPPORTED, f"{name} makes texts lower-case ({_LENGTH}), which Embed does not do"
        )
    return EmbeddingConfig(
        pooling=pooling,
        normalize=not pooling or any(kind == "Normalize" for kind, _ in modules),
        instructed=instructed,
        instructions=prompts,
        default=default if default in prompts else None,
        dimensions=_count(instructions.get("truncate_dim")) or None,
        widths=_widths(config) or _widths(instructions),
        max_tokens=_count(length.get("max_seq_length")),
    )


def _refuse_both_ways(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a model that attends to later tokens: mlx-lm's modules are causal, and would give other vectors."""
    inner = config.get("text_config")
    for scope in (config, inner if isinstance(inner, dict) else {}):
        if scope.get("is_causal") is False or scope.get("use_bidirectional_attention"):
            raise SidecarError(
                Reason.MODEL_UNSUPPORTED,
                f"{name} attends in both directions (config.json); Embed takes models with causal attention alone",
            )


def _modules(name: str, path: Path, roots: Roots) -> list[tuple[str, str]]:
    """Return class and folder of each module; none without modules.json."""
    try:
        content = read(path / MODULES, roots, MAX_CONFIG_BYTES)
    except FileNotFoundError:
        return []
    entries = json_object(name, MODULES, b'{"modules":' + content + b"}")["modules"]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SidecarError(Reason.MODEL_CORRUPT, f"{MODULES} of {name} is no list of modules")
    modules = [(str(entry.get("type", "")).rpartition(".")[2], str(entry.get("path", ""))) for entry in entries]
    for kind, _folder in modules:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise SidecarError(
                Reason.MODEL_UNSUPPORTED, f"{name} has a module {kind} ({MODULES}), which Embed does not compute"
            )
    return modules


def _pooling(name: str, path: Path, modules: list[tuple[str, str]], roots: Roots) -> tuple[str, bool]:
    """Return the way of pooling, and whether the instruction is pooled too; empty if the model says nothing."""
    folders = [folder for kind, folder in modules if kind == "Pooling"]
    if not folders:
        return "", True
    if "/" in folders[0] or folders[0] in ("", ".", ".."):
        raise SidecarError(Reason.MODEL_CORRUPT, f"{MODULES} of {name} names no folder for its pooling")
    file = path / folders[0] / "config.json"
    settings = _object(name, file, roots)
    named = settings.get("pooling_mode")
    if named is None:
        on = [key for key, value in settings.items() if key.startswith(_FLAG_PREFIX) and value is True]
        modes = [_FLAGS.get(key, "") for key in on]
    else:
        on = [str(mode) for mode in (named if isinstance(named, list) else [named])]
        modes = [_MODES.get(mode, "") for mode in on]
    if len(modes) != 1 or not modes[0]:
        raise SidecarError(
            Reason.MODEL_UNSUPPORTED,
            f"{name} pools by {' and '.join(on) or 'nothing'} ({folders[0]}/config.json); Embed pools by last token, "
            "mean or first token",
        )
    return modes[0], settings.get("include_prompt") is not False


def _object(name: str, file: Path, roots: Roots) -> dict[str, Any]:
    try:
        return json_object(name, file.name, read(file, roots, MAX_CONFIG_BYTES))
    except FileNotFoundError:
        return {}


def _mapping(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = settings.get(key)
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


def _widths(settings: Mapping[str, Any]) -> tuple[int, ...]:
    listed = settings.get(_WIDTHS)
    return tuple(sorted({_count(width) for width in listed} - {0})) if isinstance(listed, list) else ()
