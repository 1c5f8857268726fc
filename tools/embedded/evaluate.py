"""Measures recall on held-out prompts through mlx-lm: `python -m tools.embedded.evaluate`.

Greedy decoding; an answer is right only if its text is exactly the expected sentence and generation
ended by itself. Exits 1 when a form falls below the bound at a length that the bound covers.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from mlx_lm import load, stream_generate

from tools.embedded import corpus
from tools.embedded.corpus import Example
from tools.embedded.model import CHECKPOINT

LENGTHS = (100, 300, 600, 1000, 1500, 2000)
BOUND = 0.95
BOUND_LENGTH = 1000
EARLIER_TURNS = 3
MOST_TOKENS = 24

Form = Callable[[Any, Example], list[int]]


def system_chat(tokenizer: Any, example: Example) -> list[int]:
    """Return the prompt with the facts in the system message."""
    return _render(tokenizer, example.messages())


def user_chat(tokenizer: Any, example: Example) -> list[int]:
    """Return the prompt with the facts and the question in one user message."""
    return _render(tokenizer, [{"role": "user", "content": f"{example.context} {example.question}"}])


def dialogue(tokenizer: Any, example: Example) -> list[int]:
    """Return the prompt in which other questions came first."""
    return _render(tokenizer, example.dialogue(EARLIER_TURNS))


def completion(tokenizer: Any, example: Example) -> list[int]:
    """Return the prompt as running text."""
    ids: list[int] = tokenizer.encode(example.completion())
    return ids


FORMS: dict[str, Form] = {
    "system": system_chat,
    "user": user_chat,
    "dialogue": dialogue,
    "completion": completion,
}


def _render(tokenizer: Any, messages: list[corpus.Message]) -> list[int]:
    """Return the token ids of a chat that waits for the assistant."""
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return ids


def reply(network: Any, tokenizer: Any, prompt: list[int]) -> tuple[str, bool]:
    """Return the greedy continuation of `prompt` and whether it ended by itself."""
    responses = list(stream_generate(network, tokenizer, prompt, max_tokens=MOST_TOKENS))
    return "".join(part.text for part in responses), responses[-1].finish_reason == "stop"


def recall(network: Any, tokenizer: Any, form: Form, examples: list[Example]) -> tuple[float, int]:
    """Return the share of `examples` answered right in `form`, and the mean prompt length."""
    right, tokens = 0, 0
    for example in examples:
        prompt = form(tokenizer, example)
        text, ended = reply(network, tokenizer, prompt)
        right += ended and text.strip() == example.answer
        tokens += len(prompt)
    return right / len(examples), tokens // len(examples)


def main() -> int:
    """Print recall by length and form; return 1 if the bound is missed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=50, help="examples for each length and form")
    parser.add_argument("--bound", type=float, default=BOUND)
    options = parser.parse_args()
    network, tokenizer, *_ = load(str(options.checkpoint))
    print(f"seed {options.seed}, {options.examples} examples each, bound {options.bound}")
    print(f"{'length':>8}", *(f"{name + ' (tokens)':>20}" for name in FORMS))
    missed = False
    for length in LENGTHS:
        examples = list(islice(corpus.held_out(options.seed, length), options.examples))
        print(f"{length:>8}", end="")
        for form in FORMS.values():
            share, tokens = recall(network, tokenizer, form, examples)
            missed |= length <= BOUND_LENGTH and share < options.bound
            print(f" {share:>12.1%} {f'({tokens})':>7}", end="", flush=True)
        print()
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
