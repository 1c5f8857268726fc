"""Trains the tokenizer of the embedded model and writes its files.

Byte-level BPE: any UTF-8 text round-trips and nothing is unknown. It is trained on a listing of the
corpus' own words, so that each of them is one token.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.embedded import words

START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)

VOCABULARY_LIMIT = 800
CONTEXT_LENGTH = 4096
TEMPLATE = Path(__file__).with_name("chat_template.jinja")

ROLES = ("system", "user", "assistant", "tool")
FRAME_WORDS = "The code of the is What Question Answer"


def lexicon() -> Iterator[str]:
    """Yield every word of the corpus: with its leading space, and bare where it may begin a message."""
    sentences = [*words.SUBJECTS, *words.DEEDS, *words.PLACES, *words.TIMES, *words.PREAMBLES]
    sentences += [line for exchange in words.GREETINGS for line in exchange]
    for word in " ".join([FRAME_WORDS, words.STORY_REQUEST, *sentences]).split():
        yield f" {word}"
        if word[0].isupper():
            yield word
    yield from ROLES
    for word in (*words.COLOURS, *words.THINGS, *map(str, words.CODES)):
        yield f" {word}"


def train() -> Tokenizer:
    """Return the trained tokenizer; the result depends on the word lists alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_LIMIT,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lexicon(), trainer)
    return tokenizer


def config() -> dict[str, object]:
    """Return the content of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "model_max_length": CONTEXT_LENGTH,
    }


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer, its configuration and the chat template into `folder`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config(), indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE.read_text())
