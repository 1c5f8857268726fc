"""Anthropic's own Python SDK on the door, over a port and over the Unix socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.http.conftest import Door
from tests.http.sdks import results
from tests.support.scripted_model import scripted_model

TEMPLATE = """\
{%- for tool in tools or [] %}
{{- '<|im_start|>tool ' ~ tool.function.name ~ '<|im_end|>\n' }}
{%- endfor %}
{%- for message in messages %}
{{- '<|im_start|>' ~ message.role ~ '\n' }}
{%- if message.reasoning_content %}
{{- '<think>' ~ message.reasoning_content ~ '</think>' }}
{%- endif %}
{{- message.content }}
{%- for tool_call in message.tool_calls or [] %}
{%- set tool_call = tool_call.function %}
{{- '<tool_call>' ~ {'name': tool_call.name, 'arguments': tool_call.arguments} | tojson ~ '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- set last = messages[-1] %}
{%- if last.role == 'tool' %}
{{- messages[-2].tool_calls[0].function.arguments.city ~ ' is ' }}
{%- endif %}
{{- last.content }}
{%- endif %}
"""
"""Of a model that thinks and calls tools. The end of a prompt tells what the template was given."""

ANSWERS = {
    "Does it rain?": [
        "<think>", "Where? ", "In Bergen.", "</think>", "I ", "look.\n",
        "<tool", "_call>\n", '{"name": "weather", ', '"arguments": {"city"', ': "Bergen"}}', "\n</tool_", "call>",
    ],
    "Oslo too?": [
        '<tool_call>{"name": "weather", "arguments": {"city": "Bergen"}}</tool_call>\n', "<tool_call>",
        '{"name": "weather", "arguments": {"city": "Oslo"}}', "</tool_call>",
    ],
    "Bergen is wet": ["It ", "rains."],
    "Think": ["<think>\n", "One. ", "Two. ", "</think>\n", "Done."],
    "It is": [" wet", "."],
    "Shout": ["Hey! ", "HEY!", " HO!"],
}  # fmt: skip


@pytest.fixture(name="seen", scope="module", params=["unix_door", "port_door"])
def _seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the SDK saw of a door."""
    door: Door = request.getfixturevalue(request.param)
    model = scripted_model(tmp_path_factory.mktemp("models") / "calls", ANSWERS, TEMPLATE)
    base_url = door.base_url.removesuffix("/v1")
    return results("anthropic_program.py", base_url, door.token, door.unix, str(model))


def test_dump(seen):
    print(json.dumps(seen, indent=1))
