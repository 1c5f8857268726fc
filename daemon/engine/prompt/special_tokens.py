"""
The special tokens of a checkpoint: those that end an answer, and those that are no part of its text.

**The end of an answer.** Checkpoints name it in several files, and in some of them wrongly or not at all:

==========================================================  =====================================================
generation_config.json, else config.json: `eos_token_id`     counts always; mlx-lm reads these two
the other one, and the `text_config` within config.json      counts if the token was added, or nothing else counts
tokenizer_config.json, special_tokens_map.json: `eos_token`  counts always
the chat template                                            counts if it has one of `TURN_ENDS`, an added token
==========================================================  =====================================================

The last row is for checkpoints that were tuned on conversations and kept the end of their base model: the model ends
its turn with a mark, and no file says that this is an end. A mark that only the vocabulary has is no end: many
vocabularies have marks that their model never learnt, or writes within an answer.

**Text.** Tokens that frame turns and texts are left out of it. Any other special token is shown as it is written: it is
a mark that a parser of answers reads, or else part of what the model wrote.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|end_of_turn|>", "<|endofturn|>",
    "<|END_OF_TURN_TOKEN|>", "<|assistant_end|>", "<|end_of_text|>", "<|endoftext|>", "<|end_of_msg|>",
    "<\uff5cend▁of▁sentence\uff5c>", "<seed:eos>", "[e~[", "</s>", "<eos>",
)  # fmt: skip
"""Marks that end a turn, or a text, in the templates of well-known models. None of them stands within an answer."""

_TURN_BEGINS = (
    "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<|turn>", "<|start_of_role|>",
    "<|end_of_role|>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>",
    "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>",
    "[INST]", "[/INST]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>",
)  # fmt: skip
"""Marks that begin a turn, or frame the name of its role."""

_MESSAGES_WITHIN = "<|channel|>"
"""Models with this mark write several messages in an answer, and `<|end|>` ends only one of them."""

_NESTED = ("text_config", "language_config", "llm_config")
"""Where models with images keep the configuration of their language model."""
_FRAMES = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id")


def eos_ids(path: Path, tokenizer: Any) -> frozenset[int]:
    """
    Return the ids that end an answer.

    Args:
        path: A directory with the model's small files.
        tokenizer: The tokenizer, as transformers or mlx-lm has it.
    """
    config = _json(path / "config.json")
    first, *others = _listed([_json(path / "generation_config.json"), config]) or [[]]
    nested = _listed(config.get(name) for name in _NESTED)
    added, vocabulary = tokenizer.added_tokens_decoder, tokenizer.get_vocab()
    ids = {*first, *(id_ for group in (*others, *nested) for id_ in group if id_ in added)}
    tokens = {*_named(path), *_turn_ends(_template(tokenizer), {token.content for token in added.values()})}
    ids |= {vocabulary[token] for token in tokens if token in vocabulary}
    return frozenset(ids or (id_ for group in nested for id_ in group))


def _listed(configs: Iterable[object]) -> list[list[int]]:
    """Return the ids of each configuration that names some: a single id, or a list."""
    values = [config.get("eos_token_id") for config in configs if isinstance(config, dict)]
    groups = [value if isinstance(value, list) else [value] for value in values]
    return [ids for group in groups if (ids := [id_ for id_ in group if type(id_) is int and id_ >= 0])]


def _named(path: Path) -> Iterator[str]:
    """Yield the tokens that the tokenizer's files call the end; some describe a token as an object."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _json(path / name).get("eos_token")
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            yield content


def unwritten_ids(tokenizer: Any, ends: Collection[int]) -> frozenset[int]:
    """
    Return the ids that are no part of an answer's text.

    Args:
        tokenizer: The tokenizer, as transformers or mlx-lm has it.
        ends: The ids that end an answer.
    """
    added = tokenizer.added_tokens_decoder
    marks = {*TURN_ENDS, *_TURN_BEGINS}
    framing = {id_ for id_, token in added.items() if token.special and token.content in marks}
    named = {getattr(tokenizer, name, None) for name in _FRAMES}
    return frozenset(framing | {id_ for id_ in (*named, *ends) if id_ is not None})


def _turn_ends(template: str, added: Collection[str]) -> Iterator[str]:
    """Yield the marks that end turns in a template, of those that were added to a vocabulary."""
    for mark in TURN_ENDS:
        if mark in added and mark in template and not (mark == "<|end|>" and _MESSAGES_WITHIN in added):
            yield mark


def _template(tokenizer: Any) -> str:
    """Return the source of all chat templates of a tokenizer."""
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        return "\n".join(str(source) for source in template.values())
    return template if isinstance(template, str) else ""


def _json(file: Path) -> dict[str, Any]:
    """Return a file's JSON object; an empty one if there is none. mlx-lm passes over a damaged one as well."""
    try:
        value = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
