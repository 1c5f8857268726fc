"""Model folders with the tokenizer or the chat template of another model, loaded as the engine loads them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from daemon.cache.resolver import Resolver, Wanted
from daemon.engine.prompt.chat_templates import Templates
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.engine.prompt.tokenizers import Tokenizers
from tests.support.models import copy_of_embedded

_SOURCE = Resolver([]).resolve(Wanted("embedded"))
SOURCE = replace(_SOURCE, config={**_SOURCE.config, "vocab_size": 100_000})
"""A model whose vocabulary has room for the marks of any template."""

ENDS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
"""Special tokens that templates write."""


_HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|call|>", "<|end|>", "<|return|>")
"""The marks of gpt-oss, which its template does not write all."""
_MARK = re.compile(r"<[|\uff5c/]?[^<>\s'\"=]+[|\uff5c]?>|\[/?[A-Z_]+\]|<\|\"\|>|\]<\]minimax\[>\[")
"""What looks like a mark of a model in its template."""


def with_template(folder: Path, template: str, templates: Templates) -> Tokenizer:
    """Return the embedded model's tokenizer with another chat template, and with its marks as tokens."""
    path = copy_of_embedded(folder, vocab_size=100_000)
    (path / "chat_template.jinja").write_text(template)
    file = path / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    known = {*(token["content"] for token in tokenizer["added_tokens"]), *tokenizer["model"]["vocab"], *ENDS.values()}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    found = {*_MARK.findall(template), *(_HARMONY if _HARMONY[1] in template else ())}
    marks = sorted(found - known)
    first = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"] += [{"id": first + n, "content": mark, **flags} for n, mark in enumerate(marks)]
    file.write_text(json.dumps(tokenizer))
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**config, **ENDS}))
    return loaded(path, templates)


def with_tokenizer(folder: Path, files: dict[str, str | bytes], templates: Templates) -> Tokenizer:
    """
    Return the tokenizer that is described by files of its own.

    Args:
        folder: An empty folder for the model.
        files: Names and contents of its files.
        templates: Renders its template.
    """
    path = copy_of_embedded(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (path / name).unlink()
    config = json.loads((path / "config.json").read_text())
    del config["eos_token_id"]  # the tokenizer's own counts
    (path / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return loaded(path, templates)


def loaded(path: Path, templates: Templates) -> Tokenizer:
    """Return the tokenizer of a model folder."""
    return Tokenizers(templates).get(Resolver([]).resolve(Wanted(str(path))))
