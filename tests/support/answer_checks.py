"""Reads an answer with its parser, and checks what holds for any answer: no character is lost, pieces make calls."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from daemon.engine.output.answer_parser import AnswerParser, AnswerRules, Parts
from daemon.engine.output.chat_markup import ChatMarkup
from daemon.engine.output.harmony import understood
from daemon.engine.output.reader import Steps
from daemon.engine.output.tool_calls import CallPiece, Tool, ToolCall
from tests.support.call_writer import Hand
from tests.unit.engine.fake_tokenizer import FakeTokenizer


def markup_of(hand: Hand) -> ChatMarkup:
    """Return the marks of a model that writes in a hand, and reasons between `<think>` tags if it has no headers."""
    words = hand.words if hand.messages else (*hand.words, "<think>", "</think>")
    return ChatMarkup(understood(TokenizerWrapper(FakeTokenizer(words, hand.known_by))))


@dataclass
class Read:
    """What was read of an answer."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def without_ids(self) -> tuple[Any, ...]:
        """Return everything but the ids of calls, which may be random."""
        return self.text, self.reasoning, [(call.index, call.name, call.arguments_json) for call in self.calls]


def read(
    markup: ChatMarkup, tools: Sequence[Tool], pieces: Sequence[str], *, opened: bool = False, ended: bool = True
) -> Read:
    """
    Read an answer that comes in pieces.

    Raises:
        AssertionError: If a character is lost, if the pieces of a call are not the call, or if arguments are no JSON.
    """
    parser = Accountant(markup, tools, AnswerRules(opened=opened))
    parts = Parts()
    for piece in pieces:
        parts += parser.add(piece)
    parts += parser.finish(ended=ended)
    _check_pieces(parts.pieces, parts.calls)
    for call in parts.calls:
        assert isinstance(json.loads(call.arguments_json), dict)
        call.arguments_json.encode()
    parser.check()
    return Read(parts.text, parts.reasoning, parts.calls)


def _check_pieces(pieces: Sequence[CallPiece], calls: Sequence[ToolCall]) -> None:
    """Check that the pieces of each call are the call, and that withdrawn calls are none."""
    streamed: dict[int, list[str]] = {}
    for piece in pieces:
        if piece.withdrawn:
            streamed.pop(piece.index)
        elif piece.name:
            assert piece.index not in streamed
            streamed[piece.index] = [piece.id, piece.name, piece.arguments_json]
        else:
            streamed[piece.index][2] += piece.arguments_json
    assert list(streamed.values()) == [[call.id, call.name, call.arguments_json] for call in calls]


class Accountant(AnswerParser):
    """A parser that notes which characters of the answer became text or reasoning, and where calls ended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._spans: list[tuple[int, int]] = []
        self._ends: list[int] = []
        self._written = ""
        super().__init__(*args, **kwargs)
        keep = self._reader.keep

        def ended() -> int:
            self._ends.append(self._reader.position)
            return keep()

        self.attempts.writer._keep = ended
        read_last = self.attempts.read_last

        def ended_by_calls() -> Steps[bool]:
            found = yield from read_last()
            self._ends += [self._reader.position] if found else []
            return found

        self.attempts.read_last = ended_by_calls  # type: ignore[method-assign]

    def add(self, text: str) -> Parts:
        """Take the next piece of the answer."""
        self._written += text
        return super().add(text)

    def _note(self, text: str) -> None:
        """Note that a text that was read last is sent; a header's mark may have been read behind it."""
        begin = self._written.rindex(text, 0, self._reader.position)
        self._spans.append((begin, begin + len(text)))

    def _add_text(self, text: str) -> None:
        self._note(text)
        super()._add_text(text)

    def _add_reasoning(self, text: str) -> None:
        self._note(text)
        super()._add_reasoning(text)

    def check(self) -> None:
        """
        Check that every character is text, reasoning, or within a call, a mark or a header.

        Raises:
            AssertionError: If one is not.
        """
        at = 0
        for begin, end in sorted(self._spans):
            assert begin >= at, f"text twice: {self._written[begin:at]!r}"
            self._check_gap(at, begin)
            at = end
        self._check_gap(at, len(self._written))

    def _check_gap(self, begin: int, end: int) -> None:
        """Check what is neither text nor reasoning."""
        while begin < end:
            left = self._written[begin:end]
            ends = [at for at in self._ends if begin < at <= end]
            mark = (_HEADER if self._markup.message_ends else _RECIPIENT).match(left)
            length = mark.end() if mark else 0
            length = max([length, *(len(mark) for mark in self._markup.marks if left.startswith(mark))])
            if left.startswith(self._starts_of_calls()) and ends:
                length = _CLOSING.match(self._written, max(ends), end).end() - begin  # type: ignore[union-attr]
            assert length, f"lost: {left!r}"
            begin += length

    def _starts_of_calls(self) -> tuple[str, ...]:
        notation = self._markup.calls
        assert notation is not None
        bare = _BARE.get(notation.name, ("",)) if notation.opens_answer else ()
        return (*notation.starts, *bare)


_BARE = {"Llama 3": ("{",), "Llama 4": ("{", "["), "Gemma 4": ("call:",)}
"""What calls without a mark begin with, where that is known."""
_HEADER = re.compile(r"(?:<\|(?:start|channel|constrain)\|>|\s+|\w{1,20}){0,12}(?=<\|message\|>|to=|$)")
"""The header of a message of gpt-oss."""
_RECIPIENT = re.compile(r"(?:>>>)?\s*all\s*?\n")
"""That of text in Functionary 3.2."""
_CLOSING = re.compile(
    r"(?:\]<\]minimax\[>\[</tool_call>|[\s,\]]|</tool_call>|</seed:tool_call>|</minimax:tool_call>|"
    r"</atem:function_calls>|</｜DSML｜\w+>|"
    r"<｜tool▁calls▁end｜>|<\|tool_calls_section_end\|>|<\|tool_call_end\|>|<tool_call\|>|<end_function_call>|"
    r"<\|/tool_call\|>|</TOOLCALL>|</tool_calls:opensource>|</tool_calls>|<\|END_ACTION\|>|```|</function>|<\|tools_suffix\|>|"
    r"</function_calls>|<\|python_end\|>)*"
)
"""What may stand behind the last call of a block, and white space."""
