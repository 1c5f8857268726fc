"""Tokenizers: loaded once for each model, shared by requests, used off the MLX thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_lm.utils import load_tokenizer

from daemon.cache.identity import ModelSource
from daemon.errors import Reason, SidecarError

_KEEP = 8


class Tokenizer:
    """
    A model's tokenizer and chat template. Calls from several threads take turns.

    Attributes:
        eos_ids: Ids that end a sequence.
        size: Number of ids, added tokens included.
    """

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self._lock = threading.Lock()
        self.eos_ids = frozenset(int(i) for i in wrapper.eos_token_ids)
        self.size = len(wrapper)

    @property
    def has_chat_template(self) -> bool:
        """Whether `render` works."""
        return bool(self._wrapper.has_chat_template)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of a text, with the usual special tokens (such as BOS) if `special`."""
        with self._lock:
            return list(self._wrapper.encode(text, add_special_tokens=special))

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a plain prompt; a BOS that the text brings along is not doubled."""
        bos = self._wrapper.bos_token
        return self.encode(text, special=bos is None or not text.startswith(bos))

    def render(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """Return a conversation as text, by the model's own template; jinja2 errors pass through."""
        with self._lock:
            return str(self._wrapper.apply_chat_template(messages, tokenize=False, **options))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""
        with self._lock:
            return str(self._wrapper.decode(ids, skip_special_tokens=True))


class Tokenizers:
    """The tokenizers of the models that were used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: OrderedDict[str, Tokenizer] = OrderedDict()

    def get(self, source: ModelSource) -> Tokenizer:
        """
        Return a model's tokenizer; blocks while it loads.

        Raises:
            SidecarError: MODEL_CORRUPT if the model has none that can be loaded.
        """
        with self._lock:
            tokenizer = self._loaded.get(source.key.weights)
            if tokenizer is None:
                tokenizer = self._loaded[source.key.weights] = _load(source)
                while len(self._loaded) > _KEEP:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(source.key.weights)
            return tokenizer


def _load(source: ModelSource) -> Tokenizer:
    try:
        eos = source.config.get("eos_token_id")
        return Tokenizer(load_tokenizer(source.path, {"trust_remote_code": False}, eos_token_ids=eos))
    except Exception as error:  # transformers raises anything on a damaged tokenizer
        raise SidecarError(
            Reason.MODEL_CORRUPT,
            f"the tokenizer of {source.name} cannot be loaded: {type(error).__name__}: {error}",
        ) from error
