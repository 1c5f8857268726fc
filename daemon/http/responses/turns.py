"""
Turns of a conversation, made of its items. Pure.

    reasoning, message, function_call, function_call   ->   one assistant turn
    web_search_call and others of another server       ->   words in an assistant turn
    function_call_output                               ->   one tool turn, or a user's if it answers no call
    message of another role                            ->   one turn
    agent_message, from another agent of the client    ->   one turn of the user

An answer of the model is several items, and one turn for its template. So the items of an assistant are joined, as
far as a turn keeps their order: reasoning, text, calls. A reasoning begins a turn unless only a reasoning was there,
and a message begins one if it follows a message. A message or a step behind a call goes before it, since answers of
calls have to follow these. Turns have no ids but those of calls, so that a prompt is the same whatever ids a client
makes up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from daemon.http.errors import Problem, invalid
from daemon.http.in_words import arguments, said, step
from daemon.http.responses.item_types import (
    TYPES,
    AgentMessageItem,
    ClientCallItem,
    ClientOutputItem,
    CustomCallItem,
    CustomOutputItem,
    FunctionCallItem,
    FunctionOutputItem,
    Item,
    MessageItem,
    Part,
    ReasoningItem,
    ReferenceItem,
    ServerStepItem,
)
from daemon.http.responses.offered import CUSTOM_PARAMETER, flat
from daemon.http.responses.reasoning import unpacked
from mlx_sidecar import Message, ToolCall

ENCRYPTED = "gAAAA"
"""How texts begin that OpenAI's server has encrypted: as Fernet tokens do."""


@dataclass(slots=True)
class _Turn:
    """An assistant's turn that is being joined; its names are those of the items that it, and its calls, come from."""

    reasoning: str = ""
    content: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    name: str = ""
    call_names: list[str] = field(default_factory=list)
    after_message: bool = False

    def is_reasoning(self) -> bool:
        """Tell whether there is nothing but reasoning yet."""
        return not (self.calls or self.content or self.after_message)


class Turns:
    """
    Joins items to turns.

    Attributes:
        done: The turns so far, without one that may go on.
        notes: What was left out.
    """

    def __init__(self) -> None:
        self.done: list[Message] = []
        self.notes: list[str] = []
        self._open: _Turn | None = None
        self._places: list[tuple[str, list[str]]] = []

    def add(self, item: Item, name: str) -> None:
        """
        Add an item.

        Args:
            item: The item; no reference.
            name: Its parameter, for errors and notes.

        Raises:
            Problem: If it is of a type that is not read.
        """
        match item:
            case MessageItem(role="assistant"):
                self._message(_text(item.content), name)
            case MessageItem():
                self._whole(Message(item.role, _text(item.content)), name)
            case FunctionCallItem() | CustomCallItem() | ClientCallItem():
                called, unread = _called(item)
                if unread:
                    self.notes.append(f"{name}.arguments is no JSON object: the model is told so")
                self._call(called, name)
            case FunctionOutputItem(call_id=None) | AgentMessageItem():
                self._whole(Message("user", self._users_text(item, name)), name)
            case FunctionOutputItem() | CustomOutputItem():
                self._whole(Message("tool", _text(item.output), tool_call_id=item.call_id or ""), name)
            case ServerStepItem():
                self._turn(name).content += _step_words(item)
            case ClientOutputItem():
                text = said(item.output) if item.output is not None else item.status or ""
                self._whole(Message("tool", text, tool_call_id=item.call_id or item.id or ""), name)
            case ReasoningItem():
                self._reasoning(item, name)
            case _:
                raise invalid(f"{name}.type", f"is none of {', '.join(TYPES)}; leave the item out")

    def finished(self) -> list[Message]:
        """Return all turns."""
        self._close()
        return self.done

    def places(self, before: int) -> dict[str, str]:
        """Return which items finished turns come from, see `Ask.places`; so many turns are put before them."""
        found = {}
        for index, (name, calls) in enumerate(self._places, before):
            found[f"chat.messages[{index}]"] = name
            found |= {f"chat.messages[{index}].tool_calls[{number}]": call for number, call in enumerate(calls)}
        return found

    def _whole(self, turn: Message, name: str) -> None:
        self._close()
        self._places.append((name, []))
        self.done.append(turn)

    def _message(self, text: str, name: str) -> None:
        if self._open is not None and self._open.after_message:
            self._close()
        turn = self._turn(name)
        turn.content += text
        turn.after_message = True

    def _call(self, call: ToolCall, name: str) -> None:
        turn = self._turn(name)
        turn.calls.append(call)
        turn.call_names.append(name)
        turn.after_message = False

    def _users_text(self, item: FunctionOutputItem | AgentMessageItem, name: str) -> str:
        """
        Return a text that answers no call, or one that another agent wrote.

        What a model wrote here comes back as it was, also where its client takes it as encrypted.
        """
        if isinstance(item, FunctionOutputItem):
            text = _text(item.output)
            return f"{item.name}: {text}" if item.name else text
        texts = []
        for index, part in enumerate(item.content):
            text = part.text or part.encrypted_content or ""
            if part.encrypted_content is not None and text.startswith(ENCRYPTED):
                self.notes.append(f"{name}.content[{index}] is left out: another server has encrypted it")
                text = "[text left out: another server has encrypted it]"
            texts.append(text)
        return "".join(texts)

    def _reasoning(self, item: ReasoningItem, name: str) -> None:
        text = _reasoning_text(item)
        if text is None:
            self.notes.append(f"{name} is left out: its reasoning is another server's")
            return
        if self._open is not None and not self._open.is_reasoning():
            self._close()
        self._turn(name).reasoning += text

    def _turn(self, name: str) -> _Turn:
        """Return the assistant's turn that is open; one begins with the item of that name if none is."""
        if self._open is None:
            self._open = _Turn(name=name)
        return self._open

    def _close(self) -> None:
        if (turn := self._open) is not None:
            self._places.append((turn.name, turn.call_names))
            self.done.append(Message("assistant", turn.content, turn.reasoning, turn.calls))
        self._open = None


def _called(item: FunctionCallItem | CustomCallItem | ClientCallItem) -> tuple[ToolCall, bool]:
    """Return an item as a call, and whether the model is told that its arguments are no JSON object."""
    if isinstance(item, ClientCallItem):
        given = said(item.action or item.operation or {})
        return ToolCall(item.call_id, item.type.removesuffix("_call"), given), False
    if isinstance(item, CustomCallItem):
        given, unread = json.dumps({CUSTOM_PARAMETER: item.input}), False
    else:
        given, unread = arguments(item.arguments)
    return ToolCall(item.call_id, flat(item.namespace, item.name), given), unread


def _text(parts: Sequence[Part]) -> str:
    return "".join(part.text or part.refusal or "" for part in parts)


def _step_words(item: ServerStepItem) -> str:
    """Return a step of another server as a line that the model reads."""
    given = {name: getattr(item, name) for name in type(item).model_fields if name != "type"}
    if item.status == "completed":
        del given["status"]
    if item.result is not None:
        given["result"] = "a picture"
    if item.tools is not None:
        given["tools"] = [tool.get("name") if isinstance(tool, dict) else tool for tool in item.tools]
    return step(item.type.removesuffix("_call"), given)


def _reasoning_text(item: ReasoningItem) -> str | None:
    """Return the text of a reasoning; None if it cannot be read."""
    if content := "".join(part.text for part in item.content or ()):
        return content
    packed = unpacked(item.encrypted_content) if item.encrypted_content else ""
    return packed or "".join(part.text for part in item.summary or ()) or packed


def resolved(items: Sequence[Item], find: Callable[[str], Item | None]) -> list[Item]:
    """
    Return items with those that references name in their places.

    Raises:
        Problem: If one is not kept.
    """
    return [_resolved(item, f"input[{index}]", find) for index, item in enumerate(items)]


def _resolved(item: Item, name: str, find: Callable[[str], Item | None]) -> Item:
    if not isinstance(item, ReferenceItem):
        return item
    if (found := find(item.id)) is None:
        message = f"{name}.id names an item that is not kept; give the item itself"
        raise Problem(400, message, code="item_not_found", field=f"{name}.id")
    return found
