"""Models with random weights that are driven to begin tool calls: the marks of each notation, requests, and answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import marked_model
from tests.unit.engine.harness import Answer

HERMES = (
    {"<think>": False, "</think>": False, "<tool_call>": False, "</tool_call>": False},
    "<tool_call> tool_call.name",
)

PAINT = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "blue"]},
        "coats": {"$ref": "#/$defs/few"},
        "where": {"type": "array", "items": {"type": "boolean"}},
    },
    "required": ["color", "coats"],
    "additionalProperties": False,
    "$defs": {"few": {"type": "integer", "minimum": 1, "maximum": 9}},
}
TOOLS = [pb.Tool(name="paint", parameters_json=json.dumps(PAINT)), pb.Tool(name="go_home")]
SCHEMA_OF = {"paint": PAINT, "go_home": {"const": {}}}
AUTO, REQUIRED = pb.TOOL_CHOICE_AUTO, pb.TOOL_CHOICE_REQUIRED
FIRST = 737
"""The id of the first mark."""

MARKS: dict[str, tuple[list[str], str]] = {
    "Hermes": (["<tool_call>", "</tool_call>"], "<tool_call>"),
    "Qwen 3 Coder": (["<tool_call>", "</tool_call>"], "<tool_call>\n<function="),
    "GLM": (["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"], "<arg_key>"),
    "LongCat": (["<longcat_tool_call>", "<longcat_arg_key>", "<longcat_arg_value>"], "<longcat_tool_call>"),
    "MiniCPM 5": (["<function name=", "<param name=", "</param>"], '<function name=" <param name="'),
    "MiniMax M2": (["<minimax:tool_call>", "</minimax:tool_call>"], "<minimax:tool_call>"),
    "MiniMax M3": (["]<]minimax[>[<tool_call>"], "]<]minimax[>["),
    "DeepSeek V3.2": (["<｜DSML｜function_calls>", "｜DSML｜"], "｜DSML｜"),
    "DeepSeek V4": (["<｜DSML｜tool_calls>", "｜DSML｜"], "｜DSML｜ tool_calls>"),
    "DeepSeek V3": (
        ["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>"],
        "<｜tool▁calls▁begin｜> ```json",
    ),
    "DeepSeek V3.1": (["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>"], "<｜tool▁calls▁begin｜>"),
    "Kimi K2": (["<|tool_calls_section_begin|>", "<|tool_call_begin|>"], "<|tool_calls_section_begin|>"),
    "Mistral": (["[TOOL_CALLS]", "[ARGS]"], "[TOOL_CALLS]"),
    "Mistral, older": (["[TOOL_CALLS]"], "[TOOL_CALLS]"),
    "Llama 3": (["<|python_tag|>"], "<|python_tag|>"),
    "Llama 4": (["<|python_start|>", "<|python_end|>"], '"parameters": dictionary of argument name and its value'),
    "OLMo 3": (["<function_calls>", "</function_calls>"], "<functions> <function_calls>"),
    "Hunyuan": (["<tool_calls>", "<tool_call>", "</tool_call>"], "<tool_calls><tool_call> ```json"),
    "LFM2": (["<|tool_call_start|>", "<|tool_call_end|>"], "<|tool_call_start|>"),
    "Gemma 4": (["<|tool_call>", "<tool_call|>", '<|"|>'], "<|tool_call> <tool_call|>"),
    "FunctionGemma": (["<start_function_call>", "<end_function_call>", "<escape>"], "<start_function_call>"),
    "Granite 3": (["<|tool_call|>"], "<|tool_call|>"),
    "Phi 4": (["<|tool_call|>", "<|/tool_call|>"], "<|tool_call|> <|/tool_call|>"),
    "Nemotron": (["<TOOLCALL>", "</TOOLCALL>"], "<TOOLCALL>"),
    "Command A": (["<|START_ACTION|>", "<|END_ACTION|>"], "<|START_ACTION|>"),
    "Functionary 3.1": (["<function="], "<function= </function>"),
    "Apertus": (["<|tools_prefix|>", "<|tools_suffix|>"], "<|tools_prefix|>"),
    "Seed-OSS": (["<seed:tool_call>", "</seed:tool_call>"], "<seed:tool_call>"),
}
"""For each notation, its tokens, of which the first begins a call, and a text of its template."""
SWITCH = "{%- if enable_thinking %}{%- endif %}"
"""A template that reads the switch of thinking, and writes nothing for it."""


@pytest.fixture(name="model")
def _model(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a random model with these tokens, which are special or not."""

    def write(marks: list[str], known_by: str, *, special: bool = True, opened: str = "") -> str:
        return str(marked_model(tmp_path, dict.fromkeys(marks, special), f"{{# {known_by} #}}{SWITCH}{opened}"))

    return write


def request(model: str, **fields: Any) -> pb.GenerateRequest:
    """Return a request for a conversation."""
    sampling = {"temperature": 2.0, "seed": 5, **fields.pop("sampling", {})}
    chat = {"tools": TOOLS, **fields.pop("chat", {})}
    return pb.GenerateRequest(
        model=model,
        chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="Hello")], **chat),
        sampling=pb.Sampling(**sampling),
        **{"max_tokens": 120, **fields},
    )


def calls_of(answer: Answer) -> list[tuple[str, Any]]:
    """Return the calls of an answer."""
    deltas = [event.generate.delta for event in answer.events if event.generate.HasField("delta")]
    return [(call.name, json.loads(call.arguments_json)) for delta in deltas for call in delta.tool_calls]
