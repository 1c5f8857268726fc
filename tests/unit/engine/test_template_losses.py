"""Random conversations through all kinds of templates: each text is written, at its place, or its loss is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError

from daemon.engine.prompt.conversation import turns, warnings
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support import chat_templates as habits
from tests.unit.engine.template_shapes import rendered, shape_of

HABITS = [name for name, value in vars(habits).items() if name.isupper() and "messages" in str(value)]
shape = cache(shape_of)


@st.composite
def conversation(draw: st.DrawFn) -> list[pb.ChatMessage]:
    """Draw a conversation that ends with the user or with answers of tools; each text of it is there once."""
    words = (f"word{number}x" for number in range(10_000))
    flags = st.booleans()
    roles = draw(st.lists(st.sampled_from(["system", "developer"]), max_size=3))
    made = [pb.ChatMessage(role=role, content=next(words)) for role in roles]
    for _ in range(draw(st.integers(1, 3))):
        made.append(pb.ChatMessage(role="user", content=next(words)))
        if draw(flags):
            made.append(pb.ChatMessage(role=draw(st.sampled_from(["system", "user"])), content=next(words)))
        if draw(flags):
            made.append(pb.ChatMessage(role="assistant", content=next(words)))
        elif draw(flags):
            made += _called(draw, words)
            if draw(flags):
                made.append(pb.ChatMessage(role="system", content=next(words)))
    if made[-1].role == "assistant":
        made.append(pb.ChatMessage(role="user", content=next(words)))
    return made


def _called(draw: st.DrawFn, words: Iterator[str]) -> list[pb.ChatMessage]:
    reasoning, text = (next(words) if draw(st.booleans()) else "" for _ in range(2))
    count = draw(st.integers(1, 2))
    calls = [
        pb.ToolCall(id=f"call_{next(words)}", name="look", arguments_json=f'{{"at": "{next(words)}"}}')
        for _ in range(count)
    ]
    turn = pb.ChatMessage(role="assistant", content=text, reasoning_content=reasoning, tool_calls=calls)
    return [turn, *(pb.ChatMessage(role="tool", content=next(words), tool_call_id=call.id) for call in calls)]


def texts(messages: Sequence[pb.ChatMessage]) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each part of a conversation, but for reasoning before the last user turn."""
    last = max(index for index, message in enumerate(messages) if message.role == "user")
    for index, message in enumerate(messages):
        if message.reasoning_content and index > last:
            yield f"chat.messages[{index}].reasoning_content", message.reasoning_content
        if message.content:
            yield f"chat.messages[{index}].content", message.content
        for call in message.tool_calls:
            yield f"chat.messages[{index}].tool_calls", call.arguments_json.split('"')[3]


@given(st.data(), st.sampled_from(HABITS))
def test_no_text_of_a_conversation_is_lost_in_silence(data: st.DataObject, habit: str) -> None:
    """Only a template that knows no turns of tools may refuse a conversation."""
    messages = data.draw(conversation())
    template: str = getattr(habits, habit)
    found = shape(template)
    options: dict[str, Any] = {"tools": [{"type": "function", "function": {"name": "look"}}]}
    try:
        text = rendered(template, turns(messages, found), options)
    except TemplateError:
        assert habit.startswith("ALTERNATES")
        assert any(message.role == "tool" for message in messages)
        return
    told = {warning.split(":")[0] for warning in warnings(messages, found)}
    assert not [path for path, word in texts(messages) if word not in text and path not in told]
    if habit != "SYSTEM_LAST":  # its order is its own
        places = [text.find(message.content) for message in messages if message.content and message.content in text]
        assert places == sorted(places)
