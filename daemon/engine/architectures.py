"""Which architectures this mlx-lm can build, told without importing any of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mlx_lm import models
from mlx_lm.utils import MODEL_REMAPPING


def supported(model_type: str) -> bool:
    """Whether mlx-lm has a module for a model_type. Not every module is a model: building it may still fail."""
    return MODEL_REMAPPING.get(model_type, model_type) in _modules()


@cache
def _modules() -> frozenset[str]:
    return frozenset(file.stem for folder in models.__path__ for file in Path(folder).glob("*.py"))
