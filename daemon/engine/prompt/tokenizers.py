"""Tokenizers of models: loaded once for each model and shared by its requests."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from pathlib import Path

from mlx_lm.utils import load_tokenizer

from daemon.cache.identity import ModelSource
from daemon.cache.model_files import private_copy
from daemon.cache.unchanged import State, state_of
from daemon.engine.output.harmony import understood
from daemon.engine.prompt.chat_templates import Templates
from daemon.engine.prompt.special_tokens import eos_ids
from daemon.engine.prompt.template_files import FOLDER as ADDITIONAL
from daemon.engine.prompt.template_files import chat_templates
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.failpoints import failpoint
from daemon.shared.machine_faults import machine_fault

_KEEP = 8
"""Tokenizers that stay in memory."""


class Tokenizers:
    """
    A cache of the tokenizers that were used last. For any thread; no thread waits while another loads.

    Args:
        templates: Renders chat templates.
    """

    def __init__(self, templates: Templates) -> None:
        self._templates = templates
        self._lock = threading.Lock()
        self._loaded: OrderedDict[Hashable, Tokenizer] = OrderedDict()

    def get(self, source: ModelSource) -> Tokenizer:
        """
        Return a model's tokenizer; blocks while it loads. Callers must not load the same tokenizer twice at a time.

        Raises:
            SidecarError: MODEL_CORRUPT if the model has no tokenizer that can be loaded; MACHINE_EXHAUSTED or
                MACHINE_FAULT if its files cannot be read.
        """
        key = (source.key.weights, *_stamps(source.path))
        with self._lock:
            tokenizer = self._loaded.get(key)
        if tokenizer is None:
            tokenizer = _load(source, self._templates)  # without the lock: other models do not wait for a slow disk
        with self._lock:
            tokenizer = self._loaded.setdefault(key, tokenizer)
            self._loaded.move_to_end(key)
            while len(self._loaded) > _KEEP:
                self._loaded.popitem(last=False)
            return tokenizer

    def forget_turns(self) -> None:
        """Forget the turns of conversations that were encoded; waits for no thread that encodes."""
        with self._lock:
            loaded = list(self._loaded.values())
        for tokenizer in loaded:
            tokenizer.forget_turns()


def _stamps(path: Path) -> Iterator[State]:
    """
    Yield the names and stamps of a model's files, except its weights.

    They belong to the key of the cache: a chat template may change while the weights stay, and copies of a model may
    have different templates.
    """
    for folder in (path, path / ADDITIONAL):
        if folder.is_dir():
            yield state_of(folder, lambda name: not name.endswith(".safetensors"))


def _load(source: ModelSource, templates: Templates) -> Tokenizer:
    """
    Return a model's tokenizer, read from disk.

    Raises:
        SidecarError: As `Tokenizers.get`.
    """
    failpoint("tokenizer.read")
    try:
        with private_copy(source.path, source.roots) as path:  # libraries read a copy and never open the model's files
            named = chat_templates(path)
            # mlx-lm guesses the notation of calls from the template, so it gets the template that knows of tools.
            extra = {"trust_remote_code": False, **({"chat_template": named.widest} if named else {})}
            wrapper = load_tokenizer(path, extra)
            if ends := eos_ids(path, wrapper):  # else the ends that mlx-lm knows for the architecture
                own = wrapper.eos_token_id
                wrapper.eos_token_ids = ends if own is None else {*ends, own}
            tokenizer = Tokenizer(understood(wrapper), templates, named)
            tokenizer.encode("a", special=True)  # settles padding and truncation before another thread decodes
            tokenizer.text_of(0)  # encodes at the first call, and the MLX thread must not wait for its turn in that
            return tokenizer
    except SidecarError:
        raise
    except Exception as error:  # transformers raises anything on a damaged tokenizer
        cannot = f"the tokenizer of {source.name} cannot be loaded"
        fault = machine_fault(error, cannot)
        raise fault or SidecarError(Reason.MODEL_CORRUPT, f"{cannot}: {type(error).__name__}: {error}") from error
