"""A model for frameworks of agents: it thinks, calls tools as Hermes does, and writes what each framework asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.scripted_model import scripted_model
from tests.support.tool_conversation import CALLS_OF_A_TURN

TEMPLATE = (
    """\
{%- set seen = namespace(results=0, lost='') %}
{%- for tool in tools or [] %}
{{- '<|im_start|>tool ' ~ tool | tojson ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- for message in messages %}
{{- '<|im_start|>' ~ message.role ~ '\\n' }}
{%- if message.reasoning_content %}{{- '<think>\\n' ~ message.reasoning_content.strip('\\n') ~ '\\n</think>\\n\\n' }}
{%- elif message.tool_calls and '</think>' not in message.content %}
{%- set seen.lost = ', all thoughts are lost' %}
{%- endif %}
{{- message.content }}
{%- if message.role == 'tool' %}{% set seen.results = seen.results + 1 %}{% endif %}
"""
    + CALLS_OF_A_TURN
    + """\
{{- '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' }}
{%- set last = messages[-1] %}
{%- set names = (tools or []) | map(attribute='function') | map(attribute='name') | list %}
{%- if last.role == 'tool' %}{{- 'results: ' ~ seen.results ~ seen.lost }}
{%- elif 'Observation:' in last.content %}{{- 'what a tool of smolagents brought' }}
{%- elif 'Does it rain?' in last.content and 'final_answer' in names %}{{- 'a task of smolagents' }}
{%- elif 'PartialReport' in names %}{{- 'a report in parts' }}
{%- else %}
{%- for words in WORDS if words in last.content %}{{- words if loop.first }}{% endfor %}
{%- endif %}
"""
)
"""
What a prompt ends with is the script's next line: the number of results, or what the user asks for.

A turn with calls that comes back without its reasoning has an end of its own.
"""

ANSWERS = {
    "Does it rain?": [
        "<think>", "\nWhere? ", "In Bergen and Oslo.\n", "</think>", "\n\nI ", "look.\n",
        "<tool_call>\n", '{"name": "weather", ', '"arguments": {"city"', ': "Bergen"}}', "\n</tool_call>",
        '\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}', "\n</tool_", "call>",
    ],
    "results: 2": ["It ", "rains."],
    "results: 2, all thoughts are lost": ["It is wet, ", "and all is forgotten."],
    "a form": ['{"city": "Oslo", "degrees": 7}'],
    "a Report": ['<tool_call>\n{"name": "Report", "arguments": {"city": "Bonn", ', '"degrees": 9}}\n</tool_call>'],
    "a report in parts": [
        '<tool_call>\n{"name": "PartialReport", "arguments": {"city": "Graz", ', '"degrees": 19}}\n</tool_call>'
    ],
    "a final result": [
        '<tool_call>\n{"name": "final_result", "arguments": {"city": "Kiel", ', '"degrees": 8}}\n</tool_call>'
    ],
    "a fence": ["```json\n", '{"city": "Ulm", "degrees": 3}', "\n```"],
    "a task of smolagents": ['<tool_call>\n{"name": "weather", "arguments": {"city": "Pisa', '"}}\n</tool_call>'],
    "what a tool of smolagents brought": [
        '<tool_call>\n{"name": "final_answer", "arguments": {"answer": "It is wet', '."}}\n</tool_call>'
    ],
    "some code": ["Thought: I look.\n<code>\n", "final_answer(weather(", "'Pau'))\n", "</code>", " after it"],
    "code as JSON": ['{"thought": "I look.", ', '"code": "final_answer(weather(\'Lyon\'))"}'],
    "[[ ## answer ## ]]": [
        "[[ ## reasoning ## ]]\nIt is so.\n\n", "[[ ## answer ## ]]\nyes", "\n\n[[ ## completed ## ]]",
    ],
}  # fmt: skip
WORDS = (
    "Does it rain?",
    "a form",
    "a Report",
    "a final result",
    "a fence",
    "some code",
    "code as JSON",
    "[[ ## answer ## ]]",
)
SIZES: dict[str, Any] = {"max_position_embeddings": 131072, "num_hidden_layers": 1, "hidden_size": 1024, "head_dim": 16}


def agents_model(path: Path) -> Path:
    """Write the model into a new directory, and return the directory."""
    return scripted_model(path, ANSWERS, f"{{%- set WORDS = {WORDS} %}}\n" + TEMPLATE, **SIZES)
