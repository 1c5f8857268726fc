"""Whatever a mask of tool calls allows is read as a call, with arguments that the schema of its tool allows."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer, TokenizerWrapper

from daemon.engine.output.tool_calls import Tool
from daemon.engine.structured_output.call_grammar import CallGrammar
from daemon.engine.structured_output.matcher import GrammarMatcher, Vocabulary
from daemon.shared.errors import SidecarError
from tests.support.answer_checks import markup_of, read
from tests.support.call_writer import HANDS
from tests.unit.engine.schemas import SCHEMAS, objects

MOST = 400
"""Tokens of a call."""
EOS = 256
ENDS = (
    "</parameter>\n", "\n</parameter>\n", "</arg_value>", "</longcat_arg_value>", "</｜DSML｜parameter>\n", "</param>",
    "]]></param>", "<![CDATA[", '<|"|>', "<escape>", "</arg_value:opensource>\n", "]<]minimax[>[</", "true", "null",
    "5",
)  # fmt: skip
"""Texts that a random walk would not find, as a model with such tokens does."""

MIXED: list[dict[str, Any]] = [
    {"type": ["string", "null"], "enum": ["red", "blue", None]},
    {"type": "string", "enum": ["red", "5"]},
    {"type": ["string", "integer"]},
    {"anyOf": [{"enum": ["red"]}, {"type": "integer", "minimum": 3}]},
    {"enum": ["5", 5, True, None, "null"]},
    {"const": "x y"},
    {"const": [1, "a"]},
    {"type": ["string", "null"]},
    {"type": ["boolean", "string"]},
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}, "maxItems": 2}]},
    {"type": "array", "items": {"enum": ["a", None]}, "maxItems": 2},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "object", "properties": {"in": {"type": ["string", "integer"]}}, "additionalProperties": False},
]
"""Schemas of values that are strings or something else."""


class Walker:
    """A tokenizer of bytes and some longer texts, as llguidance's TokenizerWrapper reads it."""

    bos_token_id = None
    eos_token_id = EOS
    special_token_ids = (EOS,)
    tokens = (*(bytes([byte]) for byte in range(EOS)), b"<eos>", *(text.encode() for text in ENDS))

    def __call__(self, text: str | bytes) -> list[int]:
        """Return the bytes of a text."""
        return list(text.encode() if isinstance(text, str) else text)


TOKENS = Vocabulary(LLTokenizer(TokenizerWrapper(Walker()), eos_token=[EOS], slices=[]), {})


@pytest.mark.parametrize("name", [name for name in HANDS if (one := markup_of(HANDS[name]).calls) and one.syntax])
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=objects(st.one_of(SCHEMAS, st.sampled_from(MIXED))), seed=st.integers(0, 2**32))
def test_masked_calls_fit_their_schema(name: str, schema: dict[str, Any], seed: int) -> None:
    """For any schema that is not refused, and any tokens that are not masked."""
    markup = markup_of(HANDS[name])
    notation = markup.calls
    assert notation is not None
    assert notation.syntax is not None
    tool = Tool("run", "", schema)
    try:
        grammar = CallGrammar(notation.syntax, TOKENS).required({"chat.tools[0]": tool}, once=True)
        matcher = GrammarMatcher("chat.tools", grammar, TOKENS)
    except SidecarError:
        assume(False)
    written = _walked(matcher, Random(seed))
    assume(written is not None)
    assert written is not None
    found = read(markup, [tool], [written])
    assert len(found.calls) == 1, written
    jsonschema.validate(json.loads(found.calls[0].arguments_json), schema)


def _walked(matcher: GrammarMatcher, random: Random) -> str | None:
    """Return a random text that a grammar allows; None if it has no end, or parts of characters."""
    written = b""
    for _ in range(MOST):
        mask = matcher.allowed()
        allowed = [token for token in range(len(Walker.tokens)) if mask[token // 8] >> token % 8 & 1]
        if EOS in allowed:
            break
        longer, plain = [one for one in allowed if one > EOS], [one for one in allowed if 32 <= one < 127]
        liked = longer if longer and random.random() < 0.4 else plain if plain and random.random() < 0.9 else allowed
        token = random.choice(liked)
        matcher.take(token)
        written += Walker.tokens[token]
    else:
        return None
    try:
        return written.decode()
    except UnicodeDecodeError:
        return None
