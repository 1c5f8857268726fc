"""A streaming parser that splits an answer into text, reasoning and tool calls, and removes only marks and headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from daemon.engine.output.call_attempts import CallAttempts
from daemon.engine.output.chat_markup import CALL, REASONING, SHOWN, TEXT, ChatMarkup
from daemon.engine.output.reader import Reader, Steps, drive
from daemon.engine.output.tool_calls import CallPiece, Tool, ToolCall

# The parts of an answer
#
# An answer is a sequence of parts. Each part ends with a mark of the model, which tells the next part.
#
#                  start of reasoning              start of a call, with tools
#                <--------------------          ------------------------------->
#      REASONING                        TEXT                                      calls
#                -------------------->          <-------------------------------
#                   end of reasoning                 the end of the last call
#
#   Some models write a header before each part. The mark that ends a header tells the part that follows it.
#
#   part        ends with                          its characters are
#   TEXT        any mark that leads elsewhere      text
#   REASONING   the mark that ends it              reasoning, whatever is mentioned in it
#   a header    a mark behind it                   dropped, but text if they are none, or the first one without an end
#   calls       where the notation ends            calls, or text if they are none (`call_attempts.py`)
#
# A mark of reasoning counts only before the text begins. After that the model writes about its marks.
#
# White space between two calls, and after the last one if nothing follows, is part of the notation.
#
# A call within reasoning is reasoning. But some models forget the mark that ends their reasoning: if the model ends its
# answer directly after such a call, it is a call.


@dataclass(slots=True)
class Parts:
    """
    Parts of an answer that may be sent.

    Attributes:
        text: Text.
        reasoning: Reasoning.
        calls: Whole calls.
        pieces: Pieces of calls, those of `calls` included.
    """

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    pieces: list[CallPiece] = field(default_factory=list)

    def __iadd__(self, other: Parts) -> Parts:
        self.text += other.text
        self.reasoning += other.reasoning
        self.calls += other.calls
        self.pieces += other.pieces
        return self


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """
    What the prompt and the request decide about the reading of an answer.

    Attributes:
        opened: Whether the prompt ends within reasoning.
        reasoned: Whether the prompt ends with the end of reasoning.
        bare: Whether the answer is text from its first token, because it has to be in a form.
        single: Whether the answer is over with its first call; calls behind it are dropped.
        in_form: Whether the answer has to be in a form: once its text has begun, a mark is a part of the text.
        before: Text of the answer that the prompt ends with.
    """

    opened: bool = False
    reasoned: bool = False
    bare: bool = False
    single: bool = False
    in_form: bool = False
    before: str = ""


NO_RULES = AnswerRules()
"""Rules of an answer that is free, to a prompt that ends before it."""


class AnswerParser:
    """
    Splits one answer. The result does not depend on how the answer is cut into pieces.

    Args:
        markup: The model's marks.
        tools: The tools that the model may call.
        rules: What the prompt and the request decide about it.

    Attributes:
        attempts: Reads the calls in it.
        text_began: Whether the answer has text other than white space.
        last_text: Its last character of text so far.
    """

    def __init__(self, markup: ChatMarkup, tools: Sequence[Tool], rules: AnswerRules = NO_RULES) -> None:
        self._markup = markup
        self._rules = rules
        self._reader = Reader()
        self.attempts = CallAttempts(markup.calls, tools, self._reader)
        self.text_began, self.last_text = bool(rules.before.strip()), rules.before[-1:]
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._reasoned = rules.opened or rules.reasoned
        """Whether the answer, or its prompt, has reasoning before the text."""
        self._framed = bool(markup.frame[1]) and not markup.frame[0]
        """Whether the answer is within marks of its own."""
        self._between: str | None = None
        """White space behind a call, not text so far; None if the last part was none."""
        self._part = ""
        """The part that is read now."""
        self._steps = self._answer(REASONING if rules.opened else TEXT if rules.bare else markup.initial)
        drive(self._steps)

    @property
    def calls(self) -> int:
        """Number of tool calls so far."""
        return self.attempts.writer.count

    @property
    def over(self) -> bool:
        """Whether the answer is over because it has its one call."""
        return self._rules.single and self.calls > 0

    @property
    def reasoning(self) -> bool:
        """Whether the model is reasoning."""
        return self._part == REASONING

    def again(self) -> AnswerParser:
        """Return a parser for another answer to the same prompt."""
        return AnswerParser(self._markup, self.attempts.tools, self._rules)

    def add(self, text: str) -> Parts:
        """Take the next piece of the answer and return the parts that are complete now."""
        self._reader.add(text)
        return self._go_on()

    def finish(self, *, ended: bool) -> Parts:
        """
        Return the parts that were held back. Called once, at the end.

        Args:
            ended: Whether the model ended the answer by itself, so that a call without its end mark may be complete.
        """
        self._reader.end(by_model=ended)
        return self._go_on()

    def _go_on(self) -> Parts:
        drive(self._steps)
        parts = Parts("".join(self._text), "".join(self._reasoning), *self.attempts.writer.taken())
        self._text.clear()
        self._reasoning.clear()
        if self._rules.single:
            parts.calls = [call for call in parts.calls if not call.index]
            parts.pieces = [piece for piece in parts.pieces if not piece.index]
        return parts

    def _answer(self, part: str) -> Steps[None]:
        """Read all parts of the answer, beginning with `part`."""
        mark = ""
        self._part = part
        while not self._reader.ended or self._reader.rest():
            if part == TEXT:
                mark = yield from self._read_text()
            elif part == REASONING:
                mark = yield from self._read_reasoning()
            else:
                mark = yield from self._read_header(part, mark)
            self._part = part = yield from self._behind(part, mark)

    def _behind(self, part: str, mark: str) -> Steps[str]:
        """Return the part behind a mark; read the calls that it begins."""
        following = self._markup.edges.get(part, {}).get(mark, TEXT)
        if mark in self._markup.dropped:
            return part
        if part == TEXT and mark and mark in self._markup.frame:
            yield from self._read_frame(mark)
            return TEXT
        if mark in self._starts(part) or following == CALL:
            self._reader.put_back(len(mark))
            if not (yield from self._read_calls(marked=True)):
                self._add_text((self._between or "") + self._reader.take(len(mark)))
                self._between = None
            return TEXT
        if following == SHOWN:
            self._add_text(mark)
            return TEXT
        return following

    def _starts(self, part: str) -> tuple[str, ...]:
        """Return the marks that begin a call in a part."""
        notation = self._markup.calls
        plain = part != TEXT or not self.attempts.allowed or self.attempts.exhausted
        return () if plain or notation is None or CALL in self._markup.targets else notation.starts

    def _marks(self, part: str) -> tuple[str, ...]:
        """Return the marks that end a part."""
        begun = part == TEXT and self.text_began
        if begun and self._rules.in_form:
            return ()
        edges, tools = self._markup.edges.get(part, {}), self.attempts.tools
        led = [mark for mark, to in edges.items() if not (begun and to == REASONING) and (to != CALL or tools)]
        framed = self._markup.frame[1:] if part == TEXT and self._framed else ()
        return (*led, *framed, *self._markup.dropped, *self._starts(part))

    def _read_text(self) -> Steps[str]:
        """Read text and return the mark that ends it."""
        reader = self._reader
        if self._between is not None and (mark := (yield from self._read_between())):
            return mark
        if not self.text_began:
            yield from reader.space(self._add_text)
            early = self._markup.think_end  # a turn without reasoning may begin with the end of it
            first = (early, self._markup.frame[0] if self._reasoned and not self._framed else "")
            mark = yield from reader.maybe(*self._marks(TEXT), *filter(None, first))
            if mark or not (yield from reader.peek()):
                return mark
            if self._opens_with_calls() and (yield from self._read_calls(marked=False)):
                return ""
            self.text_began = True
        return (yield from reader.until(self._marks(TEXT), self._add_text))

    def _read_frame(self, mark: str) -> Steps[None]:
        """Read a mark around the answer. That of its end is one if nothing but calls follows, and else text."""
        if not self._framed:
            self._framed = True
            return
        held: list[str] = []
        yield from self._reader.space(held.append)
        followed = yield from self._reader.peek()
        starts = self._starts(TEXT)
        if followed and not (starts and (yield from self._reader.follows(*starts))):
            self._add_text(mark)
        self._add_text("".join(held))

    def _read_between(self) -> Steps[str]:
        """Read white space behind a call. It is text unless nothing follows, or a call, whose mark is returned."""
        held: list[str] = []
        yield from self._reader.space(held.append)
        mark = yield from self._reader.maybe(*self._starts(TEXT))
        self._between = "".join(held)
        if not mark and (yield from self._reader.peek()):
            self._add_text(self._between)
            self._between = None
        return mark

    def _opens_with_calls(self) -> bool:
        """Whether the answer may begin with calls that have no mark."""
        notation = self._markup.calls
        return self.attempts.allowed and notation is not None and notation.opens_answer

    def _read_calls(self, *, marked: bool) -> Steps[bool]:
        """Read a block of calls, and return whether anything of it was read; see `CallAttempts.read`."""
        before = self.calls
        found = yield from self.attempts.read(marked=marked)
        if found:  # a block may be a header alone, behind which all is text
            self._between = "" if self.calls > before else None
        return found

    def _read_reasoning(self) -> Steps[str]:
        """Read reasoning and return the mark that ends it."""
        reader, notation = self._reader, self._markup.calls
        ends = tuple(self._markup.edges.get(REASONING, {})) + self._markup.dropped
        starts = notation.starts if notation is not None and self.attempts.tools else ()
        while True:
            marks = ends if self.attempts.exhausted else ends + starts
            mark = yield from reader.until(marks, self._add_reasoning)
            if mark not in starts:
                return mark
            reader.put_back(len(mark))
            if (yield from self.attempts.read_last()):
                return ""
            self._add_reasoning(reader.take(len(mark)))

    def _read_header(self, part: str, before: str) -> Steps[str]:
        """
        Read a header and return the mark that ends it. What is no header, but text, stays text.

        Args:
            part: The kind of header.
            before: The mark that led here; empty at the beginning of the answer.
        """
        held: list[str] = []
        mark = yield from self._reader.until(self._marks(part), held.append)
        header = "".join(held)
        begun = before not in ("", *self._markup.message_ends) or header.lstrip().startswith(self._markup.headers)
        if not (mark or begun) or not self._markup.is_header(header):
            self._add_text(header)
        return mark

    def _add_reasoning(self, text: str) -> None:
        self._reasoned = True
        self._reasoning.append(text)

    def _add_text(self, text: str) -> None:
        self._text.append(text)
        self.last_text = text[-1:] or self.last_text
        self.text_began = self.text_began or bool(text.strip())
