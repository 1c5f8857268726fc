"""A streaming parser that splits an answer into text, reasoning and tool calls, and removes only marks and headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from mlx_lm.generate import TextStateMachine

from daemon.engine.output.chat_markup import CALL, REASONING, TEXT, ChatMarkup
from daemon.engine.output.tool_calls import Tool, ToolCall, read

# The states of the parser
#
# mlx-lm's TextStateMachine finds the marks of a model in its answer. It names the part that follows each mark:
# "normal", "reasoning", "tool", or the name of a header. Two facts decide what such a part means here. Without tools in
# the request, calls are text. After text has begun, the model writes about its marks of reasoning, so they are text.
#
#                  think_start                 call_start, with tools
#                <-------------             ------------------------->
#      REASONING                    TEXT                                CALL
#                ------------->             <-------------------------
#                   think_end                        call_end
#
#   The same marks lead from TEXT to QUOTED_REASONING if text other than white space has come before, and to QUOTED_CALL
#   if the request has no tools; they lead back to TEXT in the same way. A call can also begin within reasoning.
#
#   Some models write a header before each part: every mark that begins a header leads to HEADER, and the mark that ends
#   the header leads to its part. The first header is ANSWER_START, which turns out to be text if no mark ends it.
#
#   state             begins                                   its characters are
#   ANSWER_START      with an answer that may have a header    held: a header if a mark follows it, else text
#   HEADER            after a mark                             held, then dropped
#   TEXT              after a mark, or with the answer         text
#   REASONING         before any text, or after a header       reasoning
#   QUOTED_REASONING  from TEXT                                text, with its marks
#   CALL              after its mark                           held until its end, then calls, or text with its marks
#   QUOTED_CALL       after its mark                           text, with its marks
#
# `_next_state` is the whole transition function; `_pass_mark` writes the marks that are text.


class State(Enum):
    """What the characters of an answer belong to."""

    ANSWER_START = auto()
    HEADER = auto()
    TEXT = auto()
    REASONING = auto()
    QUOTED_REASONING = auto()
    CALL = auto()
    QUOTED_CALL = auto()


_HOLDS = (State.ANSWER_START, State.HEADER, State.CALL)
"""States that hold their characters until the end of the state is known."""


@dataclass(slots=True)
class Parts:
    """Parts of an answer that may be sent: text, reasoning and whole calls."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)


class AnswerParser:
    """
    Splits one answer. The result does not depend on how the answer is cut into pieces.

    Args:
        notation: The model's marks.
        tools: The tools that the model may call.
        opened: Whether the prompt ends within reasoning.
        bare: Whether the answer is text from its first token, because it has to be in a form.

    Attributes:
        calls: Number of tool calls so far.
    """

    def __init__(self, notation: ChatMarkup, tools: Sequence[Tool], *, opened: bool, bare: bool = False) -> None:
        self.calls = 0
        self._begins = {"opened": opened, "bare": bare}
        self._notation = notation
        self._tools = tools
        self._text_began = False
        """Whether the answer has text other than white space."""
        self._held: list[str] = []
        """Characters of the state so far, if it holds them."""
        part = REASONING if opened else TEXT if bare else notation.initial
        self._marks = notation.machine.make_state(part)
        state = self._next_state(part)
        self._state: State = State.ANSWER_START if state is State.HEADER else state

    def again(self) -> AnswerParser:
        """Return a parser for another answer to the same prompt."""
        return AnswerParser(self._notation, self._tools, **self._begins)

    def add(self, text: str) -> Parts:
        """Take the next piece of the answer and return the parts that are complete now."""
        parts = Parts()
        self._marks, segments = TextStateMachine.split(self._marks, text)
        for index, (part, piece) in enumerate(segments):
            if index:  # a mark stands before each segment but the first
                self._pass_mark(part, parts)
            self._write(piece, parts)
        return parts

    def finish(self, *, ended: bool) -> Parts:
        """
        Return the parts that were held back. Called once, at the end.

        Args:
            ended: Whether the model ended the answer by itself, so that a call without its end mark may be complete.
        """
        parts = Parts()
        self._marks, unfinished_mark, _ = TextStateMachine.flush(self._marks)
        self._write(unfinished_mark, parts)
        if self._state is State.CALL:
            self._end_call(parts, mark="", complete=ended or not self._notation.call_end)
        elif self._state is State.ANSWER_START and not self._holds_header():
            self._text("".join(self._held), parts)
        return parts

    def _next_state(self, part: str) -> State:
        """Return the state that a mark leads to, given what mlx-lm calls the part behind it."""
        if part == TEXT:
            return State.TEXT
        if part == CALL:
            return State.CALL if self._tools else State.QUOTED_CALL
        if part != REASONING:
            return State.HEADER
        quoted = self._text_began and self._state is State.TEXT
        return State.QUOTED_REASONING if quoted else State.REASONING

    def _pass_mark(self, part: str, parts: Parts) -> None:
        """Go on to the part behind a mark. Marks that turn out to be text are written there."""
        left, self._state = self._state, self._next_state(part)
        if left is State.CALL:
            self._end_call(parts, mark=self._notation.call_end, complete=True)
        elif left is State.QUOTED_CALL:
            self._text(self._notation.call_end, parts)
        elif left is State.QUOTED_REASONING and part != CALL:  # else the mark was that of the call
            self._text(self._notation.think_end, parts)
        if self._state is State.QUOTED_REASONING:
            self._text(self._notation.think_start, parts)
        elif self._state is State.QUOTED_CALL:
            self._text(self._notation.call_start, parts)
        self._held.clear()

    def _holds_header(self) -> bool:
        """Whether the beginning of the answer is a header that was cut short, and not an answer without one."""
        held = "".join(self._held).lstrip()
        return any(held.startswith(mark) for mark in self._notation.headers)

    def _write(self, piece: str, parts: Parts) -> None:
        """Take characters of the current state."""
        state = self._state
        if state is State.REASONING:
            parts.reasoning += piece
        elif state in _HOLDS:
            self._held.append(piece)
        else:
            self._text(piece, parts)

    def _text(self, piece: str, parts: Parts) -> None:
        parts.text += piece
        self._text_began = self._text_began or bool(piece.strip())

    def _end_call(self, parts: Parts, *, mark: str, complete: bool) -> None:
        """Read the call that was held, or pass it on as text, between its marks, if it cannot be read."""
        written = "".join(self._held)
        parse = self._notation.parse
        calls = read(written, parse, self._tools, self.calls) if complete and parse is not None else None
        if calls is None:
            self._text(self._notation.call_start + written + mark, parts)
            return
        self.calls += len(calls)
        parts.calls += calls
