"""Turns the messages of a request into those that a chat template takes: no text is lost, none changes its place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from daemon.engine.prompt.template_shape import FLAGS, LEFT_OUT, TemplateShape, with_reasoning
from daemon.shared.errors import invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

Turn: TypeAlias = dict[str, Any]
"""A message as templates expect it."""

_SYSTEM = ("system", "developer")
_GAP = "\n\n"
"""Between texts that become one."""


def turns(messages: Sequence[pb.ChatMessage], shape: TemplateShape) -> list[Turn]:
    """
    Return the turns of a conversation in the shape of a template.

    Args:
        messages: The messages of the request.
        shape: The shape of its model's template.

    Raises:
        SidecarError: INVALID_ARGUMENT if the arguments of a call are no JSON object.
    """
    names = _names(messages)
    messages = messages if shape.repeated_ids else _with_ids_of_their_own(messages)
    made: list[Turn] = []
    for index, message in enumerate(messages):
        made += _turns(index, message, names.get(index, ""), shape)
    made = _with_systems(made, shape)
    return made if shape.user_runs else list(_merged(made, "user", "assistant"))


def flagged(made: Sequence[Turn], *, thinking: bool) -> list[Turn]:
    """Return turns with the word for or against thinking at the end of the system's text, for templates of `FLAGS`."""
    word = FLAGS if thinking else f"/no_{FLAGS[1:]}"
    if made and made[0]["role"] in _SYSTEM:
        return [{**made[0], "content": f"{made[0]['content']}\n{word}"}, *made[1:]]
    return [{"role": "system", "content": word}, *made]


def warnings(messages: Sequence[pb.ChatMessage], shape: TemplateShape) -> list[str]:
    """Return what a template leaves out of a conversation: the path of each field, and the fact."""
    if not shape.leaves_out:
        return []
    last = _last(messages, "user")
    # A late turn of the system that becomes one of the user makes the reasoning before it old.
    turned = -1 if shape.late_system else _last(messages, *_SYSTEM)
    found: dict[str, None] = {}
    for index, message in enumerate(messages):
        held = _held(message, after_user=index > last)
        if message.role in _SYSTEM and messages[-1].role != "user":
            held.add("system_before_calls")
        if message.reasoning_content and last < index < turned:
            held.add("old_reasoning")
        for what in sorted(held & shape.leaves_out):
            found[f"chat.messages[{index}].{LEFT_OUT[what]}"] = None
    return [f"{field}: is left out by the model's chat template" for field in found]


def json_object(field: str, text: str) -> dict[str, Any]:
    """
    Return a JSON object; no text is an empty object.

    Raises:
        SidecarError: INVALID_ARGUMENT if the text is no JSON object, or cannot be written as UTF-8 again.
    """
    value = json_value(field, text or "{}")
    if not isinstance(value, dict):
        raise invalid(field, "must be a JSON object")
    return value


def json_value(field: str, text: str) -> Any:
    """
    Return a JSON value.

    Raises:
        SidecarError: INVALID_ARGUMENT if the text is no JSON, or cannot be written as UTF-8 again.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # templates write it, tokenizers read it
    except (ValueError, RecursionError) as error:
        raise invalid(field, "is not valid JSON") from error
    return value


def _last(messages: Sequence[pb.ChatMessage], *roles: str) -> int:
    return max((index for index, message in enumerate(messages) if message.role in roles), default=-1)


def _held(message: pb.ChatMessage, *, after_user: bool) -> set[str]:
    """Return which of the things that a template may leave out a message has."""
    calls, text, reasoning = len(message.tool_calls), bool(message.content), bool(message.reasoning_content)
    has = {
        "calls": calls > 0,
        "further_calls": calls > 1,
        "calls_beside_text": calls > 0 and text,
        "text_beside_calls": calls > 0 and text,
        "old_text_beside_calls": calls > 0 and text and not after_user,
        "answers": message.role == "tool" and text,
        "reasoning": reasoning,
        "late_reasoning": reasoning and after_user,
        "reasoning_of_split": reasoning and calls > 0 and text,
    }
    return {what for what, held in has.items() if held}


def _names(messages: Sequence[pb.ChatMessage]) -> dict[int, str]:
    """
    Return the name of the called tool for the index of each tool turn that answers a known call.

    An answer without an id belongs to the call at its place: the first answer after the calls to the first call.
    """
    names: dict[int, str] = {}
    known: dict[str, str] = {}
    open_calls: list[str] = []
    for index, message in enumerate(messages):
        if message.tool_calls:
            open_calls = [call.name for call in message.tool_calls]
            known |= {call.id: call.name for call in message.tool_calls if call.id}
        elif message.role == "tool":
            by_place = open_calls.pop(0) if open_calls else ""
            names[index] = known.get(message.tool_call_id, "") if message.tool_call_id else by_place
    return names


def _with_ids_of_their_own(messages: Sequence[pb.ChatMessage]) -> list[pb.ChatMessage]:
    """Return messages in which each call has an id that no call before it has, and their answers have the same."""
    made: list[pb.ChatMessage] = []
    seen: set[str] = set()
    given: dict[str, list[str]] = {}
    for message in messages:
        copy = pb.ChatMessage()
        copy.CopyFrom(message)
        calls = [call for call in copy.tool_calls if call.id]
        given |= {call.id: [] for call in calls}
        for call in calls:
            unused = call.id if call.id not in seen else f"{call.id}-{len(seen)}"
            given[call.id].append(unused)
            call.id = unused
            seen.add(unused)
        if copy.role == "tool" and (ids := given.get(copy.tool_call_id)):
            copy.tool_call_id = ids.pop(0) if len(ids) > 1 else ids[0]
        made.append(copy)
    return made


def _turns(index: int, message: pb.ChatMessage, name: str, shape: TemplateShape) -> list[Turn]:
    """Return a message as a turn, without the keys that would be empty; as two if text and calls have to be apart."""
    reasoning, content = _without_gaps(message, shape)
    turn: Turn = {"role": message.role, "content": content}
    if reasoning:
        turn = with_reasoning(turn, reasoning, shape.reasoning_key)
    if message.tool_call_id:
        turn["tool_call_id"] = _call_id(message.tool_call_id, shape)
    if name:
        turn["name"] = name
    if not message.tool_calls:
        return [turn]
    field = f"chat.messages[{index}].tool_calls"
    calls = [_call(f"{field}[{place}].arguments_json", call, shape) for place, call in enumerate(message.tool_calls)]
    if content and shape.split_turns:
        return [turn, _calling({"role": message.role, "content": "", "tool_calls": calls}, shape)]
    return [_calling({**turn, "tool_calls": calls}, shape)]


def _without_gaps(message: pb.ChatMessage, shape: TemplateShape) -> tuple[str, str]:
    """
    Return reasoning and text of a message, without the white space that the template writes around them itself.

    A model writes this white space too, and the caller sends it back: the turn is rendered as the model wrote it.
    """
    reasoning, content = message.reasoning_content, message.content
    if reasoning:
        content = content.removeprefix(shape.before_text)
        inner = reasoning.removeprefix(shape.before_reasoning).removesuffix(shape.after_reasoning)
        # Templates write marks around reasoning that is empty, or only if it is not: then the gaps have to stay.
        reasoning = inner if inner or reasoning != shape.before_reasoning + shape.after_reasoning else reasoning
    if message.tool_calls:
        content = content.removesuffix(shape.after_text)
    return reasoning, content


def _calling(turn: Turn, shape: TemplateShape) -> Turn:
    """Return a turn with calls: its reasoning and text as one if there is room for one, its missing text as needed."""
    reasoning = turn.get(shape.reasoning_key)
    if shape.joined_reasoning and reasoning and turn["content"]:
        turn = {**turn, shape.reasoning_key: f"{reasoning}\n{turn['content']}", "content": ""}
    if turn["content"] or shape.call_content == "empty":
        return turn
    rest = {key: value for key, value in turn.items() if key != "content"}
    return rest if shape.call_content == "missing" else {**rest, "content": None}


def _call(field: str, call: pb.ToolCall, shape: TemplateShape) -> dict[str, Any]:
    arguments: Any = json_object(field, call.arguments_json)
    if shape.text_arguments:
        arguments = call.arguments_json or "{}"
    function = {"name": call.name, "arguments": arguments}
    return {"id": _call_id(call.id, shape), "type": "function", "function": function}


def _call_id(given: str, shape: TemplateShape) -> str:
    """Return the id of a call; where a template needs short ids, nine characters that depend on the given id alone."""
    if not shape.short_ids or not given or (len(given) == 9 and given.isalnum() and given.isascii()):
        return given
    return hashlib.sha256(given.encode()).hexdigest()[:9]


def _with_systems(made: list[Turn], shape: TemplateShape) -> list[Turn]:
    """Return turns of which those for the system have a role and a place that the template takes."""
    count = next((index for index, turn in enumerate(made) if turn["role"] not in _SYSTEM), len(made))
    return _opening(made[:count], made[count:], shape)


def _opening(systems: list[Turn], rest: list[Turn], shape: TemplateShape) -> list[Turn]:
    """Return a conversation that begins with some system turns."""
    # One role for all: some templates write system turns at one place, and those of the developer at another.
    first = [{**turn, "role": _system_role(systems[0], shape)} for turn in systems]
    after: list[Turn] = []
    for turn in rest:
        placed = turn if turn["role"] not in _SYSTEM else _late(turn, shape)
        if placed is not turn and placed["role"] == "user" and after[-1]["role"] == "tool" and not shape.user_runs:
            after[-1] = _joined(after[-1], placed)  # a turn of the user may not follow there
        else:
            after.append(placed)
    if not shape.system and not any(turn["role"] == "developer" for turn in first):
        return _before_user([turn["content"] for turn in first if turn["content"]], after)
    if not shape.systems:
        first = list(_merged(first, *_SYSTEM))
    return [*first, *after]


def _before_user(texts: list[str], rest: list[Turn]) -> list[Turn]:
    """Return turns with the system's texts before the user's first words, as the makers of such models advise."""
    if not texts:
        return rest
    begun = rest[:1] if rest and rest[0]["role"] == "user" else []
    user = {"role": "user", "content": _GAP.join([*texts, *(turn["content"] for turn in begun)])}
    return [user, *rest[len(begun) :]]


def _system_role(turn: Turn, shape: TemplateShape) -> str:
    return "developer" if turn["role"] == "developer" and shape.developer else "system"


def _late(turn: Turn, shape: TemplateShape) -> Turn:
    """Return a system turn that does not stand first: as it is, or as a marked text of the user."""
    if shape.late_system:
        return {**turn, "role": "system"}
    return {**turn, "role": "user", "content": f"<system>\n{turn['content']}\n</system>"}


def _merged(made: Iterable[Turn], *roles: str) -> Iterable[Turn]:
    """Yield turns, with neighbours of one of these roles as one, if both are texts without calls."""
    last: Turn | None = None
    for turn in made:
        if last is not None and last["role"] == turn["role"] in roles and _is_text(last) and _is_text(turn):
            last = _joined(last, turn)
            continue
        if last is not None:
            yield last
        last = turn
    if last is not None:
        yield last


def _is_text(turn: Turn) -> bool:
    return "tool_calls" not in turn and isinstance(turn["content"], str)


def _joined(turn: Turn, other: Turn) -> Turn:
    """Return a turn with the text, and the reasoning, of another one behind its own."""
    keys = (turn.keys() | other.keys()) - {"role", "name", "tool_call_id"}
    return {**turn, **{key: _GAP.join(text for text in (turn.get(key), other.get(key)) if text) for key in keys}}
