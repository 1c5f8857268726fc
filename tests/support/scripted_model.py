"""
Models with scripted answers: real weights for the engine, in which each token has exactly one likely successor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from tests.support.models import TINY, write_random

_FIRST = 737
_EOS = 2
_SURE = 100.0
"""Lead of the scripted token over any other token, in logits, approximately."""


def scripted_model(path: Path, answers: Mapping[str, Sequence[str]], template: str, **config: Any) -> Path:
    """
    Write a model that answers a prompt by the last words of the prompt, and return its directory.

    The model sees only the last token. So each text that ends a prompt, and each piece of an answer, becomes one token,
    and none of them may occur twice. What else a script depends on, such as the number of tool results, the template
    can look at: it decides with which words the prompt ends.

    Args:
        path: The new directory.
        answers: For each text that ends a prompt, the pieces of its answer.
        template: Its chat template.
        config: Changes to its configuration, such as a longer context.
    """
    words = [word for prompt, answer in answers.items() for word in (prompt, *answer)]
    assert len(set(words)) == len(words), "each piece follows one other, and must be there once"
    ids = {word: number for number, word in enumerate(words, _FIRST)}
    write_random(path, {**TINY["qwen3"], "vocab_size": _FIRST + len(words), **config}, 5)
    _add_tokens(path / "tokenizer.json", ids)
    (path / "chat_template.jinja").write_text(template)
    file = path / "model.safetensors"
    weights = mx.load(str(file))
    assert isinstance(weights, dict)
    weights = {name: array if _is_kept(name) else mx.zeros_like(array) for name, array in weights.items()}
    embedded = weights["model.embed_tokens.weight"]
    head = weights["lm_head.weight"]
    for prompt, answer in answers.items():
        chain = [ids[word] for word in (prompt, *answer)]
        for before, after in zip(chain, [*chain[1:], _EOS], strict=True):
            head[after] += _SURE * embedded[before] / mx.linalg.norm(embedded[before])
    mx.eval(weights)
    mx.save_safetensors(str(file), weights, {"format": "mlx"})
    return path


def _is_kept(name: str) -> bool:
    """Tell which weights stay: with the others zero, no layer changes a token's embedding."""
    return not name.startswith("lm_head") and not name.endswith(("o_proj.weight", "down_proj.weight"))


def _add_tokens(file: Path, ids: Mapping[str, int]) -> None:
    tokenizer = json.loads(file.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    tokenizer["added_tokens"] += [{"id": number, "content": word, **flags} for word, number in ids.items()]
    file.write_text(json.dumps(tokenizer))
