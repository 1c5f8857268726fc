"""A streaming parser that splits an answer into text, reasoning and tool calls, and removes only marks and headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from daemon.engine.output.chat_markup import CALL, REASONING, SHOWN, TEXT, ChatMarkup
from daemon.engine.output.reader import Malformed, Reader, Steps, drive
from daemon.engine.output.tool_calls import CallPiece, CallWriter, Tool, ToolCall

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
#   calls       where the notation ends            calls, or text if they are none
#
# A mark of reasoning counts only before the text begins. After that the model writes about its marks.
#
# The parser of a notation reads calls (`notations/`). Where it fails, the mark that began the attempt is text, and
# reading goes on behind it: another call may stand there. Each attempt reads its text once more, so the attempts of an
# answer are limited (`MOST_AGAIN`), and the time stays linear.
#
# White space between two calls, and after the last one if nothing follows, is part of the notation.
#
# A call within reasoning is reasoning. But some models forget the mark that ends their reasoning: if the model ends its
# answer directly after such a call, it is a call.

MOST_AGAIN = 256 * 1024
"""Characters that failed attempts may read again, besides twice the length of the answer. Then marks are text."""


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


class AnswerParser:
    """
    Splits one answer. The result does not depend on how the answer is cut into pieces.

    Args:
        markup: The model's marks.
        tools: The tools that the model may call.
        opened: Whether the prompt ends within reasoning.
        bare: Whether the answer is text from its first token, because it has to be in a form.
        single: Whether the answer is over with its first call; calls behind it are dropped.
        in_form: Whether the answer has to be in a form: once its text has begun, a mark is a part of the text.
        before: Text of the answer that the prompt ends with.

    Attributes:
        text_began: Whether the answer has text other than white space.
        last_text: Its last character of text so far.
        blocks: Blocks of calls that began with their mark, calls or not.
        unread: Why the last text behind the mark of a call was no call; empty if each was one.
    """

    def __init__(
        self, markup: ChatMarkup, tools: Sequence[Tool], *, opened: bool, bare: bool = False, single: bool = False,
        in_form: bool = False, before: str = "",
    ) -> None:  # fmt: skip
        self._markup = markup
        self._begins = {"opened": opened, "bare": bare, "single": single, "in_form": in_form}
        self._before = before
        self._tools = tools if markup.calls is not None else ()
        self._reads = bool(self._tools) or (markup.calls is not None and markup.calls.addressed)
        self._reader = Reader()
        self._writer = CallWriter(self._tools, self._reader.keep)
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._read_again = 0
        """Characters that failed attempts have read."""
        self.blocks, self.unread = 0, ""
        self._in_block = False
        """Whether a block of calls is read that began with its mark."""
        self.text_began, self.last_text = bool(before.strip()), before[-1:]
        self._reasoned = opened
        """Whether the answer began with reasoning."""
        self._framed = False
        """Whether the answer is within marks of its own."""
        self._between: str | None = None
        """White space behind a call, not text so far; None if the last part was none."""
        self._part = ""
        """The part that is read now."""
        self._steps = self._answer(REASONING if opened else TEXT if bare else markup.initial)
        drive(self._steps)

    @property
    def calls(self) -> int:
        """Number of tool calls so far."""
        return self._writer.count

    @property
    def over(self) -> bool:
        """Whether the answer is over because it has its one call."""
        return self._begins["single"] and self.calls > 0

    @property
    def call_text(self) -> str:
        """What was written since the mark of a block of calls that is being written; empty if none is."""
        return self._reader.kept() if self._in_block else ""

    @property
    def reasoning(self) -> bool:
        """Whether the model is reasoning."""
        return self._part == REASONING

    def again(self) -> AnswerParser:
        """Return a parser for another answer to the same prompt."""
        return AnswerParser(self._markup, self._tools, before=self._before, **self._begins)

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
        parts = Parts("".join(self._text), "".join(self._reasoning), *self._writer.taken())
        self._text.clear()
        self._reasoning.clear()
        if self._begins["single"]:
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
            self._in_block = True
            self.blocks += 1
            found = yield from self._read_calls()
            self._in_block = False
            if not found:
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
        plain = part != TEXT or not self._reads or self._tired()
        return () if plain or notation is None or CALL in self._markup.targets else notation.starts

    def _tired(self) -> bool:
        """Whether failed attempts have read so much again that no other is made."""
        return self._read_again > MOST_AGAIN + 2 * self._reader.position

    def _marks(self, part: str) -> tuple[str, ...]:
        """Return the marks that end a part."""
        begun = part == TEXT and self.text_began
        if begun and self._begins["in_form"]:
            return ()
        edges = self._markup.edges.get(part, {})
        led = [mark for mark, to in edges.items() if not (begun and to == REASONING) and (to != CALL or self._tools)]
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
            if self._opens_with_calls() and (yield from self._read_calls()):
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
        return self._reads and notation is not None and notation.opens_answer

    def _read_calls(self) -> Steps[bool]:
        """Read a block of calls. Return False if not even one is whole; the reader is behind the last one."""
        notation, reader = self._markup.calls, self._reader
        assert notation is not None
        before, calls = reader.keep(), self._writer.count
        try:
            yield from notation.read(reader, self._writer)
        except Malformed as error:
            if self._in_block:
                self.unread = str(error)
            self._writer.withdraw()
            self._go_back(reader.kept_from or 0)
        reader.forget()
        if reader.position > before:  # a block may be a header alone, behind which all is text
            self._between = "" if self._writer.count > calls else None
        return reader.position > before

    def _go_back(self, position: int) -> None:
        self._read_again += self._reader.position - position
        self._reader.back_to(position)

    def _read_reasoning(self) -> Steps[str]:
        """Read reasoning and return the mark that ends it."""
        reader, notation = self._reader, self._markup.calls
        ends = tuple(self._markup.edges.get(REASONING, {})) + self._markup.dropped
        starts = notation.starts if notation is not None and self._tools else ()
        while True:
            marks = ends + starts if not self._tired() else ends
            mark = yield from reader.until(marks, self._add_reasoning)
            if mark not in starts:
                return mark
            reader.put_back(len(mark))
            if (yield from self._read_last_calls()):
                return ""
            self._add_reasoning(reader.take(len(mark)))

    def _read_last_calls(self) -> Steps[bool]:
        """Read calls that end the answer. Return False if there are none, or if anything follows them."""
        notation, reader = self._markup.calls, self._reader
        assert notation is not None
        before = reader.keep()
        found = CallWriter(self._tools, lambda: before, self._writer.count)
        try:
            while not reader.exhausted:
                yield from notation.read(reader, found)
                yield from reader.space()
            last = reader.by_model
        except Malformed:
            last = False
        if last:
            self._writer.take_over(found)
        else:
            self._go_back(before)
        reader.forget()
        return last

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
