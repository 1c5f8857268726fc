"""The table of commands in docs/operations.md: each of them runs here, or in the test that is named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from daemon.cli import main
from tests.support.daemons import RunningDaemon

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
TABLE = OPERATIONS[OPERATIONS.index("## Commands") : OPERATIONS.index("Each command's `--help`")]

RUN = {
    "run": (["run", "embedded", "Say", "hello", "--max-tokens", "3"], 0, ""),
    "pull": (["pull", "no-such-org/no-such-model"], 1, "no-such-model"),
    "load": (["load", "embedded"], 0, "embedded"),
    "ls": (["ls"], 0, "embedded"),
    "list": (["list"], 0, "embedded"),
    "show": (["show", "embedded"], 0, "context"),
    "rm": (["rm", "embedded", "--yes"], 1, "embedded"),
    "tokens": (["tokens", "embedded", "one", "two"], 0, "tokens"),
    "embed": (["embed", "embedded", "one", "--pooling", "mean"], 0, "["),
    "cache": (["cache", "ls"], 0, ""),
    "ps": (["ps"], 0, "embedded"),
    "stop": (["stop", "embedded"], 0, ""),
    "invalidate": (["invalidate", "embedded", "--dry-run"], 0, ""),
    "stats": (["stats"], 0, "prefix"),
    "metrics": (["metrics"], 0, "mlx_sidecar_up 1.0"),
    "http": (["http", "--print-token"], 0, ""),
    "group": (["group", "status"], 1, "has no group"),
    "config": (["config", "socket"], 0, "sidecar.sock"),
    "proto": (["proto"], 0, "service SidecarService"),
    "completion": (["completion", "bash"], 0, "complete"),
    "help": (["help", "run"], 0, "--samples"),
}
"""Each command's arguments, its exit status, and a word of what it prints."""
ELSEWHERE = {
    "serve": "tests/integration/test_lifecycle.py",
    "join": "tests/integration/test_group.py",
    "top": "tests/integration/test_terminal.py",
    "launch": "tests/integration/test_launch.py",
    "doctor": "tests/unit/doctor",
    "service": "tests/unit/launchd",
}
"""Commands that need a terminal, a Mac, or a daemon of their own, and where they run."""


def rows() -> list[str]:
    """Return the commands of the table."""
    firsts = [row.split("|")[1] for row in TABLE.splitlines() if row.startswith("| `")]
    first = [found[1] for cell in firsts if (found := re.search(r"`mlx-sidecar (\w+)", cell))]
    return first + [word for cell in firsts if "`mlx-sidecar ls`" in cell for word in re.findall(r", `(\w+)`", cell)]


def test_commands_of_the_table_are_those_of_help() -> None:
    context = click.Context(main)
    listed = set(main.list_commands(context))
    assert set(rows()) - {"list"} == listed
    assert set(rows()) == RUN.keys() | ELSEWHERE.keys()
    assert all((ROOT / place).exists() for place in ELSEWHERE.values())
    assert main.get_command(context, "list") is not None


def test_commands_that_start_a_daemon_are_listed() -> None:
    """Those that take `--start`, and those that ask."""
    context = click.Context(main)
    section = OPERATIONS.partition("### Starting the daemon")[2].partition("\n### ")[0]
    listed, asking = (
        set(re.findall(r"`(\w+)`", section.partition(word)[2].partition(end)[0]))
        for word, end in (("`--start` after", ")"), ("Without `--start`,", "ask once"))
    )
    commands = {name: main.get_command(context, name) for name in main.list_commands(context)}
    assert listed == {
        name
        for name, command in commands.items()
        if command is not None and any(option.name == "start" for option in command.params)
    }
    folder = ROOT / "daemon" / "cli" / "commands"
    assert asking == {path.stem for path in folder.glob("*.py") if "client(ask=True)" in path.read_text()}


def test_options_of_the_table_exist() -> None:
    """An option in a command's row is one of the command, or of all."""
    context = click.Context(main)
    for row in TABLE.splitlines():
        if found := re.match(r"\| `mlx-sidecar (\w+)", row):
            command = main.get_command(context, found[1])
            assert command is not None
            parameters = [*command.params, *(p for c in getattr(command, "commands", {}).values() for p in c.params)]
            known = {text for parameter in parameters for text in (*parameter.opts, *parameter.secondary_opts)}
            assert set(re.findall(r"`?(--[a-z-]+)", row)) <= known | {"--help"}, found[1]


@pytest.mark.parametrize("name", RUN)
def test_documented_command_runs(daemon: RunningDaemon, name: str) -> None:
    arguments, status, word = RUN[name]
    daemon.serving()
    if name == "ps":
        with daemon.client() as client:
            client.load("embedded")
    done = subprocess.run(
        [sys.executable, "-m", "daemon", *arguments],
        env=daemon.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    assert word in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
