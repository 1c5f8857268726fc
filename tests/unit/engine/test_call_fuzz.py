"""Answers of random calls in each notation are read as they were written, and nothing of broken ones is lost."""

from __future__ import annotations

import json
import secrets
import tracemalloc
from collections.abc import Callable
from random import Random

import pytest

from daemon.engine.output.call_attempts import MOST_AGAIN
from daemon.engine.output.reader import MOST_KEPT, Reader
from daemon.engine.output.tool_calls import Tool
from tests.support.answer_checks import markup_of, read
from tests.support.call_breaker import broken, pieces
from tests.support.call_writer import HANDS, Answer, Hand, answer

ANSWERS = 30
SEED = secrets.randbelow(2**32)
LONG = 30_000
"""Characters of a flood."""


@pytest.mark.parametrize("name", HANDS)
def test_written_calls_are_read_as_written(name: str) -> None:
    """Their types come from the schema, and all else is text or reasoning."""
    marks = markup_of(HANDS[name])
    for seed in range(SEED, SEED + ANSWERS):
        written = answer(HANDS[name], Random(seed))
        found = read(marks, written.tools, [written.written], opened=written.opened)
        calls = [(call.name, json.loads(call.arguments_json)) for call in found.calls]
        assert calls == [(call.name, dict(call.arguments)) for call in written.calls], f"seed {seed}"
        assert (found.reasoning, found.text) == (written.reasoning, written.text), f"seed {seed}"


@pytest.mark.parametrize("name", HANDS)
def test_broken_calls_lose_no_character(name: str) -> None:
    """And they are read alike in any pieces. `read` checks the characters, the streamed pieces and the JSON."""
    marks = markup_of(HANDS[name])
    for seed in range(SEED, SEED + ANSWERS):
        random = Random(seed)
        whole = answer(HANDS[name], random)
        written, ended = broken(whole.written, random), random.random() < 0.5
        try:
            results = [
                read(marks, whole.tools, parts, opened=whole.opened, ended=ended).without_ids()
                for parts in ([written], pieces(written, random))
            ]
        except Exception as error:
            raise AssertionError(f"seed {seed}: {written!r}") from error
        assert results[0] == results[1], f"seed {seed}: {written!r}"


FLOODS: dict[str, Callable[[Hand, str], str]] = {
    "marks": lambda hand, whole: hand.start or "{",
    "calls that do not end": lambda hand, whole: whole[: len(whole) * 2 // 3],
    "calls": lambda hand, whole: whole,
    "a string that does not end": lambda hand, whole: "x",
    "ends of values": lambda hand, whole: "".join(hand.raw) or '"',
    "white space": lambda hand, whole: " ",
    "lists within lists": lambda hand, whole: "[",
    "objects within objects": lambda hand, whole: '{"a":',
}


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("name", ["Hermes", "GLM 4.7", "MiniMax M3", "LFM2"])
def test_reading_takes_linear_time(monkeypatch: pytest.MonkeyPatch, name: str, flood: str) -> None:
    """Counted in characters that are taken: twice at most, and a fixed number for attempts that fail."""
    hand, taken = HANDS[name], 0
    take = Reader.take

    def counted(reader: Reader, length: int) -> str:
        nonlocal taken
        taken += length
        return take(reader, length)

    monkeypatch.setattr(Reader, "take", counted)
    whole, begun = _with_text(hand)
    unit = FLOODS[flood](hand, whole.written)
    for written in (unit * (LONG // len(unit)), begun + unit * (LONG // len(unit))):
        for size in (len(written), 100):
            taken = 0
            read(markup_of(hand), whole.tools, [written[at : at + size] for at in range(0, len(written), size)])
            assert taken <= 4 * len(written) + MOST_AGAIN + MOST_KEPT


def test_long_tag_takes_linear_memory() -> None:
    """The name of an element of MiniMax M3 is what the model wrote, and a part of a mark."""
    hand = HANDS["MiniMax M3"]
    mark, tag = "]<]minimax[>[", "x" * 10_000
    call = f'{mark}<tool_call>{mark}<invoke name="f">{mark}<{tag}>1{mark}</{tag}>{mark}</invoke>{mark}</tool_call>'
    tracemalloc.start()
    found = read(markup_of(hand), [Tool("f", "", {})], [call])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert json.loads(found.calls[0].arguments_json) == {tag: 1}
    assert peak < 100 * len(call)


def _with_text(hand: Hand) -> tuple[Answer, str]:
    """Return an answer of one call with a long text as argument, and its beginning up to the middle of that text."""
    for seed in range(10_000):
        found = answer(hand, Random(seed))
        texts = [value for call in found.calls for value in call.arguments.values() if isinstance(value, str)]
        if len(found.calls) == 1 and not found.reasoning and any(len(text) > 3 and text.isalnum() for text in texts):
            text = next(text for text in texts if len(text) > 3 and text.isalnum())
            if text in found.written:
                return found, found.written[: found.written.index(text) + 2]
    raise AssertionError("no such answer")
