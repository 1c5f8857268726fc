"""What each command imports: `--help` lists commands without any of them, and `ps` nothing that it has no use for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from daemon.cli import COMMANDS, commands, main
from tests.support.daemons import RunningDaemon

_LOADED = (
    "import atexit, json, sys\n"
    "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
    "from daemon.cli import main\n"
    "main(sys.argv[1:], prog_name='mlx-sidecar')\n"
)
FOREIGN = {
    "grpc",
    "google",
    "rich",
    "structlog",
    "jinja2",
    "prompt_toolkit",
    "huggingface_hub",
    "mlx",
    "numpy",
    "asyncio",
}
"""Packages that take long to import."""


def loaded(*args: str, environ: dict[str, str] | None = None) -> set[str]:
    """Return the modules that a command line has imported at its end."""
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, *args], capture_output=True, text=True, env=environ, timeout=60
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def packages(modules: set[str]) -> set[str]:
    """Return the top-level packages of modules."""
    return {name.partition(".")[0] for name in modules}


@pytest.fixture(name="version", scope="module")
def _version() -> set[str]:
    """Return what `--version` imports: the least that is possible."""
    return loaded("--version")


NAMES_MODELS = ("run", "pull", "load", "show", "rm", "stop", "tokens", "embed", "invalidate", "launch", "cache")
"""Commands that complete the name of a model."""


def commands_in(modules: set[str]) -> set[str]:
    """Return the commands whose modules are loaded."""
    return {name for name in COMMANDS if f"daemon.cli.commands.{name}" in modules}


def test_help_imports_no_command_module(version: set[str]) -> None:
    """What wraps paragraphs, and no more; it is counted, because time is not the same on any two machines."""
    more = loaded("--help") - version
    assert not commands_in(version | more)
    assert not packages(version | more) & FOREIGN
    assert len(more) <= 12, sorted(more)


def test_unknown_command_imports_no_command_module() -> None:
    assert not commands_in(loaded("fly"))


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help_imports_only_its_command(name: str) -> None:
    """`show` prints what `ls` does, and commands that name models complete them, which is why they may have those."""
    modules = loaded(name, "--help")
    more = ({"completion"} if name in NAMES_MODELS else set()) | ({"ls"} if name == "show" else set())
    assert commands_in(modules) == {name} | more
    assert not packages(modules) & {"mlx", "numpy", "transformers", "jinja2", "prompt_toolkit", "huggingface_hub"}


def test_ps_imports_the_client_but_not_the_daemon(daemon: RunningDaemon) -> None:
    """`ps` does not import the modules of failed calls either; asyncio comes with grpc."""
    modules = loaded("ps", environ=daemon.serving().environ)
    assert commands_in(modules) == {"ps"}
    assert packages(modules) & FOREIGN == {"grpc", "google", "asyncio"}
    ours = {name for name in modules if name.startswith("daemon.") and not name.startswith("daemon.cli")}
    assert ours <= {
        "daemon.shared",
        "daemon.shared.config",
        "daemon.shared.config_file",
        "daemon.shared.config_sources",
        "daemon.shared.config_values",
        "daemon.shared.group_values",
        "daemon.shared.small_file",
        "daemon.shared.wording",
    }
    assert not modules & {f"mlx_sidecar.{name}" for name in ("_requests", "_results", "_streams", "_transcript")}
    assert not modules & {"grpc_status", "google.rpc.error_details_pb2", "difflib", "tomllib", "mlx_sidecar._aio"}


def test_serve_imports_no_other_command() -> None:
    """The start of `serve` is not slowed by imports of other commands."""
    code = (
        "import json, sys, daemon.cli.commands.serve, daemon.server.app\n"
        "print(json.dumps(sorted(name for name in sys.modules if name.startswith('daemon.cli.'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [
        "daemon.cli.commands",
        "daemon.cli.commands.serve",
        "daemon.cli.exit_codes",
        "daemon.cli.flags",
        "daemon.cli.group",
        "daemon.cli.output",
        "daemon.cli.output.formatting",
        "daemon.cli.session",
    ]


def test_command_table_matches_the_modules() -> None:
    """The line in `--help` is the only place where a command is described in one line."""
    for name, about in COMMANDS.items():
        command = main.get_command(click.Context(main), name)
        assert command is not None
        assert command.name == name
        assert command.short_help is None
        assert about.endswith(".")
    folder = Path(commands.__file__ or "").parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(COMMANDS)


_FORKS = (
    "import atexit, os, sys\n"
    "atexit.register(lambda: print(os.environ['GRPC_ENABLE_FORK_SUPPORT'], file=sys.stderr))\n"
    "from daemon.__main__ import main\n"
    "main()\n"
)


@pytest.mark.parametrize(("given", "told"), [(None, "0"), ("1", "1")])
def test_grpc_leaves_forks_alone(given: str | None, told: str) -> None:
    """
    Commands start programs after calls: `launch` its door, `service` launchctl, `doctor` a daemon. On macOS that forks.

    gRPC's handlers would run in each fork, and can hang or abort it while threads of a closed channel end.
    """
    environ = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    environ |= {} if given is None else {"GRPC_ENABLE_FORK_SUPPORT": given}
    done = subprocess.run([sys.executable, "-c", _FORKS, "--version"], capture_output=True, text=True, env=environ)
    assert done.stderr.split() == [told]
