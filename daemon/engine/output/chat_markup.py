"""The marks of a model around its reasoning and its tool calls, as mlx-lm knows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_lm.generate import make_text_state_machine

from daemon.engine.output.call_form import CallForm, call_form
from daemon.engine.output.tool_calls import Parser, bounded

TEXT, REASONING, CALL = "normal", "reasoning", "tool"
"""Names of mlx-lm's state machine for the parts of an answer. Any other name is that of a header."""

_TAIL = 32
"""Tokens at the end of a prompt that are searched for a mark."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """
    How a model reasons before its answer.

    Attributes:
        start, end: Ids of the marks around the reasoning.
        opened: Whether the prompt ends with the start mark. If not, the model may write it as its first tokens.
        turn: Ids that have to follow the reasoning before the answer begins.
        barred: Ids that the reasoning cannot hold, because they would end it in another way.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]
    opened: bool
    turn: tuple[int, ...] = ()
    barred: tuple[int, ...] = ()


class ChatMarkup:
    """
    The marks of a model.

    Marks are found in text and not in tokens, because a tokenizer may cut them in several ways.

    Args:
        wrapper: The model's tokenizer, as mlx-lm wraps it.

    Attributes:
        machine: mlx-lm's state machine, which finds marks in text and removes them.
        initial: The part that an answer begins with.
        think_start, think_end: Marks of reasoning; empty if the model has none.
        call_start, call_end: Marks of a tool call; empty if the model has none. Some calls end with the answer.
        parse: Reads the text between the marks of a call; None if there is no parser.
        call_form: How calls are written; None if their arguments are no JSON.
    """

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self.machine = make_text_state_machine(wrapper)
        self.initial = str(wrapper.response_initial_state or TEXT)
        self.think_start = str(wrapper.think_start or "")
        self.think_end = str(wrapper.think_end or "")
        self.call_start = str(wrapper.tool_call_start or "")
        self.call_end = str(wrapper.tool_call_end or "")
        self.parse: Parser | None = None
        self.call_form: CallForm | None = None
        parse = wrapper.tool_parser
        if parse is not None:
            self.parse = bounded(parse)
            self.call_form = call_form(parse.__module__, wrapper.get_vocab())

    @property
    def headers(self) -> list[str]:
        """Marks that end a text and begin a header; empty if the model writes no headers."""
        edges = self._wrapper.response_transitions.get(TEXT, [])
        return [mark for mark, part in edges if part not in (TEXT, REASONING, CALL)]

    @property
    def marks(self) -> list[str]:
        """All marks except those of tool calls."""
        edges = [mark for edges in self._wrapper.response_transitions.values() for mark, _ in edges]
        return [self.think_start, self.think_end, *self._wrapper.structural_markers, *edges]

    def opened(self, prompt: Sequence[int]) -> bool:
        """Return whether a prompt ends within reasoning. Some templates write the start mark for the model."""
        return bool(self.think_start) and self._tail(prompt).endswith(self.think_start)

    def thinking(self, prompt: Sequence[int], *, wanted: bool) -> Thinking | None:
        """
        Return how the answer to a prompt begins with reasoning; None if the answer has no reasoning.

        Args:
            prompt: Ids of the prompt.
            wanted: Whether the model may reason, if the prompt does not end within reasoning already.
        """
        opened = self.opened(prompt)
        if not self.think_start or self._closed(prompt) or not (opened or wanted):
            return None
        return Thinking(
            start=tuple(self._wrapper.think_start_tokens),
            end=tuple(self._wrapper.think_end_tokens),
            opened=opened,
            turn=getattr(self._wrapper, "turn_tokens", ()),
            barred=getattr(self._wrapper, "barred_tokens", ()),
        )

    def answer_header(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """
        Return the ids of the header of an answer.

        Empty if the model writes no headers, or if the prompt ends after a whole message, which is to be continued.
        """
        return () if self._closed(prompt) else getattr(self._wrapper, "answer_header_tokens", ())

    def _closed(self, prompt: Sequence[int]) -> bool:
        """Return whether a prompt ends with the end of reasoning or of a message."""
        ends = (self.think_end, *getattr(self._wrapper, "message_ends", ()))
        return bool(self.think_end) and self._tail(prompt).endswith(ends)

    def _tail(self, prompt: Sequence[int]) -> str:
        """Return the text of the last tokens of a prompt, without white space at its end."""
        tail = self._wrapper.decode(prompt[-_TAIL:], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(tail).rstrip()
