"""
Runs MTP heads: layers of a checkpoint that predict the token after the next, which mlx-lm leaves out.

A head gets, for each token, its hidden state under the model, after the model's last norm (MiMo's before it), and the
embedding of the token that follows it. It has one decoder layer, and shares the model's embeddings and output layer:

    x(i)  = project([norm(embedding(i + 1)), norm(state(i))])        MiMo has the two in the other order
    s'(i) = norm(layer(x(0), ..., x(i)))
    logits of token i + 2 = output(s'(i))

This is formula 21 and following of the DeepSeek-V3 technical report (arXiv 2412.19437, section 2.2). A second guess
takes s'(i) in the place of the model's state of the guessed token.

Nemotron divides the layer into two blocks, attention and experts, each with a norm and a residual of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import structlog
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import make_prompt_cache

from daemon.cache.identity import ModelSource
from daemon.kv.mlx.adapters import BLOCK_ADAPTERS
from daemon.kv.mlx.adapters.base import LayerShape
from daemon.kv.mlx.adapters.cache_list import leaves
from daemon.kv.mlx.layerwise import forward_layerwise
from daemon.kv.mlx.layout import capacity_for
from daemon.shared.log_fields import Words
from daemon.shared.slices import Sliced

log = structlog.get_logger()

NO_HEAD = "its checkpoint has no MTP head that is known"

_TRIED = [1, 2, 3]
"""Tokens of the trial at load."""
_MOST_SAID = 300
"""Characters of an error that are told."""


class Unbuilt(Exception):  # noqa: N818  it is an answer, and no failure of the load
    """Why a model has no head, as the end of a sentence that names the model."""


class Head(nn.Module):  # type: ignore[misc]
    """
    The arrays of a head.

    Args:
        blocks: Its decoder layer, in as many blocks as the model divides one into.
        width: Numbers of a hidden state.
        eps: Of its norms.
        cache: An empty cache of the one block that keeps KV.
        tokens_first: Whether the embedding comes before the state.
        before_norm: Whether it takes the model's states as they are before the model's last norm.

    Raises:
        TypeError: If the cache is not one of keys and values of single tokens.
    """

    def __init__(
        self, blocks: list[nn.Module], width: int, eps: float, cache: Any, *, tokens_first: bool, before_norm: bool
    ) -> None:
        super().__init__()
        if any(type(leaf) not in BLOCK_ADAPTERS for leaf in leaves([cache])):
            raise TypeError("its layer keeps no keys and values of single tokens")
        self.token_norm, self.state_norm, self.last_norm = (nn.RMSNorm(width, eps) for _ in range(3))
        self.project = nn.Linear(2 * width, width, bias=False)
        self.blocks = blocks
        self._empty = cache
        self._tokens_first = tokens_first
        self.before_norm = before_norm

    def __call__(self, states: mx.array, embedded: mx.array, cache: Any) -> mx.array:
        """Return its states, [1, tokens, width], for the model's and the embeddings of the tokens after them."""
        parts = [self.token_norm(embedded), self.state_norm(states)]
        mixed = self.project(mx.concatenate(parts if self._tokens_first else parts[::-1], axis=-1))
        mask = create_attention_mask(mixed, next(leaves([cache])), return_array=True)
        for block in self.blocks:
            mixed = block(mixed, mask, cache)
        return self.last_norm(mixed)  # type: ignore[no-any-return]

    def new_cache(self) -> Any:
        """Return an empty cache."""
        return deepcopy(self._empty)


@dataclass(frozen=True, slots=True)
class MtpHead:
    """
    A head beside its model, in memory.

    Attributes:
        head: Its arrays.
        trunk: The part of the model that computes the hidden states that the head takes.
        output: Returns the logits of the head's states.
        logits: Returns the model's logits, of states of the trunk.
        shapes: Shape of each of its caches.
    """

    head: Head
    trunk: Any
    output: Callable[[mx.array], mx.array]
    logits: Callable[[mx.array], mx.array]
    shapes: tuple[LayerShape, ...] = ()

    def __call__(self, states: mx.array, following: mx.array, caches: list[Any]) -> mx.array:
        """Return its states for those of tokens, [1, tokens, width], and the tokens after each, [1, tokens]."""
        embeddings = self.trunk.embed_tokens if hasattr(self.trunk, "embed_tokens") else self.trunk.embeddings
        return self.head(states, embeddings(following), caches[0])

    def new_cache(self) -> list[Any]:
        """Return an empty cache."""
        return [self.head.new_cache()]

    def kv_bytes(self, tokens: int) -> int:
        """Return the bytes of its KV for so many tokens."""
        return sum(shape.live_bytes(capacity_for(tokens), 1) for shape in self.shapes)


def trying_head(head: Head, model: Any) -> Sliced[MtpHead]:
    """
    Try a head with evaluated arrays beside its model, a layer of it for each `next`.

    Raises:
        Unbuilt: If the model's logits are not those of its states, or the head computes no numbers.
    """
    text = getattr(model, "language_model", model)
    trunk = text.backbone if hasattr(text, "backbone") else text.model
    output = text.lm_head if hasattr(text, "lm_head") else trunk.embed_tokens.as_linear
    computed = output
    if head.before_norm:
        trunk, norm = copy(trunk), trunk.norm  # all arrays stay those of the model
        trunk.norm = nn.Identity()
        computed = lambda states: output(norm(states))  # noqa: E731
    tokens = mx.array([_TRIED])
    logits = yield from forward_layerwise(model, tokens, make_prompt_cache(model))
    try:
        states = yield from forward_layerwise(trunk, tokens, make_prompt_cache(model))
        same = mx.array_equal(computed(states), logits, equal_nan=True).item()
        tried = MtpHead(head, trunk, output, computed)
        caches = tried.new_cache()
        tried(states[:, :1], tokens[:, :1], caches)
        shapes = tuple(_shape(cache) for cache in leaves(caches))
        finite = mx.isfinite(output(tried(states[:, 1:], tokens[:, 1:], caches))).all().item()
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise Unbuilt(f"its MTP head fails: {short(error)}") from error
    if not (same and finite):
        raise Unbuilt(f"its MTP head {'computes logits that are no numbers' if same else 'cannot share its output'}")
    return replace(tried, shapes=shapes)


def _shape(cache: Any) -> LayerShape:
    shape = BLOCK_ADAPTERS[type(cache)].describe(cache)
    if shape is None:
        raise TypeError(f"its {type(cache).__name__} is of a kind that is not known")
    return shape


def tried_head(source: ModelSource, head: Head | str, model: Any) -> Sliced[MtpHead | str]:
    """Try an MTP head, or return why there is none."""
    if isinstance(head, str):
        return head
    try:
        return (yield from trying_head(head, model))
    except Unbuilt as error:
        return unused(source, error)


def unused(source: ModelSource, error: Unbuilt) -> str:
    """Return why a head is not used, and log it unless the checkpoint has none."""
    if str(error) != NO_HEAD:
        log.warning("mtp_head_unused", model=source.name, error=Words(str(error)))
    return str(error)


def short(error: Exception) -> str:
    """Return an error in a line: mlx-lm's may have the names of all arrays."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MOST_SAID]
