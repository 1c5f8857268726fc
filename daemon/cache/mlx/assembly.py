"""A model's module, assembled in a few pieces: Python alone, which for hundreds of layers takes tenths of a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, load_adapters, load_config, load_model

from daemon.cache.identity import ModelSource
from daemon.cache.mlx.module_size import bounded_modules
from daemon.cache.mlx.weights import Reading
from daemon.cache.model_files import private_folder
from daemon.shared.slices import SHORT, Sliced

_NO_TENSORS = b"\2\0\0\0\0\0\0\0{}"
"""A safetensors file: mlx-lm adds the layers of an adapter, and the weights are not read by it."""


def assembling(source: ModelSource, reading: Reading) -> Sliced[Any]:
    """
    Do what mlx-lm does to load a model, a piece for each `next`, and return the module with lazy weights.

    mlx-lm is given the descriptions that the model's key was made of, in a directory of our own, and the arrays of
    `reading`. It opens no file of the model. Headers are read, weights are not. What it raises passes through.

    Raises:
        TooManyModulesError: If the configuration asks for more modules than any model has.
    """
    model = yield from _in_pieces(source, reading)
    if source.adapter_weights is not None:
        yield SHORT
        with private_folder(source.path.name) as folder:
            (folder / "adapter_config.json").write_text(json.dumps(source.adapter_config))
            (folder / "adapters.safetensors").write_bytes(_NO_TENSORS)
            with bounded_modules():
                model = load_adapters(model, str(folder))
        adapter = reading.adapter()
        _refuse_other_parameters(model, source.adapter_config, adapter)
        model.load_weights(list(adapter.items()), strict=False)
        model.eval()
    return model


def refuse_partial_adapter(model: Any, config: dict[str, Any], names: Collection[str]) -> None:
    """
    Refuse an adapter without some of the tensors that its configuration asks for: mlx-lm leaves random numbers there.

    Args:
        model: The module, with the adapter's layers.
        config: The adapter's adapter_config.json.
        names: Names of the tensors that the adapter has.

    Raises:
        ValueError: With the number of those that are missing, and the first.
    """
    if config.get("fine_tune_type") == "full":
        return
    leaves = (name for name, _ in tree_flatten(model.parameters()))
    missing = [name for name in leaves if name.rpartition(".")[2] in _ADAPTED and name not in names]
    if missing:
        raise ValueError(f"the adapter lacks {len(missing)} tensors that its configuration has, first {missing[0]}")


@contextmanager
def _described(source: ModelSource) -> Iterator[Path]:
    """Make a directory with the descriptions of a model for as long as mlx-lm needs it."""
    with private_folder(source.path.name) as folder:
        (folder / "config.json").write_text(json.dumps(source.config))
        if source.quantization is not None:
            (folder / "hf_quant_config.json").write_text(json.dumps(source.quantization))
        yield folder


def _in_pieces(source: ModelSource, reading: Reading) -> Sliced[Any]:
    """
    Let `load_model` do it, but for its longest parts: the layers are constructed before it, weights assigned after it.

    It constructs them itself if it asks for others.
    """
    with _described(source) as folder:
        config = load_config(folder)
    model_class, arguments_class = _get_classes(config)
    expected = arguments_class.from_dict(config)
    with bounded_modules():
        constructed = model_class(expected)
    yield SHORT
    weights = reading.model()
    assignments: list[Any] = []

    def construct(arguments: Any) -> Any:
        model = constructed if arguments == expected else model_class(arguments)
        model.sanitize = _given(weights, getattr(model, "sanitize", None))
        model.load_weights = lambda weights, strict: assignments.append(weights)
        return model

    with _described(source) as folder, bounded_modules():
        model, _ = load_model(
            folder,
            lazy=True,
            strict=False,  # there are no weights in it
            trust_remote_code=False,
            get_model_classes=lambda config: (construct, arguments_class),
        )
    del model.load_weights, model.sanitize
    yield SHORT
    for assigned in assignments:
        model.load_weights(assigned, strict=True)
    return model


def _given(weights: dict[str, mx.array], sanitize: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return what `load_model` calls to adapt the weights that it has read: it gets those that were read for it."""

    def sanitized(_: dict[str, mx.array]) -> Any:
        given = dict(weights)
        weights.clear()  # what it leaves out is let go of
        return given if sanitize is None else sanitize(given)

    return sanitized


def _refuse_other_parameters(model: Any, config: dict[str, Any], weights: dict[str, mx.array]) -> None:
    """
    Refuse weights of an adapter that are none of its layers, as mlx-lm does for files that it reads itself.

    Raises:
        ValueError: With their names.
    """
    parameters = dict(tree_flatten(model.parameters()))
    if config.get("fine_tune_type", "lora") != "full":
        parameters = {name: one for name, one in parameters.items() if name.rpartition(".")[2] in _ADAPTED}
    errors = [
        f"{name} {array.shape}" for name, array in weights.items()
        if name not in parameters or array.shape != parameters[name].shape
    ]  # fmt: skip
    if errors:
        raise ValueError(f"the adapter has tensors that do not fit its layers: {', '.join(errors)}")


_ADAPTED = {"lora_a", "lora_b", "m"}
"""Parameters that an adapter brings along, by the ends of their names."""
