"""Prompts whose tokens are known: one word is one token, in every model that `shapes` makes."""

from __future__ import annotations

import random
import string
from itertools import islice, product
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

EOS, UNKNOWN = "<|end|>", "<|unknown|>"
PROMPT_WORDS = 400
"""Words that prompts are made of; every vocabulary has them."""
_WORDS = [*islice(("".join(letters) for letters in product(string.ascii_lowercase, repeat=2)), PROMPT_WORDS)]


def prompt(seed: str, tokens: int) -> str:
    """Return a text of exactly so many tokens, the same for the same seed and hardly twice for two."""
    # Not for secrets, and the same in every run.
    return "".join(" " + word for word in random.Random(seed).choices(_WORDS, k=tokens))


def train(path: Path, vocabulary: int) -> None:
    """
    Train a tokenizer of exactly `vocabulary` ids and write it.

    Byte-level like those of Qwen and Llama, so that each side decodes with the code that it has for them; but with
    whole words for tokens, so that text can be cut and joined anywhere without its tokens changing.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [EOS, UNKNOWN]
    trainer = trainers.WordLevelTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    others = ("".join(letters) for size in (3, 4) for letters in product(string.ascii_lowercase, repeat=size))
    words = [*_WORDS, *islice(others, vocabulary - len(_WORDS) - len(special))]
    # More often means first: prompts must keep their words when the vocabulary is cut.
    tokenizer.train_from_iterator([" " + word for word in words + _WORDS], trainer)
    assert tokenizer.get_vocab_size() == vocabulary, "the tokenizer has other ids than the model"
    tokenizer.save(str(path))
