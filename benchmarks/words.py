"""Prompts with a known number of tokens: one word is one token, in every model written by `shapes`."""

from __future__ import annotations

import random
import string
from itertools import islice, product
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

EOS, UNKNOWN = "<|end|>", "<|unknown|>"
PROMPT_WORDS = 400
"""Number of different words in prompts; every vocabulary contains them."""
_WORDS = [*islice(("".join(letters) for letters in product(string.ascii_lowercase, repeat=2)), PROMPT_WORDS)]


def prompt(seed: str, tokens: int) -> str:
    """Return a text of exactly `tokens` tokens. Equal seeds give equal texts."""
    # `random` with a seed gives the same text in every run.
    return "".join(" " + word for word in random.Random(seed).choices(_WORDS, k=tokens))


def train(path: Path, vocabulary: int) -> None:
    """
    Train a tokenizer of exactly `vocabulary` ids and write it.

    It is byte-level like those of Qwen and Llama, so that each system decodes it with its usual code. Its tokens are
    whole words, so that text can be cut and joined between words without a change of tokens.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [EOS, UNKNOWN]
    trainer = trainers.WordLevelTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    others = ("".join(letters) for size in (3, 4) for letters in product(string.ascii_lowercase, repeat=size))
    words = [*_WORDS, *islice(others, vocabulary - len(_WORDS) - len(special))]
    # Frequent words get the first ids, so that a small vocabulary still contains all words of prompts.
    tokenizer.train_from_iterator([" " + word for word in words + _WORDS], trainer)
    assert tokenizer.get_vocab_size() == vocabulary, "the tokenizer has other ids than the model"
    tokenizer.save(str(path))
