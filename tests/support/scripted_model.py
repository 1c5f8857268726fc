"""A model that says what a test wrote: real for the engine, with weights that make each token follow one other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlx.core as mx

from tests.support.models import TINY, write_random

_FIRST = 737
_EOS = 2
_SURE = 100.0
"""How much more likely than any other token the right one is, about, in logits."""


def scripted_model(path: Path, answers: Mapping[str, Sequence[str]], template: str) -> Path:
    """
    Write a model that gives each prompt the answer of the last words in it.

    Nothing of a prompt but its last token counts. So each of the words, and each piece of an answer, is a token of its
    own, and none may be there twice.

    Args:
        path: Where to put it.
        answers: For what a prompt may end with, the pieces of the answer.
        template: Its chat template.
    """
    words = [word for prompt, answer in answers.items() for word in (prompt, *answer)]
    assert len(set(words)) == len(words), "each piece follows one other, and must be there once"
    ids = {word: number for number, word in enumerate(words, _FIRST)}
    write_random(path, {**TINY["qwen3"], "vocab_size": _FIRST + len(words)}, 5)
    _add_tokens(path / "tokenizer.json", ids)
    (path / "chat_template.jinja").write_text(template)
    file = path / "model.safetensors"
    weights = mx.load(str(file))
    assert isinstance(weights, dict)
    weights = {name: array if _is_kept(name) else mx.zeros_like(array) for name, array in weights.items()}
    embedded = weights["model.embed_tokens.weight"]
    head = weights["lm_head.weight"]
    for prompt, answer in answers.items():
        said = [ids[word] for word in (prompt, *answer)]
        for before, after in zip(said, [*said[1:], _EOS], strict=True):
            head[after] += _SURE * embedded[before] / mx.linalg.norm(embedded[before])
    mx.eval(weights)
    mx.save_safetensors(str(file), weights, {"format": "mlx"})
    return path


def _is_kept(name: str) -> bool:
    """Layers that write nothing leave a token's embedding as it is."""
    return not name.startswith("lm_head") and not name.endswith(("o_proj.weight", "down_proj.weight"))


def _add_tokens(file: Path, ids: Mapping[str, int]) -> None:
    tokenizer = json.loads(file.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    tokenizer["added_tokens"] += [{"id": number, "content": word, **flags} for word, number in ids.items()]
    file.write_text(json.dumps(tokenizer))
