"""
Assembles a model's module in a few pieces: mlx-lm does it, with arrays that the daemon has opened itself.

The function `load_model` of mlx-lm reads a directory. It constructs the module, adapts the weights to it (`sanitize`),
quantises layers with quantised weights, and assigns the weights. It has two faults for a daemon. It opens the weight
files by name, and may get other files than those that were checked. And it does everything at once: for hundreds of
layers that is some tenths of a second of Python, while running streams wait.

A copy of its code would have to follow each of its releases. So `load_model` is called with a private directory, which
has the model's descriptions and no weights, and with a constructor of our own. That changes what happens at three
points::

    load_model                     here
    constructs the module          the module was constructed before, in a piece of its own
    model.sanitize(its weights)    `sanitize` gets the arrays of `Reading` instead
    model.load_weights(weights)    they are noted only, and assigned afterwards, in a piece of their own

The methods `sanitize` and `load_weights` are replaced on that instance, and only during the call. A subclass with
these methods would change the class of the module for good.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import MODEL_REMAPPING, _get_classes, load_adapters, load_config, load_model

from daemon.cache.identity import ModelSource
from daemon.cache.mlx.module_size import bounded_modules
from daemon.cache.mlx.mtp_checkpoints import TakenHead
from daemon.cache.mlx.weights import Reading
from daemon.cache.model_files import private_folder
from daemon.shared.distributions import DAEMON, Program
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.slices import SHORT, Sliced

_NO_TENSORS = b"\2\0\0\0\0\0\0\0{}"
"""A safetensors file without tensors: mlx-lm adds the layers of an adapter only if it finds its file."""

_ADAPTER_PARAMETERS = {"lora_a", "lora_b", "m"}
"""Parameters that an adapter adds to a layer, by the ends of their names."""

Weights = dict[str, mx.array]
"""Arrays by name."""

_PROGRAM = Program((DAEMON, "mlx-lm", "transformers"))
"""What this process imports modules of."""


def assembling(source: ModelSource, reading: Reading, head: TakenHead) -> Sliced[Any]:
    """
    Assemble a model's module with its adapter, a piece for each `next`, and return it.

    Its arrays are lazy: headers are read, weights are not. No file of the model is opened by mlx-lm. It gets a private
    directory with the descriptions that the model's key was made of, and the arrays of `reading`. Its exceptions pass
    through.

    Args:
        source: The model on disk.
        reading: Its arrays.
        head: Takes those of an MTP head.

    Raises:
        TooManyModulesError: If the configuration asks for more modules than any model has.
        SidecarError: MACHINE_FAULT if the module would be that of another installation than this process began with.
    """
    model = yield from _base_model(source, reading, head)
    if source.adapter_weights is not None:
        yield SHORT
        model = _with_adapter(model, source, reading)
    return model


def _base_model(source: ModelSource, reading: Reading, head: TakenHead) -> Sliced[Any]:
    """Construct the module, have `load_model` make the rest of it, and assign the weights: a piece each."""
    with _described(source) as folder:
        config = load_config(folder)
    _refuse_another_installation(source.name, config)
    model_class, arguments_class = _get_classes(config)
    expected_arguments = arguments_class.from_dict(config)
    with bounded_modules():
        constructed = model_class(expected_arguments)
    yield SHORT
    weights = reading.model()
    head.take(source.config, weights)
    assignments: list[Any] = []

    def construct(arguments: Any) -> Any:
        # `load_model` may complete the configuration: then the module must be constructed anew.
        model = constructed if arguments == expected_arguments else model_class(arguments)
        model.sanitize = _sanitizing(weights, model)
        model.load_weights = lambda weights, strict: assignments.append(weights)
        return model

    with _described(source) as folder, bounded_modules():
        model, _ = load_model(
            folder,
            lazy=True,
            strict=False,  # the directory has no weights
            trust_remote_code=False,
            get_model_classes=lambda config: (construct, arguments_class),
        )
    del model.load_weights, model.sanitize
    yield SHORT
    for assigned in assignments:
        model.load_weights(assigned, strict=True)
    return model


def _refuse_another_installation(name: str, config: dict[str, Any]) -> None:
    """Raise a SidecarError after an upgrade: with modules of two versions, a model might compute something else."""
    module = MODEL_REMAPPING.get(config["model_type"], config["model_type"])
    if f"mlx_lm.models.{module}" not in sys.modules and _PROGRAM.replaced_by() is not None:
        raise SidecarError(
            Reason.MACHINE_FAULT,
            f"{name} cannot be loaded: mlx-sidecar was upgraded or removed since this daemon began, and no model of "
            "this architecture was loaded before; start the daemon again, with: mlx-sidecar service restart",
        )


@contextmanager
def _described(source: ModelSource) -> Iterator[Path]:
    """Make a directory with the descriptions of a model for as long as mlx-lm needs it."""
    with private_folder(source.path.name) as folder:
        (folder / "config.json").write_text(json.dumps(source.config))
        if source.quantization is not None:
            (folder / "hf_quant_config.json").write_text(json.dumps(source.quantization))
        yield folder


def _sanitizing(weights: Weights, model: Any) -> Callable[..., Any]:
    """Return a `sanitize` for `load_model` that adapts `weights` instead of the weights that it gets."""
    sanitize = getattr(model, "sanitize", None)

    def sanitized(_: Weights) -> Any:
        given = _whole(weights, model)
        weights.clear()  # arrays that `sanitize` leaves out are not kept in memory by this dictionary
        return given if sanitize is None else sanitize(given)

    return sanitized


def _whole(weights: Weights, model: Any) -> Weights:
    """Return weights under their names in a model: sentence-transformers saves a trunk alone, without its name."""
    if "embed_tokens.weight" not in weights or not hasattr(model, "model"):
        return dict(weights)
    if "lm_head" in model and "lm_head.weight" not in weights:
        model.args.tie_word_embeddings = True  # a trunk has no head of its own
        del model.lm_head
    return {f"model.{name}": array for name, array in weights.items()}


def _with_adapter(model: Any, source: ModelSource, reading: Reading) -> Any:
    """Add the layers of an adapter to a model, and assign their weights."""
    with private_folder(source.path.name) as folder:
        (folder / "adapter_config.json").write_text(json.dumps(source.adapter_config))
        (folder / "adapters.safetensors").write_bytes(_NO_TENSORS)
        with bounded_modules():
            model = load_adapters(model, str(folder))
    weights = reading.adapter()
    _refuse_other_parameters(model, source.adapter_config, weights)
    model.load_weights(list(weights.items()), strict=False)
    model.eval()
    return model


def _refuse_other_parameters(model: Any, config: dict[str, Any], weights: Weights) -> None:
    """
    Refuse weights of an adapter that do not belong to its layers, as mlx-lm does for files that it reads itself.

    Raises:
        ValueError: With their names.
    """
    parameters = dict(tree_flatten(model.parameters()))
    if config.get("fine_tune_type", "lora") != "full":
        parameters = {name: array for name, array in parameters.items() if _is_of_adapter(name)}
    errors = [
        f"{name} {array.shape}" for name, array in weights.items()
        if name not in parameters or array.shape != parameters[name].shape
    ]  # fmt: skip
    if errors:
        raise ValueError(f"the adapter has tensors that do not fit its layers: {', '.join(errors)}")


def refuse_partial_adapter(model: Any, config: dict[str, Any], names: Collection[str]) -> None:
    """
    Refuse an adapter without some of the tensors that its configuration asks for: mlx-lm leaves random numbers there.

    Args:
        model: The module, with the adapter's layers.
        config: The adapter's adapter_config.json.
        names: Names of the tensors that the adapter has.

    Raises:
        ValueError: With the names of the missing tensors.
    """
    parameters = [] if config.get("fine_tune_type") == "full" else tree_flatten(model.parameters())
    wanted = [name for name, _ in parameters if _is_of_adapter(name)]
    if missing := [name for name in wanted if name not in names]:
        raise ValueError(
            f"the adapter lacks {len(missing)} of the {len(wanted)} tensors that its configuration has; train or copy "
            f"it again. It has no {', '.join(missing)}"
        )
    if not names:
        raise ValueError("the adapter has no tensors, so it would change nothing; train or copy it again")


def _is_of_adapter(name: str) -> bool:
    return name.rpartition(".")[2] in _ADAPTER_PARAMETERS
