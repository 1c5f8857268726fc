"""The sampling that a model recommends in its generation_config.json, as far as it can be used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ctypes import c_float
from functools import lru_cache
from pathlib import Path
from typing import Any

import structlog

from daemon.cache.digests import Stamp
from daemon.cache.model_config import MAX_CONFIG_BYTES
from daemon.cache.model_files import Roots, read
from daemon.shared.sampling_options import RANGES

_FILE = "generation_config.json"
_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""The options that are taken from it."""
_CHOICES = ("temperature", "top_p", "top_k", "min_p")
"""The options that make an answer not greedy."""

log = structlog.get_logger()


def default_sampling(name: str, path: Path, roots: Roots) -> Mapping[str, float]:
    """
    Return the sampling options that a model recommends, by name; none if it is greedy or recommends nothing.

    Args:
        name: The name that the model was asked for by.
        path: Its directory.
        roots: Where its files may lie; see `model_files.allowed`.

    Raises:
        SidecarError: As `model_files.read` does.
        OSError: If the file cannot be read.
    """
    file = path / _FILE
    if not (file.exists() or file.is_symlink()):
        return {}
    return _read(name, file, roots, Stamp.of(file))


@lru_cache(maxsize=256)
def _read(name: str, file: Path, roots: Roots, _stamp: Stamp) -> Mapping[str, float]:
    """Read the file, once for each state of it, so that its faults are logged once."""
    try:
        config = json.loads(read(file, roots, MAX_CONFIG_BYTES))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        log.warning("generation_config_ignored", model=name)
        return {}
    options, ignored = usable(config)
    if ignored:
        log.warning("generation_config_ignored", model=name, options=ignored)
    return options


def usable(config: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """
    Return the options that can be used, and the names of those with a wrong value, which are left out.

    A wrong value is no number, or out of the option's range; it counts as not given. `do_sample` false is greedy.
    Without `do_sample`, a model samples if it gives any option that chooses among tokens. A sampling model without a
    temperature has 1, as in transformers. Other options that are not given keep all tokens: transformers' own top_k of
    50 is no recommendation.
    """
    given = {name: config[name] for name in _NAMES if config.get(name) is not None}
    options = {name: value for name, value in given.items() if _is_valid(name, value)}
    ignored = [name for name in given if name not in options]
    samples = config.get("do_sample")
    if type(samples) is not bool:
        if samples is not None:
            ignored.append("do_sample")
        samples = any(name in options for name in _CHOICES)
    if samples and options.setdefault("temperature", 1.0) > 0:
        return options, ignored
    return {name: value for name, value in options.items() if name not in _CHOICES}, ignored


def _is_valid(name: str, value: object) -> bool:
    if type(value) not in (int, float):  # a bool is an int, and no number
        return False
    assert isinstance(value, int | float)
    least, most = RANGES[name]
    # Requests have float32, where a tiny value is 0.
    in_range = least <= value <= most and least <= c_float(value).value
    return in_range and (name != "top_k" or type(value) is int)
