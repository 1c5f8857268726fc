"""
Prefix hygiene: what a client changes at the beginning of its prompts is moved behind what stays the same, or dropped.

A prompt is reused up to the first token that differs. Some clients write a line into their system prompt that changes
with each session or each day; everything behind it, tools included, would be computed anew. `RULES` has these lines,
each in its exact form and at its exact place, with the reason. What a user wrote is never looked at: only the first
turn, and only if it is the system's.

    dropped      the line says nothing to the model
    moved        the model may need it: the line becomes the beginning of the first turn of the user
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mlx_sidecar import Message

SYSTEM, USER = "system", "user"


@dataclass(frozen=True, slots=True)
class Rule:
    """
    A text that changes.

    Attributes:
        client: What writes it.
        text: What it is, in words.
        why: Why it changes, and what the treatment costs.
        pattern: Matches the system turn from its beginning. Its group `changing` is the text that goes away.
        moved: Whether that text becomes the beginning of the first turn of the user.
    """

    client: str
    text: str
    why: str
    pattern: re.Pattern[str]
    moved: bool


_EACH_DAY = "changes at midnight, before the tools and all turns; a model may need it"
_CONTINUE = (
    r"(?>You are an agent in the Continue CLI\. .*?\n<env>\n)"
    r"Working directory: [^\n]*\nIs directory a git repo: (?:true|false)\nPlatform: [^\n]*\n"
)
"""The beginning of Continue's system prompt, up to what changes; atomic, as a search follows it."""

RULES: Mapping[str, Rule] = {
    "claude_attribution": Rule(
        "Claude Code",
        "first line of the system prompt: `x-anthropic-billing-header: cc_version=…; cc_entrypoint=…; cch=…;`",
        "`cch` changes with each request, and the end of `cc_version` with the user's first words; it is meant for "
        "the maker's billing, and says nothing to a model",
        re.compile(
            r"(?P<changing>x-anthropic-billing-header: cc_version=[\w.-]{1,64};"
            r"(?: (?:cc_entrypoint|cch|cc_workload|cc_is_subagent)=[\w.-]{0,64};){0,4}\n*)"
        ),
        moved=False,
    ),
    "opencode_date": Rule(
        "opencode",
        "the day in the list of surroundings: `Today's date: …`",
        _EACH_DAY,
        re.compile(
            r"You are (?:opencode|OpenCode), .*?"
            r"\nHere is some useful information about the environment you are running in:\n<env>\n"
            r"  Working directory: [^\n]*\n  Workspace root folder: [^\n]*\n  Is directory a git repo: (?:yes|no)\n"
            r"  Platform: [^\n]*\n(?P<changing>  Today's date: [A-Z][a-z]{2} [A-Z][a-z]{2} \d\d \d{4}\n)</env>\n",
            re.DOTALL,
        ),
        moved=True,
    ),
    "kilo_date": Rule(
        "Kilo Code",
        "the day in the list of surroundings: `Today's date: …`",
        _EACH_DAY,
        re.compile(
            r"You are Kilo(?: Code)?, .*?"
            r"\nHere is some useful information about the environment you are running in:\n<env>\n"
            r"  Is directory a git repo: (?:yes|no)\n  Platform: [^\n]*\n"
            r"(?P<changing>  Today's date: [A-Z][a-z]{2} [A-Z][a-z]{2} \d\d \d{4}\n)  Project config: ",
            re.DOTALL,
        ),
        moved=True,
    ),
    "copilot_session": Rule(
        "Copilot CLI",
        "the folder of the session, and what is in it: `<session_context>…</session_context>`",
        "the folder's name is the session's id, before the tools and all turns; a model may need it",
        re.compile(
            r"(?>You are the GitHub Copilot CLI, .*?\n(?=<session_context>\n))"
            r"(?P<changing><session_context>\nSession folder: [^\n]*/session-state/[0-9a-f-]{36}\n"
            r".*?\n</session_context>\n)",
            re.DOTALL,
        ),
        moved=True,
    ),
    "crush_date": Rule(
        "Crush",
        "the day in the list of surroundings: `Today's date: …`",
        _EACH_DAY,
        re.compile(
            r"You are (?:a coding agent running in the Crush CLI|Crush, a powerful AI Assistant)\b.*?"
            r"\n<env>\nWorking directory: [^\n]*\nIs directory a git repo: (?:yes|no)\nPlatform: [^\n]*\n"
            r"(?P<changing>Today's date: \d{1,2}/\d{1,2}/\d{4}\n)",
            re.DOTALL,
        ),
        moved=True,
    ),
    "continue_date": Rule(
        "Continue (`cn`)",
        "the day in the list of surroundings: `Today's date: …`",
        _EACH_DAY,
        re.compile(
            _CONTINUE + r"(?P<changing>Today's date: \d{4}-\d\d-\d\d\n)</env>\n",
            re.DOTALL,
        ),
        moved=True,
    ),
    "continue_git_status": Rule(
        "Continue (`cn`)",
        'the state of the repository: `<context name="gitStatus">…</context>`',
        "changes with each session in which a file was changed, before the tools and all turns; a model may need it",
        re.compile(
            _CONTINUE + r"(?:Today's date: \d{4}-\d\d-\d\d\n)?</env>\n\n[^\n]*:\n\n"
            r"(?P<changing><context name=\"gitStatus\">.*?\n</context>\n?)",
            re.DOTALL,
        ),
        moved=True,
    ),
    "cline_date": Rule(
        "Cline",
        "the day in the list of surroundings: `2. Date: …`",
        _EACH_DAY,
        re.compile(
            r"You are Cline, an AI coding agent\. .*?\nEnvironment you are running in:\n<env>\n1\. Platform: [^\n]*\n"
            r"(?P<changing>2\. Date: \d{1,2}/\d{1,2}/\d{4}\n)3\. ",
            re.DOTALL,
        ),
        moved=True,
    ),
    "pi_date": Rule(
        "pi",
        "the day at the end of the system prompt: `Current date: …`",
        _EACH_DAY,
        re.compile(
            r"You are an expert coding assistant operating inside pi, a coding agent harness\. .*"
            r"(?P<changing>\nCurrent date: \d{4}-\d\d-\d\d)\nCurrent working directory: [^\n]*\Z",
            re.DOTALL,
        ),
        moved=True,
    ),
}
"""Every text, by its name in counts."""


def steadied(turns: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """
    Return the turns of a conversation with a beginning that stays the same, and the names of the rules that changed it.

    A text that has to be moved stays where it is if there is no turn of the user.
    """
    found = list(turns)
    used = [name for name, rule in RULES.items() if _apply(found, rule)]
    return found, used


def _apply(turns: list[Message], rule: Rule) -> bool:
    """Apply a rule to turns in place, and tell whether it changed them."""
    if not turns or turns[0].role != SYSTEM or (match := rule.pattern.match(turns[0].content)) is None:
        return False
    if rule.moved:
        first = next((index for index, turn in enumerate(turns) if turn.role == USER), None)
        if first is None:
            return False
        moved = match["changing"].strip() + "\n\n"
        turns[first] = replace(turns[first], content=moved + turns[first].content)
    begin, end = match.span("changing")
    turns[0] = replace(turns[0], content=turns[0].content[:begin] + turns[0].content[end:])
    if not turns[0].content:
        del turns[0]
    return True
