"""Facts, passages and held-out questions of the recall task, from a seed.

The task: a passage states facts ("The code of the blue box is 74.") among filler sentences, and a
question asks for one of them. Only the passage says which code belongs to which key, so an answer
computed from the wrong prefix is a wrong answer.

Training and held-out text never share a context: their generators are seeded from different
namespaces (`training_rng`, `held_out_rng`), and the pairs in `RESERVED_PAIRS` do not occur in
training text at all. Pure standard library, so that tests may import it freely.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from tools.embedded import words

Pair = tuple[str, str]
Message = dict[str, str]

RESERVED_SHARE = 8
FILLER_SHARE = 0.35
MOST_FACTS = 96

ALL_PAIRS: tuple[Pair, ...] = tuple(product(words.COLOURS, words.THINGS))
RESERVED_PAIRS: tuple[Pair, ...] = tuple(
    (colour, thing)
    for (i, colour), (j, thing) in product(enumerate(words.COLOURS), enumerate(words.THINGS))
    if (i + j) % RESERVED_SHARE == 0
)
TRAINING_PAIRS: tuple[Pair, ...] = tuple(sorted(set(ALL_PAIRS) - set(RESERVED_PAIRS)))


@dataclass(frozen=True)
class Fact:
    """One recallable fact: the key is (`colour`, `thing`), the value is the two-digit `code`."""

    colour: str
    thing: str
    code: int


@dataclass(frozen=True)
class Example:
    """A held-out prompt: `context` states each of `facts` once, `question` asks for the first of them."""

    context: str
    question: str
    answer: str
    facts: tuple[Fact, ...]

    def messages(self) -> list[Message]:
        """Return the chat form: the context as system message, the question as user message."""
        return [{"role": "system", "content": self.context}, {"role": "user", "content": self.question}]

    def dialogue(self, turns: int) -> list[Message]:
        """Return the chat form with `turns` other questions asked and answered before this one."""
        system, last = self.messages()
        earlier: list[Message] = []
        for fact in self.facts[1 : turns + 1]:
            earlier += [{"role": "user", "content": question(fact)}]
            earlier += [{"role": "assistant", "content": answer(fact)}]
        return [system, *earlier, last]

    def completion(self) -> str:
        """Return the plain form; the right continuation is `" " + answer`."""
        return self.context + completion_question(self.question)


def training_rng(seed: int, step: int) -> random.Random:
    """Return the generator of one training step."""
    return random.Random(f"training/{seed}/{step}")


def held_out_rng(seed: int) -> random.Random:
    """Return a generator of contexts that are never trained on."""
    return random.Random(f"held-out/{seed}")


def facts(rng: random.Random, n: int, pairs: Sequence[Pair] = ALL_PAIRS) -> list[Fact]:
    """Return `n` facts with distinct keys drawn from `pairs`; codes may coincide."""
    return [Fact(colour, thing, rng.choice(words.CODES)) for colour, thing in rng.sample(pairs, n)]


def statement(fact: Fact) -> str:
    """Return the sentence that states `fact`."""
    return f"The code of the {fact.colour} {fact.thing} is {fact.code}."


def question(fact: Fact) -> str:
    """Return the question that `answer(fact)` answers."""
    return f"What is the code of the {fact.colour} {fact.thing}?"


def answer(fact: Fact) -> str:
    """Return the expected answer: the sentence that stated the fact."""
    return statement(fact)


def completion_question(text: str, lead: str = " ") -> str:
    """Return the suffix that asks `text` after a plain passage, its two parts each after `lead`."""
    return f"{lead}Question: {text}{lead}Answer:"


def filler_sentence(rng: random.Random) -> str:
    """Return one sentence that states no fact."""
    parts = (words.SUBJECTS, words.DEEDS, words.PLACES, words.TIMES)
    return " ".join(rng.choice(part) for part in parts) + "."


def passage(rng: random.Random, stated: Sequence[Fact], filler: int) -> str:
    """Return the statements of `stated` and `filler` other sentences as one text in random order."""
    sentences = [statement(fact) for fact in stated] + [filler_sentence(rng) for _ in range(filler)]
    rng.shuffle(sentences)
    return " ".join(sentences)


def token_estimate(text: str) -> int:
    """Return the token count of corpus text: one for each word, number and punctuation mark."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def held_out(seed: int, tokens_hint: int) -> Iterator[Example]:
    """Yield examples without end, each with its own context of about `tokens_hint` tokens.

    Every second question is about a pair that training never used. The same `seed` and
    `tokens_hint` give the same examples.
    """
    rng = held_out_rng(seed)
    size = token_estimate(statement(Fact("blue", "box", 10)))
    sentences = max(4, tokens_hint // size)
    filler = round(sentences * FILLER_SHARE)
    count = min(sentences - filler, MOST_FACTS)
    while True:
        for pool in (TRAINING_PAIRS, RESERVED_PAIRS):
            yield _example(rng, pool, count, sentences - count)


def contrast(rng: random.Random, example: Example) -> Example:
    """Return `example` with another code for the asked fact and every other character the same."""
    asked, *others = example.facts
    changed = replace(asked, code=rng.choice([code for code in words.CODES if code != asked.code]))
    context = example.context.replace(statement(asked), statement(changed))
    return Example(context, example.question, answer(changed), (changed, *others))


def _example(rng: random.Random, pool: Sequence[Pair], count: int, filler: int) -> Example:
    """Return an example that asks about a pair of `pool` among `count` facts."""
    asked = facts(rng, 1, pool)[0]
    others = [pair for pair in ALL_PAIRS if pair != (asked.colour, asked.thing)]
    stated = [asked, *facts(rng, count - 1, others)]
    return Example(passage(rng, stated, filler), question(asked), answer(asked), tuple(stated))
