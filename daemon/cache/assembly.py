"""A model's module, assembled in a few pieces: Python alone, which for hundreds of layers takes tenths of a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, load_adapters, load_config, load_model

from daemon.cache.built import bounded_modules
from daemon.cache.identity import ModelSource
from daemon.pieces import SHORT, Pieces

_ADAPTED = ("lora_a", "lora_b", "m")
"""Names of the parameters that adapters add, in mlx-lm."""


def assembling(source: ModelSource) -> Pieces[Any]:
    """
    Do what mlx-lm does to load a model, a piece for each `next`, and return the module with lazy weights.

    Headers are read, weights are not. What mlx-lm raises passes through.

    Raises:
        TooManyModulesError: If the configuration asks for more modules than any model has.
    """
    model = yield from _in_pieces(source.path)
    if source.adapter_path is not None:
        yield SHORT
        with bounded_modules():
            model = load_adapters(model, str(source.adapter_path))
        model.eval()
    return model


def refuse_partial_adapter(model: Any, adapter_path: Path) -> None:
    """
    Refuse an adapter without some of the tensors that its configuration asks for: mlx-lm leaves random numbers there.

    Raises:
        ValueError: With the number of those that are missing, and the first.
    """
    if json.loads((adapter_path / "adapter_config.json").read_bytes()).get("fine_tune_type") == "full":
        return
    there = mx.load(str(adapter_path / "adapters.safetensors"))
    leaves = (name for name, _ in tree_flatten(model.parameters()))
    missing = [name for name in leaves if name.rsplit(".", 1)[-1] in _ADAPTED and name not in there]
    if missing:
        raise ValueError(f"the adapter lacks {len(missing)} tensors that its configuration has, first {missing[0]}")


def _in_pieces(path: Path) -> Pieces[Any]:
    """
    Let `load_model` do it, but for its longest parts: the layers are constructed before it, weights assigned after it.

    It constructs them itself if it asks for others: it may have read more than the configuration, or another one.
    """
    config = load_config(path)
    model_class, arguments_class = _get_classes(config)
    expected = arguments_class.from_dict(config)
    with bounded_modules():
        constructed = model_class(expected)
    yield SHORT
    assignments: list[Any] = []

    def construct(arguments: Any) -> Any:
        model = constructed if arguments == expected else model_class(arguments)
        model.load_weights = lambda weights, strict: assignments.append((weights, strict))
        return model

    with bounded_modules():
        model, _ = load_model(
            path, lazy=True, trust_remote_code=False, get_model_classes=lambda config: (construct, arguments_class)
        )
    del model.load_weights
    yield SHORT
    for weights, strict in assignments:
        model.load_weights(weights, strict=strict)
    return model
