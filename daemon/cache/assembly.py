"""A model's module, assembled in a few pieces: Python alone, which for hundreds of layers takes tenths of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_lm.utils import _get_classes, load_adapters, load_config, load_model

from daemon.cache.identity import ModelSource
from daemon.pieces import SHORT, Pieces


def assembling(source: ModelSource) -> Pieces[Any]:
    """
    Do what mlx-lm does to load a model, a piece for each `next`, and return the module with lazy weights.

    Headers are read, weights are not. What mlx-lm raises passes through.
    """
    model = yield from _in_pieces(source.path)
    if source.adapter_path is not None:
        yield SHORT
        model = load_adapters(model, str(source.adapter_path))
        model.eval()
    return model


def _in_pieces(path: Path) -> Pieces[Any]:
    """
    Let `load_model` do it, but for its longest parts: the layers are constructed before it, weights assigned after it.

    It constructs them itself if it asks for others: it may have read more than the configuration, or another one.
    """
    config = load_config(path)
    model_class, arguments_class = _get_classes(config)
    expected = arguments_class.from_dict(config)
    constructed = model_class(expected)
    yield SHORT
    assignments: list[Any] = []

    def construct(arguments: Any) -> Any:
        model = constructed if arguments == expected else model_class(arguments)
        model.load_weights = lambda weights, strict: assignments.append((weights, strict))
        return model

    model, _ = load_model(
        path, lazy=True, trust_remote_code=False, get_model_classes=lambda config: (construct, arguments_class)
    )
    del model.load_weights
    yield SHORT
    for weights, strict in assignments:
        model.load_weights(weights, strict=strict)
    return model
