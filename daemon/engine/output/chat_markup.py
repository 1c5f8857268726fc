"""The marks of a model around its reasoning and its tool calls."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.engine.output.notations.detection import notation_of

TEXT, REASONING, CALL = "normal", "reasoning", "tool"
"""mlx-lm's names for the parts of an answer. Any other name is that of a header, or SHOWN."""
SHOWN = "shown"
"""Where a mark leads that is text itself."""

_REASONING = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<thought>", "</thought>"),
    ("<think:opensource>", "</think:opensource>"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)
"""Marks around reasoning that are looked for in vocabularies and templates; mlx-lm knows some more."""

_WRAPPERS = (
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|START_TEXT|>", "<|END_TEXT|>"),
)
"""Marks around the text of an answer, tokens that stand for nothing else."""

_FRAMES = (
    ("<response>", "</response>"),
    ("<answer>", "</answer>"),
    ("", "[END FINAL RESPONSE]"),
)
"""
Marks that Granite 3.3 and ERNIE 4.5, Hunyuan, and Apriel 1.5 write around their answers, behind the reasoning.

Elsewhere they are text. Apriel's answer begins with the end of its reasoning.
"""

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
        initial: The part that an answer begins with.
        edges: For each part, the marks that end it, each with the part that follows.
        dropped: Marks that lead nowhere and are left out.
        think_start, think_end: Marks of reasoning; empty if the model has none.
        frame: Marks directly around an answer that follows reasoning; empty if the model has none. The first may be
            empty alone: then each answer is within marks.
        calls: The notation of tool calls; None if it is not known.
    """

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        words = wrapper.get_vocab()
        shown = _template(wrapper)
        self.initial = str(wrapper.response_initial_state or TEXT)
        self.think_start, self.think_end = _reasoning(wrapper, words, shown)
        frames = (frame for frame in _FRAMES if self.think_end and all(mark in shown for mark in frame))
        self.frame = next(frames, ("", ""))
        self.calls = notation_of(shown, words, wrapper)
        wrappers = [mark for pair in _WRAPPERS for mark in pair if mark in words]
        self.dropped = (*wrapper.structural_markers, *wrappers)
        self.edges = self._edges()

    def _edges(self) -> dict[str, dict[str, str]]:
        edges: dict[str, dict[str, str]] = {TEXT: {}, REASONING: {}}
        for part, marks in self._wrapper.response_transitions.items():
            edges.setdefault(part, {}).update(marks)
        if self.think_start and self.initial == TEXT:
            edges[TEXT][self.think_start] = REASONING
            edges[REASONING][self.think_end] = TEXT
        return edges

    @property
    def has_marks(self) -> bool:
        """Whether the model has any, so that its answers have to be taken apart."""
        return bool(self.think_start or self.calls or self.initial != TEXT or self.dropped)

    @property
    def targets(self) -> set[str]:
        """All parts that a mark leads to."""
        return {to for marks in self.edges.values() for to in marks.values()}

    @property
    def headers(self) -> tuple[str, ...]:
        """Marks that end a text and begin a header; empty if the model writes no headers."""
        return tuple(mark for mark, to in self.edges[TEXT].items() if to not in (TEXT, REASONING, CALL, SHOWN))

    @property
    def message_ends(self) -> tuple[str, ...]:
        """Marks that end a message of several in an answer; empty if an answer is one message."""
        return getattr(self._wrapper, "message_ends", ())

    def is_header(self, text: str) -> bool:
        """Whether a text is a header, or the beginning of one, and not something that was written in its place."""
        form = getattr(self._wrapper, "header_form", None)
        return form is None or form.fullmatch(text) is not None

    @property
    def marks(self) -> list[str]:
        """All marks except those of tool calls."""
        edges = [mark for marks in self.edges.values() for mark in marks]
        return [self.think_start, self.think_end, *self.frame, *self.dropped, *edges]

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
        if not self.think_start or self.closed(prompt) or not (opened or wanted):
            return None
        return Thinking(
            start=self._ids(self.think_start),
            end=self._ids(self.think_end),
            opened=opened,
            turn=getattr(self._wrapper, "turn_tokens", ()),
            barred=getattr(self._wrapper, "barred_tokens", ()),
        )

    def answer_header(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """
        Return the ids of the header of an answer.

        Empty if the model writes no headers, or if the prompt ends after a whole message, which is to be continued.
        """
        return () if self.closed(prompt) else getattr(self._wrapper, "answer_header_tokens", ())

    def _ids(self, mark: str) -> tuple[int, ...]:
        return tuple(self._wrapper.encode(mark, add_special_tokens=False))

    def closed(self, prompt: Sequence[int]) -> bool:
        """Return whether a prompt ends with the end of reasoning or of a message."""
        ends = (self.think_end, *self.message_ends)
        return bool(self.think_end) and self._tail(prompt).endswith(ends)

    def _tail(self, prompt: Sequence[int]) -> str:
        """Return the text of the last tokens of a prompt, without white space at its end."""
        tail = self._wrapper.decode(prompt[-_TAIL:], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(tail).rstrip()


def _template(wrapper: Any) -> str:
    """Return the template that a tokenizer uses with tools; empty if it has none."""
    template = wrapper.chat_template
    if isinstance(template, Mapping):
        template = template.get("tool_use") or template.get("default")
    return template if isinstance(template, str) else ""


def _reasoning(wrapper: Any, words: Container[str], template: str) -> tuple[str, str]:
    """Return the marks around a model's reasoning; empty if it is not known to have any."""
    if wrapper.think_start:
        return str(wrapper.think_start), str(wrapper.think_end)
    for marks in _REASONING:
        if all(mark in words for mark in marks) or any(mark in template for mark in marks):
            return marks
    return "", ""
