"""`completion`: what each shell's script asks for, and what the program answers; in the shells themselves too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.cli import COMMANDS, exit_codes
from daemon.cli.commands.completion import SHELLS
from tests.unit.cli.cli_fakes import FakeClient, client_fixture, run_cli  # noqa: F401

BIN = Path(sys.executable).parent
ASK = {
    "bash": 'eval "$(mlx-sidecar completion bash)"; COMP_WORDS=({words}); COMP_CWORD={last}; '
    "_mlx_sidecar_completion mlx-sidecar; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
    "fish": "mlx-sidecar completion fish | source; complete -C '{line}'",
}
"""How each shell is made to complete a line without a terminal."""


@pytest.fixture(name="environ")
def _environ(folder: Path) -> dict[str, str]:
    """Return the environment of a person who has two models."""
    for model in ("org--one", "org--two"):
        (folder / "hub" / f"models--{model}").mkdir(parents=True)
    settings = {"PATH": f"{BIN}:{os.environ['PATH']}", "HF_HUB_CACHE": str(folder / "hub"), "HOME": str(folder)}
    return {**os.environ, **settings}


def completed(environ: dict[str, str], line: str) -> list[str]:
    """Return what the program offers for a line, as its bash script would ask."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_MLX_SIDECAR_COMPLETE": "bash_complete"}
    done = subprocess.run([BIN / "mlx-sidecar"], env={**environ, **words}, capture_output=True, text=True, check=True)
    return [item.partition(",")[2] for item in done.stdout.splitlines()]


def test_completion_offers_commands_options_and_models(environ: dict[str, str]) -> None:
    assert completed(environ, "mlx-sidecar ") == list(COMMANDS)
    assert completed(environ, "mlx-sidecar stats --h") == ["--history", "--html", "--help"]
    assert completed(environ, "mlx-sidecar run ") == ["embedded", "org/one", "org/two"]
    assert completed(environ, "mlx-sidecar stop org/t") == ["org/two"]


def test_path_completion_is_left_to_the_shell(environ: dict[str, str]) -> None:
    words = {"COMP_WORDS": "mlx-sidecar load ./", "COMP_CWORD": "2", "_MLX_SIDECAR_COMPLETE": "bash_complete"}
    done = subprocess.run([BIN / "mlx-sidecar"], env={**environ, **words}, capture_output=True, text=True, check=True)
    assert done.stdout == "dir,./\n"


@pytest.mark.parametrize("shell", ASK)
def test_shell_completes_a_model_name(environ: dict[str, str], shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    ask = ASK[shell].format(words="mlx-sidecar run org/t", last=2, line="mlx-sidecar run org/t")
    done = subprocess.run([shell, "-c", ask], env=environ, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["org/two"], done.stderr


def test_zsh_completion_script_is_accepted(environ: dict[str, str], client: FakeClient) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    ask = 'autoload -U compinit; compinit -D; eval "$(mlx-sidecar completion zsh)"; print $_comps[mlx-sidecar]'
    done = subprocess.run(["zsh", "-f", "-c", ask], env=environ, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "_mlx_sidecar_completion", done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_shell_is_named_or_detected(client: FakeClient, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("SHELL", f"/bin/{shell}")

    named, used = run_cli(client, "completion", shell), run_cli(client, "completion")

    assert named.exit_code == 0
    assert named.stdout == used.stdout
    assert f"{shell}_complete" in named.stdout


def test_completion_for_an_unknown_shell_is_refused(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")

    assert run_cli(client, "completion").exit_code == exit_codes.USAGE
    assert run_cli(client, "completion", "tcsh").exit_code == exit_codes.USAGE
