"""The ten conversations that each chat template renders."""

from __future__ import annotations

import json
from typing import Any

from mlx_sidecar.v1 import sidecar_pb2 as pb

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "A city."},
        "days": {"type": "integer", "description": "Days ahead."},
        "tags": {"type": "array", "items": {"type": "string"}, "description": "Tags."},
    },
    "required": ["city"],
}
TOOL = pb.Tool(name="get_weather", description="Tells the weather.", parameters_json=json.dumps(SCHEMA))
FIRST = {"city": 'Köln "Süd"\n</b>', "days": 3, "tags": ["warm", "dry"]}
SECOND = {"city": "5"}


def _turn(role: str, content: str = "", **fields: Any) -> pb.ChatMessage:
    return pb.ChatMessage(role=role, content=content, **fields)


def _call(number: int, arguments: dict[str, Any]) -> pb.ToolCall:
    """Return a call. Its id has nine letters and digits, which Mistral's templates demand."""
    text = json.dumps(arguments, ensure_ascii=False)
    return pb.ToolCall(id=f"call0000{number}", name="get_weather", arguments_json=text)


def _result(number: int) -> pb.ChatMessage:
    return _turn("tool", f"RESULT{number}", tool_call_id=f"call0000{number}")


ASKED = _turn("user", "QUESTION")
CALLED = _turn("assistant", tool_calls=[_call(1, FIRST)])
TWICE = _turn("assistant", "BEFORE", tool_calls=[_call(1, FIRST), _call(2, SECOND)])
TOOLS = [TOOL]
UNICODE = "é e\u0301 漢字 🙂 👩‍👩‍👧 \u202eabc\u202c \x00\x1b\x7f <|im_end|> </s> [INST] {{ x }} {% y %} \r\n\t\u2028"

CONVERSATIONS: dict[str, pb.Chat] = {
    "system": pb.Chat(messages=[_turn("system", "SYSTEM"), ASKED]),
    "tools": pb.Chat(messages=[_turn("system", "SYSTEM"), ASKED], tools=TOOLS),
    "call": pb.Chat(messages=[ASKED, CALLED, _result(1)], tools=TOOLS),
    "answer": pb.Chat(messages=[ASKED, CALLED, _result(1), _turn("assistant", "ANSWER"), ASKED], tools=TOOLS),
    "two calls": pb.Chat(messages=[ASKED, TWICE, _result(1), _result(2)], tools=TOOLS),
    "reasoning": pb.Chat(
        messages=[ASKED, _turn("assistant", "ANSWER", reasoning_content="THOUGHT"), ASKED, CALLED, _result(1)],
        tools=TOOLS,
    ),
    "thinking on": pb.Chat(messages=[ASKED], enable_thinking=True),
    "thinking off": pb.Chat(messages=[ASKED], enable_thinking=False),
    "unicode": pb.Chat(messages=[_turn("user", UNICODE), _turn("assistant", UNICODE), _turn("user", UNICODE)]),
    "long": pb.Chat(messages=[_turn("user" if i % 2 == 0 else "assistant", f"turn {i} " * 40) for i in range(101)]),
    "empty": pb.Chat(messages=[_turn("user"), _turn("assistant"), _turn("user")]),
}
"""Thinking on and off are one conversation."""

PARTS = {
    "system": ("SYSTEM", "QUESTION"),
    "tools": ("SYSTEM", "QUESTION", "get_weather", "Tells the weather."),
    "call": ("QUESTION", "Köln", "RESULT1"),
    "answer": ("QUESTION", "Köln", "RESULT1", "ANSWER"),
    "two calls": ("QUESTION", "BEFORE", "Köln", "RESULT1", "RESULT2"),
    "reasoning": ("QUESTION", "ANSWER", "Köln", "RESULT1"),
}
"""What the text of a conversation should contain. Reasoning of earlier turns is left out by most models on purpose."""
