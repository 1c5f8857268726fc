"""
The output of an answer: the daemon's events become items, and the events of their making. Pure.

    reasoning, text     one item at a time is open; a piece of another kind completes it
    call                an item of its own, from its first piece to its whole call; several may be open
    custom call         an item once it is whole: its text is inside JSON before
    white space         waits for the text after it: between calls it is no message
    scores              wait for the text of their tokens; those of reasoning and of whole calls have no place
    withdrawn call      stays in its place as incomplete, as clients keep what was added; it is never announced as done,
                        so that no client makes the call. What the model wrote is in the text

The index of an item is its place in the output, which never changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from daemon.http.openai.logprobs import Score, chat_scores
from daemon.http.responses.answer_types import (
    CustomCall,
    FunctionCall,
    Message,
    OutputItem,
    Reasoning,
    ReasoningText,
    Status,
    TextPart,
)
from daemon.http.responses.offered import CUSTOM_PARAMETER, Offered
from daemon.http.responses.reasoning import packed
from daemon.http.responses.request_types import CustomTool
from mlx_sidecar import Delta, GeneratedToolCall, ToolCallDelta

Made = tuple[str, dict[str, Any]]
"""Type and fields of an event."""


class Output:
    """
    The items of an answer.

    Args:
        name: What ids of items end with.
        tools: The tools that the model was told of.
        summary: Whether reasoning comes as summary; otherwise as content.
        give_back: Whether reasoning comes also in a form that can be given back.

    Attributes:
        items: The items so far.
    """

    def __init__(self, name: str, *, tools: Sequence[Offered] = (), summary: bool, give_back: bool) -> None:
        self.items: list[OutputItem] = []
        self._name = name
        self._tools = {one.name: one for one in tools}
        self._summary = summary
        self._give_back = give_back
        self._open: int | None = None
        self._calls: dict[int, int] = {}
        self._white = ""
        self._white_scores: list[Score] = []
        self._unplaced: list[Score] = []
        """Scores of tokens that came without text: it comes later, or they are a mark or a part of a call."""

    def add(self, delta: Delta) -> Iterator[Made]:
        """Take a delta and yield what it makes: reasoning, then text, then pieces of calls, as they come."""
        scores = self._scores(delta)
        if delta.reasoning:
            yield from self._reasoning(delta.reasoning)
        if delta.text:
            yield from self._some_text(delta.text, scores)
        for piece in delta.tool_call_deltas:
            yield from self._piece(piece)
        for call in delta.tool_calls:
            yield from self._whole(call)

    def _scores(self, delta: Delta) -> list[Score]:
        """Return the scores that go with a delta's text; without text, keep those that may belong to later text."""
        if delta.tool_calls:
            self._unplaced = []
        self._unplaced += chat_scores(delta.logprobs).content
        if not (delta.text or delta.reasoning or delta.tool_calls):
            return []  # a call that is being written may turn out to be text
        scores, self._unplaced = self._unplaced, []
        behind = bool(self.items) and not self._writes
        return _of_text(delta.text, scores, behind_mark=behind or bool(delta.reasoning))

    def end(self, status: Status) -> Iterator[Made]:
        """Complete the item that is open; `status` is that of the answer. White space alone is a message as well."""
        if self._white and not self.items:
            yield from self._text(self._white, self._white_scores)
        yield from self._close(status)

    def lasting(self) -> list[OutputItem]:
        """Return the items of the answer without calls that were withdrawn."""
        return [item for item in self.items if not (isinstance(item, FunctionCall) and item.status == "incomplete")]

    def _new(self, item: OutputItem) -> Iterator[Made]:
        self.items.append(item)
        yield "response.output_item.added", {"output_index": len(self.items) - 1, "item": item}

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._name}_{len(self.items)}"

    def _reasoning(self, text: str) -> Iterator[Made]:
        if self._open is None or not isinstance(self.items[self._open], Reasoning):
            yield from self._close("completed")
            yield from self._new(
                Reasoning(id=self._id("rs"), type="reasoning", status="in_progress", summary=[], content=[])
            )
            self._open = len(self.items) - 1
            yield from self._first_reasoning_part(self._open)
        item = self.items[self._open]
        assert isinstance(item, Reasoning)
        (item.summary or item.content)[0].text += text
        yield f"response.{self._kind()}.delta", {**self._place(self._open), "delta": text}

    def _first_reasoning_part(self, index: int) -> Iterator[Made]:
        item = self.items[index]
        assert isinstance(item, Reasoning)
        parts = item.summary if self._summary else item.content
        parts.append(ReasoningText(type="summary_text" if self._summary else "reasoning_text", text=""))
        yield f"response.{self._part()}.added", {**self._place(index), "part": parts[0]}

    def _kind(self) -> str:
        return "reasoning_summary_text" if self._summary else "reasoning_text"

    def _part(self) -> str:
        return "reasoning_summary_part" if self._summary else "content_part"

    def _place(self, index: int) -> dict[str, Any]:
        """Return what tells the part of an item that an event is about; each has one."""
        item = self.items[index]
        summary = isinstance(item, Reasoning) and self._summary
        return {"item_id": item.id, "output_index": index, "summary_index" if summary else "content_index": 0}

    @property
    def _writes(self) -> bool:
        """Whether a message is open."""
        return self._open is not None and isinstance(self.items[self._open], Message)

    def _some_text(self, text: str, scores: list[Score]) -> Iterator[Made]:
        """Take text; white space does not begin a message."""
        text, scores = self._white + text, [*self._white_scores, *scores]
        wait = not self._writes and not text.strip()
        self._white, self._white_scores = (text, scores) if wait else ("", [])
        if not wait:
            yield from self._text(text, scores)

    def _text(self, text: str, scores: list[Score]) -> Iterator[Made]:
        if not self._writes:
            yield from self._close("completed")
            yield from self._new(
                Message(id=self._id("msg"), type="message", role="assistant", status="in_progress", content=[])
            )
            self._open = len(self.items) - 1
            yield from self._first_text_part(self._open)
        assert self._open is not None
        item = self.items[self._open]
        assert isinstance(item, Message)
        item.content[0].text += text
        item.content[0].logprobs += scores
        yield "response.output_text.delta", {**self._place(self._open), "delta": text, "logprobs": scores}

    def _first_text_part(self, index: int) -> Iterator[Made]:
        item = self.items[index]
        assert isinstance(item, Message)
        item.content.append(TextPart(type="output_text", text="", annotations=[], logprobs=[]))
        yield "response.content_part.added", {**self._place(index), "part": item.content[0]}

    def _close(self, status: Status) -> Iterator[Made]:
        """Complete the reasoning or text that is open."""
        if self._open is None:
            return
        index, self._open = self._open, None
        item = self.items[index]
        item.status = status
        if isinstance(item, Message):
            part = item.content[0]
            fields = {"text": part.text, "logprobs": part.logprobs}
            yield "response.output_text.done", {**self._place(index), **fields}
            yield "response.content_part.done", {**self._place(index), "part": part}
        elif isinstance(item, Reasoning):
            yield from self._close_reasoning(item, index)
        yield "response.output_item.done", {"output_index": index, "item": item}

    def _close_reasoning(self, item: Reasoning, index: int) -> Iterator[Made]:
        part = (item.summary or item.content)[0]
        if self._give_back:
            item.encrypted_content = packed(part.text)
        yield f"response.{self._kind()}.done", {**self._place(index), "text": part.text}
        yield f"response.{self._part()}.done", {**self._place(index), "part": part}

    def _piece(self, piece: ToolCallDelta) -> Iterator[Made]:
        if piece.withdrawn:
            if (index := self._calls.pop(piece.index, None)) is not None:
                self.items[index].status = "incomplete"
            return
        if piece.id and not self._is_custom(piece.name):
            yield from self._first_piece(piece.index, piece.id, piece.name)
        if piece.arguments_json and (index := self._calls.get(piece.index)) is not None:
            item = self.items[index]
            assert isinstance(item, FunctionCall)
            item.arguments += piece.arguments_json
            fields = {"item_id": item.id, "output_index": index, "delta": piece.arguments_json}
            yield "response.function_call_arguments.delta", fields

    def _first_piece(self, number: int, call_id: str, name: str) -> Iterator[Made]:
        yield from self._close("completed")
        self._calls[number] = len(self.items)
        yield from self._new(
            FunctionCall(
                id=self._id("fc"),
                type="function_call",
                status="in_progress",
                call_id=call_id,
                arguments="",
                **self._named(name),
                **self._plain(name),
            )
        )

    def _is_custom(self, name: str) -> bool:
        return name in self._tools and isinstance(self._tools[name].tool, CustomTool)

    def _named(self, name: str) -> dict[str, Any]:
        """Return the names of a call, as the request has them: its tool's, and that of the tool's namespace."""
        if (found := self._tools.get(name)) is None or found.namespace is None:
            return {"name": name}
        return {"name": found.tool.name, "namespace": found.namespace}

    def _plain(self, name: str) -> dict[str, Any]:
        """Return that no argument is encrypted, for a tool that has such ones: Codex's agents."""
        found = self._tools.get(name)
        return {"encrypted_function_args": []} if found is not None and found.takes_encrypted() else {}

    def _whole(self, call: GeneratedToolCall) -> Iterator[Made]:
        if self._is_custom(call.name):
            yield from self._whole_custom(call)
            return
        index = self._calls.pop(call.index)
        item = self.items[index]
        assert isinstance(item, FunctionCall)
        item.arguments, item.status = call.arguments_json, "completed"
        fields = {"item_id": item.id, "output_index": index, "arguments": item.arguments}
        yield "response.function_call_arguments.done", fields
        yield "response.output_item.done", {"output_index": index, "item": item}

    def _whole_custom(self, call: GeneratedToolCall) -> Iterator[Made]:
        yield from self._close("completed")
        item = CustomCall(
            id=self._id("ctc"),
            type="custom_tool_call",
            status="in_progress",
            call_id=call.id,
            input="",
            **self._named(call.name),
        )
        yield from self._new(item)
        item.input, item.status = _custom_input(call.arguments_json), "completed"
        index = len(self.items) - 1
        yield "response.custom_tool_call_input.delta", {"item_id": item.id, "output_index": index, "delta": item.input}
        yield "response.custom_tool_call_input.done", {"item_id": item.id, "output_index": index, "input": item.input}
        yield "response.output_item.done", {"output_index": index, "item": item}


def _custom_input(arguments: str) -> str:
    """Return the text for a custom tool; arguments of another form are the text themselves, so that nothing is lost."""
    given = json.loads(arguments)
    text = given.get(CUSTOM_PARAMETER) if len(given) == 1 else None
    return text if isinstance(text, str) else arguments


def _of_text(text: str, scores: list[Score], *, behind_mark: bool) -> list[Score]:
    """
    Leave out tokens before those of a text, such as the mark that ends reasoning; none if they do not spell it.

    Args:
        text: The text.
        scores: Of all tokens that it may be spelled by.
        behind_mark: Whether a mark may come before it that has characters of it.
    """
    spelled = "".join(score.token for score in scores)
    begin = spelled.rfind(text) if behind_mark else spelled.find(text)
    ends = accumulate(len(score.token) for score in scores)
    return [score for score, end in zip(scores, ends, strict=True) if end > begin]
