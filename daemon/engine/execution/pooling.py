"""
Pools the hidden states of a text into its vector, while its prompt is computed chunk by chunk.

A text to embed goes through the stages of a prompt: it waits, restores its cached beginning, and is computed. But the
model's trunk is run instead of the model, because no logits are needed, and all tokens are computed, because no decoder
follows. `Pooled` gets the hidden states of each chunk and keeps what the vector needs of them.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from daemon.cache.mlx.loader import LoadedModel
from daemon.shared.errors import Reason, SidecarError

LAST_TOKEN, MEAN, CLS = "last_token", "mean", "cls"


@dataclass(slots=True, eq=False)
class Pooled:
    """
    The vector of one text, as far as it is computed.

    Attributes:
        pooling: LAST_TOKEN, MEAN or CLS.
        normalize: Whether the vector gets length 1.
        dimensions: Numbers of the vector; None for all that the model has.
        skipped: Leading tokens that MEAN leaves out.
        vector: The result; None before, and once it was sent.
        width: Numbers of the result.
        error: Why there is no result; None if nothing failed.
        cached: Tokens with reused KV.
    """

    pooling: str
    normalize: bool
    dimensions: int | None = None
    skipped: int = 0
    vector: array[float] | None = None
    width: int = 0
    error: Exception | None = None
    cached: int = 0
    _state: Any = field(default=None, repr=False)
    _count: int = 0

    def done(self) -> bool:
        """Whether there is a result, or an error in its place."""
        return self.width > 0 or self.error is not None

    def sent(self) -> None:
        """Let go of the result."""
        self.vector = None

    def add(self, states: Any, start: int) -> None:
        """
        Take the hidden states of the next tokens, [tokens, width].

        Args:
            states: The states, in order; each token's once.
            start: Position of the first of them.
        """
        if self.pooling == MEAN:
            states = states[max(0, self.skipped - start) :].astype(mx.float32)
            if states.shape[0]:
                total = states.sum(axis=0)
                self._state = total if self._state is None else self._state + total
                self._count += states.shape[0]
        elif self.pooling == LAST_TOKEN:
            self._state = states[-1]
        elif start == 0:
            self._state = states[0]
        if self._state is not None:
            # Copied out of the chunk's states, which would stay in memory for it.
            self._state = mx.contiguous(self._state.astype(mx.float32))
            mx.eval(self._state)

    def finish(self) -> None:
        """Make the vector of what was pooled; a failure becomes `error`."""
        vector = self._state / self._count if self.pooling == MEAN else self._state
        self._state = None
        if self.dimensions is not None:
            vector = vector[: self.dimensions]
        if self.normalize:
            vector = vector / mx.maximum(mx.linalg.norm(vector), 1e-12)
        if not mx.isfinite(vector).all().item():
            self.error = SidecarError(
                Reason.NAN_LOGITS, "the model computed hidden states that are no numbers; its weights may be damaged"
            )
            return
        self.vector = array("f", vector.tolist())  # a list of Python's numbers would take eight times the memory
        self.width = len(self.vector)


def check_trunk(loaded: LoadedModel) -> None:
    """
    Refuse a model without a trunk, or with one that has the head inside. It is not computed: its shapes tell.

    Raises:
        SidecarError: MODEL_UNSUPPORTED.
    """
    states = trunk(loaded.model)(mx.array([[0]]), cache=loaded.layout.new_cache(loaded.model, 1))
    if states.shape[-1] == loaded.vocab_size:
        raise _no_trunk(loaded.model)


def trunk(model: Any) -> Any:
    """
    Return the part of one of mlx-lm's models that computes hidden states, after the last norm and before the head.

    Raises:
        SidecarError: MODEL_UNSUPPORTED if the model has no such part under a name that mlx-lm's models use.
    """
    while hasattr(model, "language_model"):
        model = model.language_model
    for name in ("model", "transformer", "backbone"):
        if callable(inner := getattr(model, name, None)):
            return inner
    raise _no_trunk(model)


def _no_trunk(model: Any) -> SidecarError:
    text = f"hidden states cannot be taken of a {type(model).__module__} model; embed with another one"
    return SidecarError(Reason.MODEL_UNSUPPORTED, text)
