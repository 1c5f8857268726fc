"""Model directories for tests: copies of the embedded model, whole or broken on purpose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from daemon.cache.resolver import EMBEDDED_PATH


def copy_of_embedded(folder: Path, name: str = "model", **config: Any) -> Path:
    """Copy the embedded model, with changes to its config.json, and return the directory. Each copy is a new model."""
    path = folder / name
    shutil.copytree(EMBEDDED_PATH, path)
    if config:
        file = path / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return path


def truncated(folder: Path) -> Path:
    """Return a model whose weight file lost its second half."""
    path = copy_of_embedded(folder, "truncated")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return path


def with_config(folder: Path, text: str) -> Path:
    """Return a model whose config.json is `text`."""
    path = copy_of_embedded(folder, "bad-config")
    (path / "config.json").write_text(text)
    return path
