"""Channels: an answer taken apart into text, reasoning and tool calls. Nothing is lost but marks and headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_lm.generate import TextStateMachine

from daemon.engine.output.chat_markup import CALL, REASONING, TEXT, ChatMarkup
from daemon.engine.output.tool_calls import read
from mlx_sidecar.v1 import sidecar_pb2 as pb


@dataclass(slots=True)
class Parts:
    """What may be sent of each channel."""

    text: str = ""
    reasoning: str = ""
    calls: list[pb.GeneratedToolCall] = field(default_factory=list)


class AnswerParser:
    """
    Takes one answer apart, however it is cut into pieces.

    A mark of reasoning counts only before the text; within it, the model writes about the mark. Without tools, marks of
    calls are text as well.

    Args:
        notation: The model's marks.
        tools: The request's tools, as chat templates get them.
        opened: Whether the prompt ends within reasoning.
        bare: Whether the answer is text from its first token, because it has to be in a form.

    Attributes:
        calls: Tool calls so far.
    """

    def __init__(
        self, notation: ChatMarkup, tools: Sequence[dict[str, Any]], *, opened: bool, bare: bool = False
    ) -> None:
        self.calls = 0
        self._notation = notation
        self._tools = tools
        self._at = REASONING if opened else TEXT if bare else notation.initial
        self._state = notation.machine.make_state(self._at)
        self._quoted = False
        self._began = False
        self._passed = False
        """Whether a mark has come."""
        self._aside: list[str] = []

    def add(self, text: str) -> Parts:
        """Take the next piece of the answer and return what is complete now."""
        parts = Parts()
        self._state, segments = TextStateMachine.split(self._state, text)
        for index, (at, piece) in enumerate(segments):
            if index:
                self._move(at, parts)
            self._write(piece, parts)
        return parts

    def finish(self, *, ended: bool) -> Parts:
        """
        Return what was held back; called once, at the end.

        Args:
            ended: Whether the model ended the answer by itself, so that a call without its end mark may be complete.
        """
        parts = Parts()
        self._state, held, _ = TextStateMachine.flush(self._state)
        self._write(held, parts)
        if self._at == CALL and self._tools:
            self._end_call(parts, mark="", complete=ended or not self._notation.call_end)
        elif not self._in_header:
            self._text("".join(self._aside), parts)
        return parts

    @property
    def _in_header(self) -> bool:
        """Whether what is held back is a header, rather than an answer without one."""
        held = "".join(self._aside).lstrip()
        return self._passed or any(held.startswith(mark) for mark in self._notation.headers)

    def _move(self, at: str, parts: Parts) -> None:
        """Go on after a mark."""
        before, self._at = self._at, at
        self._passed = True
        if before == CALL:
            if self._tools:
                self._end_call(parts, mark=self._notation.call_end, complete=True)
            else:
                self._text(self._notation.call_end, parts)
        elif before == REASONING and self._quoted and at != CALL:
            self._text(self._notation.think_end, parts)
        self._quoted = before == TEXT and at == REASONING and self._began
        if self._quoted:
            self._text(self._notation.think_start, parts)
        elif at == CALL and not self._tools:
            self._text(self._notation.call_start, parts)
        self._aside.clear()

    def _write(self, piece: str, parts: Parts) -> None:
        if self._at == REASONING and not self._quoted:
            parts.reasoning += piece
        elif self._at in (TEXT, REASONING) or (self._at == CALL and not self._tools):
            self._text(piece, parts)
        else:
            self._aside.append(piece)

    def _text(self, piece: str, parts: Parts) -> None:
        parts.text += piece
        self._began = self._began or bool(piece.strip())

    def _end_call(self, parts: Parts, *, mark: str, complete: bool) -> None:
        written = "".join(self._aside)
        parse = self._notation.parse
        calls = read(written, parse, self._tools) if complete and parse is not None else None
        if calls is None:
            self._text(self._notation.call_start + written + mark, parts)
            return
        for call in calls:
            call.index = self.calls
            self.calls += 1
            parts.calls.append(call)
