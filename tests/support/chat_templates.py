"""Small chat templates, each with one habit of the templates that models have."""

from __future__ import annotations

TURN = "{{ '<' ~ m.role ~ '>' ~ m.content ~ '</>' }}"
OPEN = "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
CALLS = "{% for c in m.tool_calls or [] %}{{ '[' ~ c.function.name ~ ' ' ~ ARGUMENTS ~ ']' }}{% endfor %}"


def loop(body: str) -> str:
    """Return a template that writes a body for each message `m`."""
    return f"{{% for m in messages %}}{body}{{% endfor %}}{OPEN}"


ECHO = loop(TURN + CALLS.replace("ARGUMENTS", "c.function.arguments | tojson"))
"""Writes any role, and calls as JSON; leaves reasoning out."""

CONCATENATES = loop(TURN + CALLS.replace("ARGUMENTS", "c.function.arguments").replace(" ~ ", " + "))
"""Adds arguments to strings, as DeepSeek V3.1 does."""

PRINTS = loop(TURN + CALLS.replace("ARGUMENTS", "c.function.arguments"))
"""Prints arguments: a mapping would be one of Python."""

ITERATES = loop(
    TURN + "{% for c in m.tool_calls or [] %}{{ '[' ~ c.function.name }}"
    "{% for key, value in c.function.arguments.items() %}{{ ' ' ~ key ~ '=' ~ value }}{% endfor %}]{% endfor %}"
)
"""Goes through the arguments, as GLM does."""

NULL_CONTENT = loop(
    "{% if m.content is none %}" + CALLS.replace("ARGUMENTS", "c.function.arguments")
    + "{% else %}" + TURN + "{% endif %}"
)  # fmt: skip
"""Writes calls only of turns without content, as DeepSeek V3 does."""

CALLS_OR_TEXT = loop(
    "{% if m.tool_calls %}" + CALLS.replace("ARGUMENTS", "c.function.arguments | tojson")
    + "{% else %}" + TURN + "{% endif %}"
)  # fmt: skip
"""Leaves out the text of a turn with calls, as Llama 3.1 does."""

FIRST_CALL = loop(TURN + "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% endif %}")
"""Writes the first call alone."""

NAMES_TOOLS = loop(
    "{% if m.role == 'tool' %}{% if not m.name %}{{ raise_exception('a tool has a name') }}{% endif %}"
    "{{ '<tool ' ~ m.name ~ '>' ~ m.content ~ '</>' }}{% else %}" + TURN
    + CALLS.replace("ARGUMENTS", "c.function.arguments | tojson") + "{% endif %}"
)  # fmt: skip
"""Needs the name of the tool in its answer."""

NINE = loop(
    "{% for c in m.tool_calls or [] if c.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endfor %}"
    + TURN + "{% if m.tool_call_id %}{{ '(' ~ m.tool_call_id ~ ')' }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson ~ '(' ~ c.id ~ ')' }}{% endfor %}"
)  # fmt: skip
"""Needs ids of nine letters, as Mistral's do."""

SEEN_IDS = "{% set ns = namespace(seen=[]) %}" + loop(
    "{% if m.role != 'tool' %}" + TURN + CALLS.replace("ARGUMENTS", "c.function.arguments | tojson")
    + "{% elif m.tool_call_id not in ns.seen %}{% set ns.seen = ns.seen + [m.tool_call_id] %}" + TURN + "{% endif %}"
)  # fmt: skip
"""Writes one answer for each id, as Command R7B does."""

NO_TOOLS = loop("{% if m.role in ['system', 'user', 'assistant'] %}" + TURN + "{% endif %}")
"""Knows no tools: calls and answers vanish."""

ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}" + TURN + "{% endfor %}" + OPEN
)
"""Takes the user and the assistant in turn and nothing else, as Gemma 2 does."""

ALTERNATES_BESIDE_TOOLS = (
    "{% set ns = namespace(at=0) %}{% for m in messages if m.role != 'tool' and not m.tool_calls %}"
    "{% if (m.role == 'user') != (ns.at % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set ns.at = ns.at + 1 %}{% endfor %}"
    + loop(TURN + CALLS.replace("ARGUMENTS", "c.function.arguments | tojson"))
)  # fmt: skip
"""Takes the user and the assistant in turn, turns of tools apart, as Mistral's do."""

FIRST_SYSTEM = loop(
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('the system comes first') }}{% endif %}"
    "{% if m.role != 'developer' %}" + TURN + "{% endif %}"
)
"""Takes one system turn, at the beginning, and knows no developer."""

GATHERS_SYSTEMS = (
    "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
    "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}" + OPEN
)
"""Writes all system turns at the beginning, as DeepSeek does."""

DEVELOPER = loop("{% if m.role == 'developer' %}{{ '<developer>' ~ m.content }}{% else %}" + TURN + "{% endif %}")
"""Has a meaning for the role `developer`."""

THINKS_LAST = loop("{% if loop.last and m.reasoning_content %}{{ m.reasoning_content }}{% endif %}" + TURN)
"""Writes the reasoning of the last turn alone."""

FORGETS_REASONING = (
    "{% set ns = namespace(at=0) %}{% set last = messages | selectattr('role', 'equalto', 'user') | list | length %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.at = ns.at + 1 %}{% endif %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('the system comes first') }}{% endif %}"
    "{{ m.reasoning_content or '' if ns.at == last else '' }}" + TURN
    + CALLS.replace("ARGUMENTS", "c.function.arguments | tojson") + "{% endfor %}" + OPEN
)  # fmt: skip
"""Writes reasoning after the last user turn, and takes one system turn, as Qwen 3.5 does."""

REASONS = loop(TURN + "{{ m.reasoning or '' }}")
"""Reads reasoning under another name."""

BLOCKS = loop(
    "{% if m.content is string %}" + TURN + "{% else %}{{ '<' ~ m.role ~ '>' }}{% for b in m.content or [] %}"
    "{{ '[THINK]' ~ b.thinking ~ '[/THINK]' if b.type == 'thinking' else b.text }}{% endfor %}{{ '</>' }}{% endif %}"
    + CALLS.replace("ARGUMENTS", "c.function.arguments | tojson")
)  # fmt: skip
"""Reads reasoning as a block of the content, as Ministral does."""

FLAGGED = (
    "{% set ns = namespace(on=true) %}{% for m in messages %}{% if '/no_think' in m.content %}{% set ns.on = false %}"
    "{% endif %}{{ '<' ~ m.role ~ '>' ~ m.content.replace('/no_think', '').replace('/think', '').strip() ~ '</>' }}"
    "{% endfor %}{{ '<think>' if ns.on else '' }}"
)
"""Reads a word in the system's text, as Nemotron does."""

ONLY_TOOLS = "{% for t in tools %}{% endfor %}" + ECHO
"""Fails without tools, as templates named `tool_use` may."""

SYSTEM_LAST = (
    "{% for m in messages if m.role != 'system' %}"
    "{% if loop.last and m.role == 'user' and messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    + TURN + CALLS.replace("ARGUMENTS", "c.function.arguments | tojson")
    + "{% endfor %}" + OPEN
)  # fmt: skip
"""Writes the system's text before the last turn, if that is the user's, as Mistral Nemo does."""

FORGETS_TEXT = (
    "{% set ns = namespace(at=0) %}{% set last = messages | selectattr('role', 'equalto', 'user') | list | length %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.at = ns.at + 1 %}{% endif %}"
    "{% if m.tool_calls and ns.at < last %}{{ '<assistant></>' }}{% else %}" + TURN + "{% endif %}"
    + CALLS.replace("ARGUMENTS", "c.function.arguments | tojson") + "{% endfor %}" + OPEN
)  # fmt: skip
"""Drops the text of a turn with calls once the user has gone on, as gpt-oss does."""

PLANS = loop(
    "{% if m.tool_calls %}{{ m.reasoning_content or '' }}" + CALLS.replace("ARGUMENTS", "c.function.arguments | tojson")
    + "{% else %}" + TURN + "{% endif %}"
)  # fmt: skip
"""Writes reasoning of turns with calls alone, and no text of theirs, as Command R7B does."""

ONE_PLACE = loop(
    "{% if m.tool_calls and m.thinking and m.content %}{{ raise_exception('both') }}{% endif %}{{ m.thinking or '' }}"
    + TURN + CALLS.replace("ARGUMENTS", "c.function.arguments | tojson")
)  # fmt: skip
"""Has one place for reasoning and text of a turn with calls, as gpt-oss does."""


def switched(name: str) -> str:
    """Return a template with a switch of thinking of a name, that is off by default."""
    return ECHO + "{% if NAME is defined and NAME %}{{ '<think>' }}{% endif %}".replace("NAME", name)
