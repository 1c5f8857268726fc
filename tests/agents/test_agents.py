"""
Real agents on the daemon, started by `mlx-sidecar launch`: each is asked to change a file, and does.

The models' weights spell what an agent needs: a look at the file, an edit, and last words. Everything else is real: the
agents of npm, HTTP, the daemon and its engine. Homes are new ones, and the only server is the daemon's door.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.agents.install import programs
from tests.conftest import short_folder
from tests.support.daemons import RunningDaemon, wait_until
from tests.support.scripted_model import scripted_model
from tests.support.tool_conversation import CALLS_OF_A_TURN

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]

OLD, NEW = "old words\n", "new words\n"
LAST_WORDS = "The notes are new."
THOUGHT, LOST = "This is step", "My thoughts are lost."
REUSED = 0.8
"""Share of the second session's first prompt that the first session has left. The user's words are not its end."""
ASKED = ("Please change the notes.", "Once more, but in other words: write the notes anew.")
RUN_SECONDS = 300
NOTES_SERVER = Path(__file__).with_name("notes_server.py")
LONG = {"max_position_embeddings": 131072, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
"""A model of one small layer: tens of thousands of tokens are computed in no time."""

TEMPLATE = (
    """\
{%- set given = namespace(lost=false) %}
{%- for message in messages %}
{{- '<|im_start|>' ~ message.role ~ '\\n' }}
{%- if message.reasoning_content %}{{- '<think>\\n' ~ message.reasoning_content.strip('\\n') ~ '\\n</think>\\n\\n' }}
{%- elif message.tool_calls %}{% set given.lost = true %}{% endif %}
{{- message.content }}
{%- if loop.first %}{% for tool in tools or [] %}{{- tool | tojson ~ '\\n' }}{% endfor %}{% endif %}
"""
    + CALLS_OF_A_TURN
    + """\
{{- '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' }}
{%- set results = messages | selectattr('role', 'equalto', 'tool') | list | length %}
{%- if MAIN not in (tools or []) | map(attribute='function') | map(attribute='name') | list %}
{{- 'a side job' }}
{%- elif given.lost and not FORGETS %}
{{- 'the main job, without what was thought of it' }}
{%- else %}
{{- 'the main job, step ' ~ [results, STEPS] | min }}
{%- endif %}
"""
)
"""
Of a model that thinks, and calls tools as Hermes does. A side job, such as a title, is one without the tool that edits.

A turn with calls that comes back without its reasoning has an end of its own.
"""


def called(name: str, **arguments: Any) -> str:
    """Return a call as Hermes writes it."""
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


def calls_of_opencode(file: str) -> list[str]:
    """Return the calls that change a file in opencode, and in what is made of it."""
    return [
        called("read", filePath=file),
        called("edit", filePath=file, oldString=OLD.strip(), newString=NEW.strip()),
    ]


@dataclass(frozen=True, slots=True)
class Agent:
    """
    An agent.

    Attributes:
        arguments: What makes it work without questions, up to the words of the user.
        tool: Its tool that edits, as the model knows it.
        calls: Returns the calls that change a file.
        program: What `launch` calls it, if that is another name.
        forgets: Whether it drops what the model thought.
        least: Its first prompt has more tokens than this.
    """

    arguments: Sequence[str]
    tool: str
    calls: Callable[[str], Sequence[str]]
    program: str = ""
    forgets: bool = False
    least: int = 10_000


AGENTS = {
    "opencode": Agent(
        ["run"],
        "edit",
        calls_of_opencode,
    ),
    "qwen": Agent(
        ["--approval-mode", "yolo", "-p"],
        "edit",
        lambda file: [
            called("read_file", file_path=file),
            called("edit", file_path=file, old_string=OLD.strip(), new_string=NEW.strip()),
        ],
    ),
    "codex": Agent(
        ["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"],
        "exec_command",
        lambda file: [
            called("exec_command", cmd=f"cat {file}"),
            called("exec_command", cmd=f"printf '{NEW.strip()}\\n' > {file}"),
        ],
    ),
    "codex with an MCP server": Agent(
        [
            "exec",
            "--skip-git-repo-check",
            "--dangerously-bypass-approvals-and-sandbox",
            "-c",
            f"mcp_servers.notes.command={json.dumps(sys.executable)}",
            "-c",
            f"mcp_servers.notes.args={json.dumps([str(NOTES_SERVER)])}",
        ],
        "mcp__notes__write",
        lambda file: [
            called("exec_command", cmd=f"cat {file}"),
            called("mcp__notes__write", path=file, text=NEW),
        ],
        program="codex",
    ),
    "cline": Agent(
        [],
        "editor",
        lambda file: [
            called("read_files", files=[{"path": file}]),
            called("editor", path=file, old_text=OLD.strip(), new_text=NEW.strip()),
        ],
    ),
    "continue": Agent(
        ["--auto", "-p"],
        "Edit",
        lambda file: [
            called("Read", filepath=file),
            called("Edit", file_path=file, old_string=OLD.strip(), new_string=NEW.strip()),
        ],
        forgets=True,
        least=5_000,
    ),
    "pi": Agent(
        ["-p"],
        "edit",
        lambda file: [
            called("read", path=file),
            called("edit", path=file, edits=[{"oldText": OLD.strip(), "newText": NEW.strip()}]),
        ],
        least=3_500,
    ),
    "kilo": Agent(
        ["run", "--auto"],
        "edit",
        calls_of_opencode,
    ),
    "copilot": Agent(
        ["--no-auto-update", "--allow-all", "-p"],
        "edit",
        lambda file: [
            called("view", path=file),
            called("edit", path=file, old_str=OLD.strip(), new_str=NEW.strip()),
        ],
    ),
    "claude": Agent(
        ["--permission-mode", "acceptEdits", "-p"],
        "Edit",
        lambda file: [
            called("Read", file_path=file),
            called("Edit", file_path=file, old_string=OLD.strip(), new_string=NEW.strip()),
        ],
    ),
}


@dataclass(frozen=True, slots=True)
class Session:
    """
    What a session of an agent left.

    Attributes:
        status: Exit status.
        output: What it printed.
        content: The file.
        calls: Log lines of its calls to the daemon, the main job's alone.
        least: See `Agent`.
    """

    status: int
    output: str
    content: str
    calls: Sequence[Mapping[str, Any]]
    least: int


@pytest.fixture(name="sessions", scope="module", params=AGENTS)
def _sessions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Session]]:
    """Return two sessions of an agent, with other words, on a daemon of their own."""
    path, folder = programs(), tmp_path_factory.mktemp(request.param)
    with short_folder() as state:
        daemon = RunningDaemon.start(state).serving()
        desk = Desk(daemon, folder, path, request.param)
        yield [desk.session(asked) for asked in ASKED]
        assert daemon.stop() == 0


class Desk:
    """
    Where an agent works: a home and a repository of its own, and a model that knows what to do.

    Args:
        daemon: What serves the model.
        folder: The agent's folder.
        programs: Folder of the agents' programs.
        name: The agent.
    """

    def __init__(self, daemon: RunningDaemon, folder: Path, programs: Path, name: str) -> None:
        self._daemon = daemon
        self._folder = folder
        self._name = name
        self._agent = AGENTS[name]
        self._file = folder / "work" / "notes.txt"
        for part in ("home", "work", "temporary"):
            (folder / part).mkdir()
        subprocess.run(["git", "init", "--quiet", str(folder / "work")], check=True)
        own = {key: value for key, value in daemon.environ.items() if key.startswith("MLX_SIDECAR_")}
        self._environment = {
            **own,
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "temporary"),
            "PATH": f"{programs}:{os.defpath}",
            "PYTHONPATH": str(ROOT),
            "TERM": "dumb",
        }
        self._model = self._write_model()

    def _write_model(self) -> Path:
        calls = self._agent.calls(str(self._file))
        steps = {
            f"the main job, step {number}": [f"<think>\n{THOUGHT} {number}.\n</think>\n\n", f"Step {number}. ", call]
            for number, call in enumerate(calls)
        }
        end = f"the main job, step {len(calls)}"
        answers = {
            **steps,
            end: [LAST_WORDS[:9], LAST_WORDS[9:]],
            "the main job, without what was thought of it": [LOST],
            "a side job": ["Nothing."],
        }
        known = (self._agent.tool, len(calls), self._agent.forgets)
        given = f"{{%- set MAIN, STEPS, FORGETS = {known} %}}\n"
        return scripted_model(self._folder / "model", answers, given + TEMPLATE, **LONG)

    def session(self, asked: str) -> Session:
        """Run the agent once, and return what it left."""
        self._file.write_text(OLD)
        seen = len(self._daemon.log())
        program = self._agent.program or self._name
        command = [sys.executable, "-m", "daemon", "launch", program, "--model", str(self._model), "--"]
        output = self._folder / "output"
        with open(output, "w") as file:
            done = subprocess.run(
                [*command, *self._agent.arguments, asked], env=self._environment, cwd=self._file.parent,
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, timeout=RUN_SECONDS,
            )  # fmt: skip
        wait_until(lambda: not list(self._folder.glob("temporary/mlx-sidecar-*")), "the door has ended")
        calls = [line for line in self._daemon.log()[seen:] if line.get("rpc") == "Generate" and line["code"] == "OK"]
        return Session(done.returncode, output.read_text(), self._file.read_text(), calls, self._agent.least)


def test_agent_changes_a_file_and_tells_so(sessions: list[Session]) -> None:
    """
    In each of its sessions: it looks, edits, shows the model's last words and ends without an error.

    With the results of a call it gives back what the model thought before, or the model's words were others. Some are
    known to forget it.
    """
    for session in sessions:
        assert (session.status, session.content) == (0, NEW), session.output
        assert LAST_WORDS in session.output


def test_second_session_reuses_the_system_prompt(sessions: list[Session]) -> None:
    """Nearly all that comes before the user's words, tools included, is computed once."""
    first, second = (max(session.calls, key=lambda one: int(one["prompt_tokens"])) for session in sessions)
    assert first["prompt_tokens"] > sessions[0].least
    begin = next(one for one in sessions[1].calls if one["prompt_tokens"] > second["prompt_tokens"] / 2)
    assert begin["cached_tokens"] >= REUSED * begin["prompt_tokens"], begin
