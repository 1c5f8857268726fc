"""A model that thinks and calls tools: its chat template, and its answers by the end of their prompts."""

from __future__ import annotations

from tests.support.tool_conversation import ANSWERS as CALLS
from tests.support.tool_conversation import CALLS_OF_A_TURN

TEMPLATE = (
    """\
{%- for tool in tools or [] %}
{{- '<|im_start|>tool ' ~ tool.function.name ~ '<|im_end|>\n' }}
{%- endfor %}
{%- for message in messages %}
{{- '<|im_start|>' ~ message.role ~ '\n' }}
{%- if message.reasoning_content %}
{{- '<think>' ~ message.reasoning_content ~ '</think>' }}
{%- endif %}
{{- message.content }}
"""
    + CALLS_OF_A_TURN
    + """\
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
)
"""Of a model that thinks and calls tools. The end of a prompt tells what the template was given."""

ANSWERS = {
    **{asked: CALLS[asked] for asked in ("Does it rain?", "Oslo too?", "Bergen is wet")},
    "Think": ["<think>\n", "One. ", "Two. ", "</think>\n", "Done."],
    "It is": [" wet", " today."],
    "Shout": ["Hey! ", "HEY! ", "HO!"],
}
