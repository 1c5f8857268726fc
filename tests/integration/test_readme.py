"""What the READMEs and the first steps show works as shown; only the model is another one: tests have no network."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.daemons import RunningDaemon, environment
from tools import demo

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
FIRST_STEPS = (ROOT / "docs" / "first-steps.md").read_text()
CLIENT_README = (ROOT / "clients" / "python" / "README.md").read_text()
HUB_MODEL = "mlx-community/Qwen3-0.6B-4bit"
SWITCH = ", enable_thinking=False"
"""The template of the embedded model has no such switch."""

RUNNER = """
import ast, asyncio, inspect, sys
code = compile(sys.stdin.read(), "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
waiting = eval(code, {})
if inspect.iscoroutine(waiting):
    asyncio.run(waiting)
"""
"""Runs a snippet as `python -m asyncio` would, which needs a terminal."""


def run(command: list[str] | str, environ: dict[str, str], given: str = "", folder: Path = ROOT) -> str:
    """Run a command, which must succeed, and return what it prints."""
    done = subprocess.run(
        command, shell=isinstance(command, str), env=environ, cwd=folder, input=given, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{given}\n{done.stderr}"
    return done.stdout


def snippets(page: str) -> list[str]:
    """Return the Python of a page, for the embedded model."""
    shown = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return [one.replace(HUB_MODEL, "embedded").replace(SWITCH, "") for one in shown]


def test_readme_python_example_answers(daemon: RunningDaemon) -> None:
    """The README's example prints an answer and its usage."""
    (example,) = snippets(README)
    assert "Usage(prompt_tokens=" in run([sys.executable, "-c", example], daemon.environ)


def test_client_readme_examples_run(start_daemon: Callable[..., RunningDaemon]) -> None:
    """Each example runs in its own process, in order, against a daemon of this test."""
    daemon = start_daemon()
    daemon.client().close()
    examples = snippets(CLIENT_README)
    assert len(examples) >= 9
    printed = "\n".join(run([sys.executable, "-c", RUNNER], daemon.environ, example) for example in examples)
    for expected in (
        "prompt tokens were known",
        "bytes of KV for each token",
        "not on this machine",
        "of prompts began with",
    ):
        assert expected in printed


def test_readme_first_steps_commands_work(daemon: RunningDaemon, tmp_path: Path) -> None:
    """The commands that call the daemon and end by themselves run in order."""
    pages = README + FIRST_STEPS
    shown = dict.fromkeys(re.findall(r"mlx-sidecar ((?:run|ps|stop|stats)\b[^`\n#]*)", pages))
    assert len(shown) >= 5
    for line in shown:
        command = f"{sys.executable} -m daemon {line}".replace(HUB_MODEL, "embedded").replace("FILE", "page.html")
        run(command, {**daemon.environ, "PYTHONPATH": str(ROOT)}, folder=tmp_path)
    assert (tmp_path / "stats.html").read_text().startswith("<!doctype html>")


def test_first_steps_show_a_reused_prefix(start_daemon: Callable[..., RunningDaemon]) -> None:
    """The block prints the figures that the page tells, with a daemon that knows nothing yet."""
    daemon = start_daemon()
    daemon.client().close()
    (block,) = re.findall(r"```sh\n(BOXES.*?)```", FIRST_STEPS, re.DOTALL)
    commands = block.replace("mlx-sidecar", f"{sys.executable} -m daemon")
    done = subprocess.run(
        ["/bin/sh", "-ec", commands],
        env=daemon.environ,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(None, 1)[1] for line in done.stderr.splitlines() if line.startswith("prompt ")] == [
        "44 tokens, 0 of them cached",
        "44 tokens, 36 of them cached",
    ]


def test_demo_shows_reused_prefix_tokens(folder: Path) -> None:
    """`make demo` runs this program; it leaves no process running."""
    assert "reused" in run([sys.executable, "-m", "tools.demo"], environment(folder))


def test_demo_waits_for_a_daemon_that_starts_slowly(folder: Path) -> None:
    """The first start after an installation takes longer than a client waits for a socket."""
    with demo.daemon(folder, MLX_SIDECAR_TEST_FAILPOINTS="lock.taken=sleep:3") as environ:
        assert Path(environ["MLX_SIDECAR_SOCKET"]).exists()
