"""
The configuration of a model, its config.json: read, refused if it is absurd or asks for code, and its figures.

It is not trusted. mlx-lm builds modules as it says, so numbers that would fill the memory are refused before any weight
is read. Figures that it lacks are 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TypeGuard

from daemon.shared.errors import Reason, SidecarError

MAX_CONFIG_BYTES = 16_000_000
"""Most bytes of a JSON file that describes a model."""

Config = dict[str, Any]
"""A parsed config.json."""

_MODEL_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CODE_KEYS = ("model_file", "trust_remote_code")
_LAYER_KEYS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_COUNT = re.compile(r"(^|_)(layers?|loops|experts|heads?|blocks|depth|stages|mult)$")
"""Keys that say how often something is built or done."""
_MAX_COUNT = 10_000
_MAX_NUMBER = 2**31 - 1
_MAX_BYTES = 2**63 - 1
"""The largest that an API message holds."""


def checked_config(name: str, content: bytes) -> Config:
    """
    Return the content of config.json.

    Raises:
        SidecarError: MODEL_CORRUPT if it is no JSON object or absurd; MODEL_UNSUPPORTED if it asks mlx-lm to run code.
    """
    config = json_object(name, "config.json", content)
    if not isinstance(config.get("model_type"), str):
        raise SidecarError(Reason.MODEL_CORRUPT, f"config.json of {name} has no model_type")
    if not _MODEL_TYPE.fullmatch(config["model_type"]):
        # mlx-lm imports a module of this name.
        raise SidecarError(Reason.MODEL_UNSUPPORTED, f"config.json of {name} has a model_type that is no name")
    if absurd := _absurd_counts(config):
        raise SidecarError(Reason.MODEL_CORRUPT, f"config.json of {name} has an absurd {', '.join(absurd)}")
    if code := _code_keys(config):
        raise SidecarError(
            Reason.MODEL_UNSUPPORTED,
            f"{name} wants to run its own code ({', '.join(code)}); mlx-sidecar never does that",
        )
    return config


def json_object(name: str, file: str, content: bytes) -> Config:
    """
    Parse a JSON object.

    Args:
        name: The model that the file belongs to, for the error.
        file: The file's name, for the error.
        content: What it contains.

    Raises:
        SidecarError: MODEL_CORRUPT if it contains anything else.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SidecarError(Reason.MODEL_CORRUPT, f"{file} of {name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise SidecarError(Reason.MODEL_CORRUPT, f"{file} of {name} is no JSON object")
    return value


def num_layers(config: Config) -> int:
    """Return the number of layers."""
    return _number(config, *_LAYER_KEYS)


def vocab_size(config: Config) -> int:
    """Return the number of token ids."""
    return _number(config, "vocab_size")


def hidden_size(config: Config) -> int:
    """Return the width of the hidden states."""
    return _number(config, "hidden_size", "n_embd", "d_model")


def estimated_kv_bytes_per_token(config: Config) -> int:
    """Return the bytes of KV of a token if every layer is plain attention, with 16-bit values unless it says 32."""
    heads = _number(config, "num_attention_heads", "n_head")
    kv_heads = _number(config, "num_key_value_heads") or heads
    hidden = _number(config, "hidden_size", "n_embd")
    head_dim = _number(config, "head_dim") or (hidden // heads if heads else 0)
    value_bytes = 4 if "float32" in (config.get("torch_dtype"), config.get("dtype")) else 2
    return min(2 * value_bytes * num_layers(config) * kv_heads * head_dim, _MAX_BYTES)


def _number(config: Config, *names: str) -> int:
    """Return the first of some figures that is there; models with images have those of their text part apart."""
    text_config = config.get("text_config")
    for scope in (config, text_config if isinstance(text_config, dict) else {}):
        for name in names:
            value = scope.get(name)
            if type(value) is int and 0 < value <= _MAX_NUMBER:
                return value
    return 0


def _code_keys(config: Config) -> list[str]:
    """Return the keys, however deep, that make a loader run files of the model."""
    return sorted({key for key, value in _pairs(config) if key in _CODE_KEYS and value})


def _absurd_counts(config: Config) -> list[str]:
    """Return the keys, however deep, that would have modules built until the memory is full."""
    return sorted(
        {key for key, value in _pairs(config) if _is_number(value) and value > _MAX_COUNT and _COUNT.search(key)}
    )


def _is_number(value: object) -> TypeGuard[int | float]:
    return type(value) in (int, float)  # a bool is an int, and no count


def _pairs(config: object) -> Iterator[tuple[str, object]]:
    """Yield all keys and values of a JSON document, however deep."""
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from value.items()
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
