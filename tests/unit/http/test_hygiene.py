"""Prefix hygiene: what clients change goes behind what stays, and a user's own text is never touched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from daemon.http.hygiene import RULES, steadied
from mlx_sidecar import Message

CLAUDE = "You are a Claude agent, built on Anthropic's Claude Agent SDK.\n\nYou are an interactive agent."
OPENCODE = """You are opencode, an interactive CLI tool that helps users with software engineering tasks.

You are powered by the model named m. The exact model ID is mlx-sidecar/m
Here is some useful information about the environment you are running in:
<env>
  Working directory: /work
  Workspace root folder: /work
  Is directory a git repo: yes
  Platform: darwin
  Today's date: {day}
</env>
Skills provide specialized instructions."""
KILO = """You are Kilo, a highly skilled software engineer with extensive knowledge in many programming languages.

You are powered by the model named m. The exact model ID is mlx-sidecar/m
Here is some useful information about the environment you are running in:
<env>
  Is directory a git repo: yes
  Platform: darwin
  Today's date: {day}
  Project config: .kilo/command/*.md, .kilo/agent/*.md, kilo.json, AGENTS.md.
</env>"""
COPILOT = """You are the GitHub Copilot CLI, a terminal assistant built by GitHub.

Never repeat notifications verbatim.

{session}
<git_commit_trailer>
Co-authored-by: Copilot
</git_commit_trailer>"""
SESSION = """<session_context>
Session folder: /me/.copilot/session-state/{session}

Contents:
- files/: Persistent storage for session artifacts
</session_context>
"""
SESSIONS = ("69fcee3b-4b26-4e35-8b6c-f3e345d923c8", "8bbbbf9a-b56b-4c07-8282-cd4a00a628f8")
CRUSH = """You are Crush, a powerful AI Assistant that runs in the CLI.

<env>
Working directory: /work
Is directory a git repo: yes
Platform: darwin
Today's date: {day}


Git status (snapshot at conversation start - may be outdated):
clean
</env>
"""

CONTINUE = """You are an agent in the Continue CLI. Given the user's prompt, you should use the tools available to you.

Notes:
1. Be concise.
Here is useful information about the environment you are running in:
<env>
Working directory: /work
Is directory a git repo: true
Platform: darwin
{day}</env>

As you answer the user's questions, you can use the following context:

{status}<context name="commitSignature">Sign with Continue.
</context>
"""
STATUS = """<context name="gitStatus">This is the git status at the start of the conversation.

{files}
</context>
"""
CLINE = """You are Cline, an AI coding agent. Your primary goal is to assist users.

Environment you are running in:
<env>
1. Platform: darwin
2. Date: {day}
3. IDE: Terminal Shell
4. Working Directory: /work
</env>

Remember: be kind."""
PI = """You are an expert coding assistant operating inside pi, a coding agent harness. You help users.

# Project Context

Current date: in this project it is always a Monday.

Current date: {day}
Current working directory: /work"""

LINES = [
    "x-anthropic-billing-header: cc_version=2.1.197.4cb; cc_entrypoint=sdk-cli;",
    "x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch=fa690;",
    "x-anthropic-billing-header: cc_version=2.1.197.931; cc_entrypoint=cli; cc_workload=cron; cc_is_subagent=true;",
]
"""As releases of Claude Code send it."""


def chat(system: str, user: str = "Hello.") -> list[Message]:
    """Return a conversation."""
    return [Message("system", system), Message("user", user), Message("assistant", "Hi."), Message("user", "Go on.")]


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("between", ["", "\n", "\n\n"])
def test_claude_prompts_begin_alike(line: str, between: str) -> None:
    """However the API's blocks are joined."""
    turns, used = steadied(chat(f"{line}{between}{CLAUDE}"))
    assert (turns, used) == (chat(CLAUDE), ["claude_attribution"])


def test_a_turn_of_the_line_alone_goes_away() -> None:
    """Clients may send it as a turn of its own."""
    turns, _ = steadied([Message("system", LINES[0]), *chat(CLAUDE)])
    assert turns == chat(CLAUDE)


@pytest.mark.parametrize(
    ("system", "days", "rule", "name"),
    [
        (OPENCODE, ("Thu Nov 26 2026", "Fri Nov 27 2026"), "opencode_date", "Today's date"),
        (KILO, ("Thu Nov 26 2026", "Fri Nov 27 2026"), "kilo_date", "Today's date"),
        (
            KILO.replace("Kilo,", "Kilo Code,"),
            ("Thu Nov 26 2026", "Fri Nov 27 2026"),
            "kilo_date",
            "Today's date",
        ),
        (CRUSH, ("11/26/2026", "1/2/2027"), "crush_date", "Today's date"),
        (
            CONTINUE.format(day="Today's date: {day}\n", status=""),
            ("2026-11-26", "2027-01-02"),
            "continue_date",
            "Today's date",
        ),
        (CLINE, ("11/26/2026", "1/2/2027"), "cline_date", "2. Date"),
        (PI, ("2026-11-26", "2027-01-02"), "pi_date", "Current date"),
    ],
)
def test_a_day_moves_behind_the_system_prompt(system: str, days: tuple[str, str], rule: str, name: str) -> None:
    """The model still reads it, where the user begins; the system prompt is the same on the next day."""
    (first, used), (second, _) = (steadied(chat(system.format(day=day))) for day in days)
    assert used == [rule]
    assert first[0] == second[0]
    assert days[0] not in first[0].content
    assert first[1].content == f"{name}: {days[0]}\n\nHello."
    assert first[2:] == second[2:] == chat("")[2:]


def test_the_folder_of_a_session_moves_behind_the_system_prompt() -> None:
    """It is named after the session; the model still reads it, and what is in it."""
    (first, used), (second, _) = (
        steadied(chat(COPILOT.format(session=SESSION.format(session=name)))) for name in SESSIONS
    )
    assert used == ["copilot_session"]
    assert first[0] == second[0]
    assert first[0].content == COPILOT.format(session="")
    assert second[1].content == f"{SESSION.format(session=SESSIONS[1])}\nHello."


def test_the_state_of_a_repository_moves_behind_the_system_prompt() -> None:
    """It is another one in each session, and the model still reads all of it, the day too."""
    day = "Today's date: 2026-11-26\n"
    files = ["?? notes.txt", " M a file with </context>\n M another one"]
    (first, used), (second, _) = (
        steadied(chat(CONTINUE.format(day=day, status=STATUS.format(files=one)))) for one in files
    )
    assert used == ["continue_date", "continue_git_status"]
    assert first[0] == second[0]
    assert first[0].content == CONTINUE.format(day="", status="")
    assert second[1].content == f"{STATUS.format(files=files[1])}\n{day}\nHello."


def test_a_day_stays_where_there_is_no_user() -> None:
    """Nothing that a model may need is lost."""
    turns = [Message("system", OPENCODE.format(day="Thu Nov 26 2026"))]
    assert steadied(turns) == (turns, [])


LOOKALIKES = [
    f"Explain this header:\n{LINES[0]}",
    " " + LINES[0],
    "x-anthropic-billing-header: what is that?",
    "Today's date: Thu Nov 26 2026\n",
    "<env>\n  Today's date: Thu Nov 26 2026\n</env>\n",
    "My own prompt.\n" + OPENCODE.format(day="Thu Nov 26 2026"),
    OPENCODE.format(day="the day before yesterday"),
    OPENCODE.format(day="Thu Nov 26 2026").replace("Here is some useful", "Here is other"),
    "You are opencode, as I like it.\n<env>\n  Today's date: Thu Nov 26 2026\n</env>\n",
    KILO.format(day="2026-11-26"),
    KILO.format(day="Thu Nov 26 2026").replace("Kilo,", "Kilometre,"),
    COPILOT.format(session=SESSION.format(session="my own")),
    COPILOT.format(session="My notes:\n" + SESSION.format(session=SESSIONS[0])).replace("\n<session", "\n <session"),
    CRUSH.format(day="Thu Nov 26 2026"),
    CONTINUE.format(day="Today's date: soon\n", status=STATUS.format(files="clean")),
    CONTINUE.format(day="", status="My notes:\n" + STATUS.format(files="clean")),
    CLINE.format(day="2026-11-26"),
    PI.format(day="2026-11-26") + "\nMy own last line.",
]


@pytest.mark.parametrize("text", LOOKALIKES)
def test_text_that_looks_similar_stays(text: str) -> None:
    """A form that is not exactly known, or is at another place, is a user's own."""
    assert steadied(chat(text)) == (chat(text), [])


@pytest.mark.parametrize(
    "text",
    [
        *LINES,
        OPENCODE.format(day="Thu Nov 26 2026"),
        KILO.format(day="Thu Nov 26 2026"),
        COPILOT.format(session=SESSION.format(session=SESSIONS[0])),
        CRUSH.format(day="1/2/2027"),
        CONTINUE.format(day="Today's date: 2026-11-26\n", status=STATUS.format(files="clean")),
        CLINE.format(day="1/2/2027"),
        PI.format(day="2026-11-26"),
    ],
)
@pytest.mark.parametrize("role", ["user", "assistant", "tool"])
def test_only_the_system_turn_at_the_beginning_is_looked_at(role: str, text: str) -> None:
    """The known forms themselves stay in what a user asks or a tool returns."""
    for turns in ([Message(role, text), Message("user", "Hello.")], [Message("system", "Mine."), Message(role, text)]):
        assert steadied(turns) == (turns, [])


@given(some.lists(some.builds(Message, role=some.sampled_from(["system", "user", "assistant"]), content=some.text())))
def test_other_conversations_stay(turns: list[Message]) -> None:
    """Whatever they are."""
    assert steadied(turns) == (turns, [])


def _repeated_continue() -> str:
    head, surroundings = CONTINUE.format(day="", status=STATUS.partition("{files}")[0]).split("<env>\n")
    open_ended = "<env>\n" + surroundings.partition('<context name="commitSignature')[0]
    return head + "<env>\n" + open_ended * 20_000


def _repeated_copilot() -> str:
    head = COPILOT.partition("{session}")[0]
    return head + SESSION.format(session=SESSIONS[0]).partition("</session_context>")[0] * 20_000


@pytest.mark.parametrize("text", [_repeated_continue(), _repeated_copilot()], ids=["Continue", "Copilot"])
def test_a_text_that_repeats_a_beginning_takes_no_time(text: str) -> None:
    """A pattern that went on from each of them would read megabytes for each."""
    assert steadied(chat(text)) == (chat(text), [])


def test_each_rule_has_its_reason() -> None:
    """It is a row of the documentation."""
    assert all(rule.client and rule.text and rule.why for rule in RULES.values())
