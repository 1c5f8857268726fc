"""
Builds MTP heads from checkpoints: where each family keeps the arrays of its head, and which layer of mlx-lm they fill.

The layer is that of mlx-lm for the model. It is taken from a model that has it alone, and so is `sanitize`, which
adapts its weights: it dequantises, stacks experts, and divides projections. What fails here leaves the model without
a head, and `Unbuilt` says why.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import MODEL_REMAPPING, _get_classes

from daemon.cache.identity import ModelSource
from daemon.cache.mlx.module_size import bounded_modules
from daemon.cache.mlx.mtp import NO_HEAD, Head, Unbuilt, short, unused

Weights = dict[str, mx.array]
"""Arrays by name."""

_OWN = ("project", "token_norm", "state_norm", "last_norm")
"""The modules of `Head` beside its blocks."""


@dataclass(frozen=True, slots=True)
class _Family:
    """
    How checkpoints of a family keep their head.

    Attributes:
        at: What the names of its arrays begin with; `{layers}` is the number of the model's layers.
        names: Its modules that mlx-lm calls something else, by their names in the checkpoint; `{last}` is the number
            of the last block.
        layer: What the names of the layer's arrays begin with, behind `at`.
        numbered: Whether the number of a block follows.
        alone: Returns the settings of a model that has the layer alone, by those of the whole model.
        blocks: How many blocks of that model are the head's; None for all.
        eps: The setting with the epsilon of norms.
        tokens_first: Whether the embedding comes before the state.
        before_norm: Whether the state is the one before the model's last norm.
        offset: Whether checkpoints store the weights of norms less 1, unless mlx-lm has converted them.
        shared: Copies of the model's embeddings and output layer.
    """

    at: str
    names: dict[str, str]
    layer: str = ""
    numbered: bool = False
    alone: Callable[[dict[str, Any]], dict[str, Any]] = lambda settings: {}
    blocks: int | None = None
    eps: str = "rms_norm_eps"
    tokens_first: bool = True
    before_norm: bool = False
    offset: bool = False
    shared: tuple[str, ...] = ()

    def renamed(self, name: str, blocks: int) -> str:
        """Return the name of an array in mlx-lm's layer or in `Head`, behind the number of its block."""
        for theirs, ours in self.names.items():
            start = theirs.format(last=blocks - 1)
            if name.startswith(f"{start}."):
                return f"0.{ours}{name.removeprefix(start)}"
        name = name.removeprefix(self.layer)
        return name if self.numbered else f"0.{name}"


def _nemotron(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the blocks of a head, in one of two spellings; transformers leaves out the usual ones."""
    pattern, blocks = settings.get("mtp_hybrid_override_pattern"), settings.get("mtp_layers_block_type")
    if not pattern and not blocks:
        pattern = "*E"
    return {"hybrid_override_pattern": pattern, "layers_block_type": blocks, "layer_types": None}


_NEXTN = _Family(
    "model.layers.{layers}.",
    {"eh_proj": "project", "enorm": "token_norm", "hnorm": "state_norm", "shared_head.norm": "last_norm"},
    alone=lambda settings: {"num_hidden_layers": 1, "first_k_dense_replace": 0},
    shared=("embed_tokens.", "shared_head.head."),
)
_QWEN = _Family(
    "mtp.",
    {"fc": "project", "pre_fc_norm_embedding": "token_norm", "pre_fc_norm_hidden": "state_norm", "norm": "last_norm"},
    layer="layers.",
    numbered=True,
    alone=lambda settings: {"num_hidden_layers": 1, "full_attention_interval": 1, "mlp_only_layers": []},
    offset=True,
)
_MIMO = _Family(
    "model.mtp_layers.0.",
    {
        "input_proj": "project", "token_layernorm": "token_norm", "hidden_layernorm": "state_norm",
        "final_layernorm": "last_norm",
    },
    alone=lambda settings: {"num_hidden_layers": 1},
    tokens_first=False,
    before_norm=True,
)  # fmt: skip
_MIMO_V2 = _Family(
    "model.mtp.layers.0.",
    {
        "eh_proj": "project", "enorm": "token_norm", "hnorm": "state_norm", "final_layernorm": "last_norm",
        "pre_mlp_layernorm": "post_attention_layernorm",
    },
    # A dense layer with a window. mlx-lm builds no model without a layer of full attention, which is dropped.
    alone=lambda settings: {"num_hidden_layers": 2, "hybrid_layer_pattern": [1, 0], "moe_layer_freq": [0, 0]},
    blocks=1,
    eps="layernorm_epsilon",
)  # fmt: skip
_NEMOTRON = _Family(
    "mtp.layers.",
    {
        "0.eh_proj": "project", "0.enorm": "token_norm", "0.hnorm": "state_norm",
        "{last}.final_layernorm": "last_norm",
    },
    numbered=True,
    alone=_nemotron,
    eps="layer_norm_epsilon",
)  # fmt: skip

FAMILIES = {
    "deepseek_v3": _NEXTN, "deepseek_v32": _NEXTN, "glm4_moe": _NEXTN, "glm4_moe_lite": _NEXTN, "glm_moe_dsa": _NEXTN,
    "mimo": _MIMO, "mimo_v2_flash": _MIMO_V2, "nemotron_h": _NEMOTRON,
    "qwen3_next": _QWEN, "qwen3_5": _QWEN, "qwen3_5_moe": _QWEN,
}  # fmt: skip
"""How each family keeps its head, by mlx-lm's name."""


@dataclass(slots=True)
class TakenHead:
    """
    The weights of a head, taken from those of its model before mlx-lm drops them.

    Attributes:
        weights: Its arrays, by their names behind the family's `at`.
        raw: Whether the checkpoint is as it was published, and not as mlx-lm writes it.
    """

    weights: Weights = field(default_factory=dict)
    raw: bool = False

    def take(self, config: dict[str, Any], weights: Weights) -> None:
        """Take the arrays of a head out of a model's."""
        family = FAMILIES.get(_model_type(config))
        if family is None:
            return
        start = family.at.format(layers=_text(config).get("num_hidden_layers"))
        for name in [name for name in weights if name.startswith(start)]:
            self.weights[name.removeprefix(start)] = weights.pop(name)
        self.raw = any("conv1d.weight" in name and array.shape[-1] != 1 for name, array in weights.items())

    def build(self, config: dict[str, Any]) -> Head:
        """
        Build the head; its arrays are lazy.

        Raises:
            Unbuilt: With the reason.
        """
        if not self.weights:
            raise Unbuilt(NO_HEAD)
        try:
            return _built(config, self)
        except Exception as error:  # mlx-lm's `sanitize` may raise anything for names that it does not know
            raise Unbuilt(f"the MTP head of its checkpoint cannot be built: {short(error)}") from error
        finally:
            self.weights = {}


def _built(config: dict[str, Any], taken: TakenHead) -> Head:
    family = FAMILIES[_model_type(config)]
    alone = deepcopy(config)
    _text(alone).update(family.alone(_text(config)))
    model_class, arguments = _get_classes(alone)
    with bounded_modules():
        model = model_class(arguments.from_dict(alone))
    blocks, args = model.layers[: family.blocks], getattr(model, "language_model", model).args
    (cache,) = make_prompt_cache(model)[: family.blocks]
    order = {"tokens_first": family.tokens_first, "before_norm": family.before_norm}
    head = Head(blocks, args.hidden_size, getattr(args, family.eps), cache, **order)
    weights = _adapted(model, family, taken, len(blocks))
    _quantise(head, weights, config.get("quantization") or {})
    head.load_weights(list(weights.items()), strict=True)
    head.eval()
    return head


def _adapted(model: Any, family: _Family, taken: TakenHead, blocks: int) -> Weights:
    """Return the arrays of a head by their names in `Head`."""
    root = "backbone.layers." if hasattr(model, "backbone") else "model.layers."
    if hasattr(model, "language_model"):
        root = f"language_model.{root}"
    given = {
        root + family.renamed(name, blocks): array
        for name, array in taken.weights.items()
        if not name.startswith(family.shared)
    }
    weights = {}
    for name, array in model.sanitize(dict(given)).items():
        _, _, inner = name.removeprefix(root).partition(".")
        ours = inner if inner.partition(".")[0] in _OWN else f"blocks.{name.removeprefix(root)}"
        weights[ours] = array + 1.0 if family.offset and _less_one(name, array, given, taken) else array
    return weights


def _less_one(name: str, array: mx.array, given: Weights, taken: TakenHead) -> bool:
    """Whether an array is a norm's of a published checkpoint, and `sanitize` has left it as it was."""
    return taken.raw and name.endswith("norm.weight") and array is given.get(name)


def _quantise(head: Head, weights: Weights, settings: dict[str, Any]) -> None:
    """Quantise the modules that have scales, each with the bits that its arrays show."""

    def chosen(path: str, module: nn.Module) -> bool | dict[str, int]:
        scales = weights.get(f"{path}.scales")
        if scales is None:
            return False
        size = int(settings["group_size"])
        bits = weights[f"{path}.weight"].shape[-1] * 32 // (scales.shape[-1] * size)
        return {"group_size": size, "bits": bits}

    if any(name.endswith(".scales") for name in weights):
        if settings.get("mode", "affine") != "affine":
            raise ValueError(f"it is quantised in the mode {settings['mode']}")
        nn.quantize(head, class_predicate=chosen)


def _model_type(config: dict[str, Any]) -> str:
    name = str(config.get("model_type"))
    return str(MODEL_REMAPPING.get(name, name))


def _text(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("text_config") or config


def head_or_reason(source: ModelSource, taken: TakenHead, *, whole: bool) -> Head | str:
    """Build the MTP head of a checkpoint, or return why it is not used."""
    if source.adapter_weights is not None:
        return "the MTP head of its checkpoint was not trained with the adapter"
    if not whole:
        return "a model of several machines uses no MTP head"
    try:
        return taken.build(source.config)
    except Unbuilt as error:
        return unused(source, error)
