"""A model that thinks and calls tools: its chat template, and its answers by the end of their prompts."""

from __future__ import annotations

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
    "It is": [" wet", " today."],
    "Shout": ["Hey! ", "HEY! ", "HO!"],
}  # fmt: skip
