"""Training documents: the text of the corpus cut into pieces that say how each is to be learned.

Four kinds of document: `drill` (bare key-value rows, the easiest form of recall), `plain` (a passage
with questions as running text), `chat` (the same as ChatML turns) and `talk` (turns without facts).
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from tools.embedded import corpus, words
from tools.embedded.corpus import Fact
from tools.embedded.tokenizer import END_OF_TURN, START_OF_TURN

PASSAGE_SHARE = (0.25, 0.92)
RESTATED_SHARE = 0.3
PREAMBLE_SHARE = 0.4
SMALL_TALK_SHARE = 0.02
STORY_SENTENCES = (15, 40)
LEADS = (" ", " ", "\n")  # between sentences


class Role(Enum):
    """How a piece counts in the loss."""

    IGNORED = "ignored"  # cannot be predicted, or must not be imitated
    TEXT = "text"  # ordinary text, learned lightly
    REPLY = "reply"  # what an assistant writes, but for the recalled code
    RECALLED = "recalled"  # follows only from a fact stated earlier


@dataclass(frozen=True)
class Piece:
    """A run of text with tokens of one role.

    It is tokenized alone, so a space between two words must stand at the start of a piece.
    """

    text: str
    role: Role


Document = Iterator[Piece]
Kind = Callable[[random.Random, int, int], Document]


def drill(rng: random.Random, tokens: int, most_facts: int) -> Document:
    """Yield rows "blue box is 74" without end of document; each key but the first time is recalled."""
    known = corpus.facts(rng, rng.randint(4, most_facts), corpus.TRAINING_PAIRS)
    seen: set[Fact] = set()
    for _ in range(tokens // 4 + 1):
        fact = rng.choice(known)
        yield Piece(f" {fact.colour} {fact.thing} is", Role.IGNORED)
        yield Piece(f" {fact.code}", Role.RECALLED if fact in seen else Role.IGNORED)
        seen.add(fact)


def plain(rng: random.Random, tokens: int, most_facts: int) -> Document:
    """Yield a passage, then questions with their answers, as running text."""
    known, count = _plan(rng, tokens, most_facts)
    yield from _passage(rng, known, count)
    lead = rng.choice(LEADS)
    for _ in range(tokens // 22):
        fact = rng.choice(known)
        yield Piece(corpus.completion_question(corpus.question(fact), lead), Role.IGNORED)
        yield from _answer(fact, " ")
        if rng.random() < 0.5:
            yield Piece(END_OF_TURN, Role.REPLY)


def chat(rng: random.Random, tokens: int, most_facts: int) -> Document:
    """Yield a conversation with the passage in its first message."""
    known, count = _plan(rng, tokens, most_facts)
    in_system = rng.random() < 0.5
    yield Piece(f"{START_OF_TURN}{'system' if in_system else 'user'}\n", Role.TEXT)
    preamble = rng.choice(words.PREAMBLES) if rng.random() < PREAMBLE_SHARE else ""
    yield Piece(preamble, Role.IGNORED)
    yield from _passage(rng, known, count, rng.choice(LEADS) if preamble else "")
    if in_system:
        yield Piece(f"{END_OF_TURN}\n{START_OF_TURN}user\n", Role.IGNORED)
    yield from _turn(rng, rng.choice(known), "" if in_system else rng.choice(LEADS))
    while True:
        yield Piece(f"\n{START_OF_TURN}user\n", Role.IGNORED)
        yield from _turn(rng, rng.choice(known), "")


def talk(rng: random.Random, tokens: int, most_facts: int) -> Document:
    """Yield a conversation without facts: small talk, then a story that fills the document."""
    for _ in range(rng.randint(0, 3)):
        yield Piece(f"{START_OF_TURN}user\n", Role.IGNORED)
        yield from _small_talk(rng)
        yield Piece("\n", Role.IGNORED)
    yield Piece(f"{START_OF_TURN}user\n", Role.IGNORED)
    yield from _story(rng)


def _plan(rng: random.Random, tokens: int, most_facts: int) -> tuple[list[Fact], int]:
    """Return the facts of a document of `tokens` tokens and the sentence count of its passage."""
    sentences = max(5, round(tokens * rng.uniform(*PASSAGE_SHARE)) // 9)
    most = max(4, min(most_facts, sentences))
    return corpus.facts(rng, rng.randint(4, most), corpus.TRAINING_PAIRS), sentences


def _passage(rng: random.Random, known: Sequence[Fact], count: int, lead: str = "") -> Document:
    """Yield `lead`, then each of `known` with filler and restatements up to `count` sentences."""
    spare = max(0, count - len(known))
    restated = round(spare * rng.choice((0.0, RESTATED_SHARE)))
    sentences: list[Fact | None] = [*known, *rng.choices(known, k=restated), *[None] * (spare - restated)]
    rng.shuffle(sentences)
    between = rng.choice(LEADS)
    seen: set[Fact] = set()
    for index, fact in enumerate(sentences):
        space = between if index else lead
        if fact is None:
            yield Piece(space + corpus.filler_sentence(rng), Role.TEXT)
            continue
        yield Piece(f"{space}The code of the {fact.colour} {fact.thing} is", Role.TEXT)
        yield Piece(f" {fact.code}", Role.RECALLED if fact in seen else Role.IGNORED)
        yield Piece(".", Role.TEXT)
        seen.add(fact)


def _answer(fact: Fact, space: str) -> Document:
    """Yield the answer about `fact`, without its end of turn."""
    yield Piece(f"{space}The code of the {fact.colour} {fact.thing} is", Role.REPLY)
    yield Piece(f" {fact.code}", Role.RECALLED)
    yield Piece(".", Role.REPLY)


def _turn(rng: random.Random, fact: Fact, lead: str) -> Document:
    """Yield a user's question, after `lead`, and the assistant's answer; now and then small talk instead."""
    if rng.random() < SMALL_TALK_SHARE:
        yield from _small_talk(rng, lead)
        return
    yield Piece(lead + corpus.question(fact), Role.IGNORED)
    yield from _reply(*_answer(fact, ""))


def _small_talk(rng: random.Random, lead: str = "") -> Document:
    """Yield an exchange that needs no facts; the user's words follow `lead`."""
    asked, said = rng.choice(words.GREETINGS)
    yield Piece(lead + asked, Role.IGNORED)
    yield from _reply(Piece(said, Role.REPLY))


def _story(rng: random.Random) -> Document:
    """Yield the request for a story and the story."""
    sentences = [corpus.filler_sentence(rng) for _ in range(rng.randint(*STORY_SENTENCES))]
    yield Piece(words.STORY_REQUEST, Role.IGNORED)
    yield from _reply(Piece(" ".join(sentences), Role.REPLY))


def _reply(*pieces: Piece) -> Document:
    """Yield `pieces` as the assistant's turn."""
    yield Piece(f"{END_OF_TURN}\n{START_OF_TURN}assistant\n", Role.IGNORED)
    yield from pieces
    yield Piece(END_OF_TURN, Role.REPLY)
