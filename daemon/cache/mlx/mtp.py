"""
Builds MTP heads: layers of a checkpoint that predict the token after the next, which mlx-lm leaves out.

A head gets, for each token, its hidden state under the model, after the model's last norm, and the embedding of the
token that follows it. It has one decoder layer, and shares the model's embeddings and output layer:

    x(i)  = project([norm(embedding(i + 1)), norm(state(i))])        MiMo has the two in the other order
    s'(i) = norm(layer(x(0), ..., x(i)))
    logits of token i + 2 = output(s'(i))

This is formula 21 and following of the DeepSeek-V3 technical report (arXiv 2412.19437, section 2.2). A second guess
takes s'(i) in the place of the model's state of the guessed token.

The layer is that of mlx-lm for the model. It is taken from a model that has it alone, and so is `sanitize`, which
adapts its weights: it dequantises, stacks experts, and divides projections. What fails here leaves the model without
a head, and `Unbuilt` says why.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import structlog
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.utils import MODEL_REMAPPING, _get_classes

from daemon.cache.identity import ModelSource
from daemon.cache.mlx.module_size import bounded_modules
from daemon.kv.mlx.layerwise import forward_layerwise
from daemon.kv.mlx.layout import capacity_for
from daemon.shared.log_fields import Words
from daemon.shared.slices import Sliced

log = structlog.get_logger()

Weights = dict[str, mx.array]
"""Arrays by name."""

NO_HEAD = "its checkpoint has no MTP head that is known"

_TRIED = [1, 2, 3]
"""Tokens of the trial at load."""
_MOST_SAID = 300
"""Characters of an error that are told."""


class Unbuilt(Exception):  # noqa: N818  it is an answer, and no failure of the load
    """Why a model has no head, as the end of a sentence that names the model."""


@dataclass(frozen=True, slots=True)
class _Family:
    """
    How checkpoints of a family keep their head.

    Attributes:
        at: What the names of its arrays begin with; `{layers}` is the number of the model's layers.
        names: Its modules beside the layer, by their names in the checkpoint.
        layer: What the names of the layer's arrays begin with, behind `at`.
        alone: Settings of a model that has the layer alone.
        tokens_first: Whether the embedding comes before the state.
        offset: Whether checkpoints store the weights of norms less 1, unless mlx-lm has converted them.
        shared: Copies of the model's embeddings and output layer.
    """

    at: str
    names: dict[str, str]
    layer: str = ""
    alone: dict[str, Any] = field(default_factory=dict)
    tokens_first: bool = True
    offset: bool = False
    shared: tuple[str, ...] = ()

    def renamed(self, name: str) -> str:
        """Return the name of an array in `Head`, without `layer.` for those of the layer."""
        for theirs, ours in self.names.items():
            if name.startswith(f"{theirs}."):
                return ours + name.removeprefix(theirs)
        return name.removeprefix(self.layer)


_NEXTN = _Family(
    "model.layers.{layers}.",
    {"eh_proj": "project", "enorm": "token_norm", "hnorm": "state_norm", "shared_head.norm": "norm"},
    alone={"first_k_dense_replace": 0},
    shared=("embed_tokens.", "shared_head.head."),
)
_QWEN = _Family(
    "mtp.",
    {"fc": "project", "pre_fc_norm_embedding": "token_norm", "pre_fc_norm_hidden": "state_norm", "norm": "norm"},
    layer="layers.0.",
    alone={"full_attention_interval": 1, "mlp_only_layers": []},
    offset=True,
)
_MIMO = _Family(
    "model.mtp_layers.0.",
    {
        "input_proj": "project", "token_layernorm": "token_norm", "hidden_layernorm": "state_norm",
        "final_layernorm": "norm",
    },
    tokens_first=False,
)  # fmt: skip

FAMILIES = {
    "deepseek_v3": _NEXTN, "glm4_moe": _NEXTN, "glm4_moe_lite": _NEXTN, "mimo": _MIMO,
    "qwen3_next": _QWEN, "qwen3_5": _QWEN, "qwen3_5_moe": _QWEN,
}  # fmt: skip
"""How each family keeps its head, by mlx-lm's name."""


class Head(nn.Module):  # type: ignore[misc]
    """
    The arrays of a head.

    Args:
        layer: Its decoder layer.
        width: Numbers of a hidden state.
        eps: Of its norms.
        tokens_first: Whether the embedding comes before the state.
    """

    def __init__(self, layer: nn.Module, width: int, eps: float, *, tokens_first: bool) -> None:
        super().__init__()
        self.token_norm, self.state_norm, self.norm = (nn.RMSNorm(width, eps) for _ in range(3))
        self.project = nn.Linear(2 * width, width, bias=False)
        self.layer = layer
        self._tokens_first = tokens_first

    def __call__(self, states: mx.array, embedded: mx.array, cache: Any) -> mx.array:
        """Return its states, [1, tokens, width], for the model's and the embeddings of the tokens after them."""
        parts = [self.token_norm(embedded), self.state_norm(states)]
        mixed = self.project(mx.concatenate(parts if self._tokens_first else parts[::-1], axis=-1))
        mask = create_attention_mask(mixed, cache, return_array=True)
        return self.norm(self.layer(mixed, mask, cache))  # type: ignore[no-any-return]


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
            raise Unbuilt(f"the MTP head of its checkpoint cannot be built: {_short(error)}") from error
        finally:
            self.weights = {}


def _built(config: dict[str, Any], taken: TakenHead) -> Head:
    family = FAMILIES[_model_type(config)]
    alone = deepcopy(config)
    settings = {"num_hidden_layers": 1, **family.alone}
    _text(alone).update(settings)
    model_class, arguments = _get_classes(alone)
    with bounded_modules():
        model = model_class(arguments.from_dict(alone))
    root = "language_model.model.layers.0." if hasattr(model, "language_model") else "model.layers.0."
    given = {
        root + family.renamed(name): array
        for name, array in taken.weights.items()
        if not name.startswith(family.shared)
    }
    adapted = {
        name.removeprefix(root): array + 1.0 if family.offset and _less_one(name, array, given, taken) else array
        for name, array in model.sanitize(dict(given)).items()
    }
    weights = {
        name if name.partition(".")[0] in family.names.values() else f"layer.{name}": array
        for name, array in adapted.items()
    }
    args = getattr(model, "language_model", model).args
    head = Head(model.layers[0], args.hidden_size, args.rms_norm_eps, tokens_first=family.tokens_first)
    _quantise(head, weights, config.get("quantization") or {})
    head.load_weights(list(weights.items()), strict=True)
    head.eval()
    if [type(cache) for cache in make_prompt_cache(model)] != [KVCache]:
        raise TypeError("its layer keeps no keys and values of single tokens")
    return head


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


def _short(error: Exception) -> str:
    """Return an error in a line: mlx-lm's may have the names of all arrays."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MOST_SAID]


def _model_type(config: dict[str, Any]) -> str:
    name = str(config.get("model_type"))
    return str(MODEL_REMAPPING.get(name, name))


def _text(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("text_config") or config


@dataclass(frozen=True, slots=True)
class MtpHead:
    """
    A head beside its model, in memory.

    Attributes:
        head: Its arrays.
        trunk: The part of the model that computes hidden states.
        output: Returns the logits of states.
        token_bytes: Bytes of its KV, for a token.
    """

    head: Head
    trunk: Any
    output: Callable[[mx.array], mx.array]
    token_bytes: int = 0

    def __call__(self, states: mx.array, following: mx.array, caches: list[KVCache]) -> mx.array:
        """Return its states for those of tokens, [1, tokens, width], and the tokens after each, [1, tokens]."""
        return self.head(states, self.trunk.embed_tokens(following), caches[0])

    def new_cache(self) -> list[KVCache]:
        """Return an empty cache."""
        return [KVCache()]

    def kv_bytes(self, tokens: int) -> int:
        """Return the bytes of its KV for so many tokens."""
        return capacity_for(tokens) * self.token_bytes


def trying_head(head: Head, model: Any) -> Sliced[MtpHead]:
    """
    Try a head with evaluated arrays beside its model, a layer of it for each `next`.

    Raises:
        Unbuilt: If the model's logits are not those of its states, or the head computes no numbers.
    """
    text = getattr(model, "language_model", model)
    output = text.lm_head if hasattr(text, "lm_head") else text.model.embed_tokens.as_linear
    tokens = mx.array([_TRIED])
    logits = yield from forward_layerwise(model, tokens, make_prompt_cache(model))
    try:
        states = yield from forward_layerwise(text.model, tokens, make_prompt_cache(model))
        same = mx.array_equal(output(states), logits, equal_nan=True).item()
        tried = MtpHead(head, text.model, output)
        caches = tried.new_cache()
        finite = mx.isfinite(output(tried(states, tokens, caches))).all().item()
        size = sum(array.nbytes // array.shape[-2] for array in (caches[0].keys, caches[0].values))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise Unbuilt(f"its MTP head fails: {_short(error)}") from error
    if not (same and finite):
        raise Unbuilt(f"its MTP head {'computes logits that are no numbers' if same else 'cannot share its output'}")
    return replace(tried, token_bytes=size)


def head_or_reason(source: ModelSource, taken: TakenHead, *, whole: bool) -> Head | str:
    """Build the MTP head of a checkpoint, or return why it is not used."""
    if source.adapter_weights is not None:
        return "the MTP head of its checkpoint was not trained with the adapter"
    if not whole:
        return "a model of several machines uses no MTP head"
    try:
        return taken.build(source.config)
    except Unbuilt as error:
        return _unused(source, error)


def tried_head(source: ModelSource, head: Head | str, model: Any) -> Sliced[MtpHead | str]:
    """Try an MTP head, or return why there is none."""
    if isinstance(head, str):
        return head
    try:
        return (yield from trying_head(head, model))
    except Unbuilt as error:
        return _unused(source, error)


def _unused(source: ModelSource, error: Unbuilt) -> str:
    if str(error) != NO_HEAD:
        log.warning("mtp_head_unused", model=source.name, error=Words(str(error)))
    return str(error)
