"""A model that calls tools as Hermes does: its chat template, and its answers by the end of their prompts."""

from __future__ import annotations

CALLS_OF_A_TURN = """\
{%- for tool_call in message.tool_calls or [] %}
{%- set tool_call = tool_call.function %}
{{- '<tool_call>' ~ {'name': tool_call.name, 'arguments': tool_call.arguments} | tojson ~ '</tool_call>' }}
{%- endfor %}
"""
"""The part of a chat template that writes the calls of `message` as Hermes does."""

TEMPLATE = (
    """\
{%- for tool in tools or [] %}
{{- '<|im_start|>tool ' ~ tool.function.name ~ ' of ' ~ tool.function.parameters.required[0] ~ '<|im_end|>\n' }}
{%- endfor %}
{%- for message in messages %}
{{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content }}
"""
    + CALLS_OF_A_TURN
    + """\
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- set last = messages[-1] %}
{{- '<|im_start|>assistant\n' }}
{%- if last.role != 'tool' %}
{{- last.content if tools else 'no tools' }}
{%- else %}
{%- for tool_call in messages[-2].tool_calls if tool_call.id == last.tool_call_id %}
{{- tool_call.function.arguments.city ~ ' is ' ~ last.content }}
{%- endfor %}
{%- endif %}
"""
)
"""Of a model that calls tools as Hermes does. The end of a prompt tells what the template was given."""

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
    "Break it": ["Well: ", '<tool_call>{"name": "weather", ', '"arguments": ', "oh", "</tool_call> ", "that."],
    "Another": ["So: ", "<tool_call>\n", '{"name": "hammer"}', "</tool_call>!"],
    "no tools": ["I cannot ", '<tool_call>{"name": "weather"}</tool_call> look.'],
}  # fmt: skip
