"""`run` and `top` as a person uses them: typed into a real terminal, read from its screen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.cli import exit_codes
from mlx_sidecar import Client
from tests.support.daemons import RunningDaemon, wait_until
from tests.support.terminal import terminal
from tools.embedded import corpus

EXAMPLE = next(corpus.held_out(seed=61, tokens_hint=100))
FAKE = [sys.executable, "-m", "tests.support.serve_fake"]
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


def test_chat_answers_and_ends_with_ctrl_d(daemon: RunningDaemon) -> None:
    """The answer stands below the question; the second turn reuses the first."""
    with terminal(
        daemon.serving().environ, "run", "embedded", "--system", EXAMPLE.context, "--verbose", "--no-history"
    ) as shown:
        shown.until(r"^>>>$")
        shown.type(f"{EXAMPLE.question}\r")
        shown.until(rf"^{EXAMPLE.answer}$")
        shown.until(r"^prompt +[\d,]+ tokens[^$]*\n>>>$")
        shown.type("/clear\r" + f"{EXAMPLE.question}\r")
        shown.until(r"[1-9]\d* of them cached[^>]*>>>$")
        shown.type(CTRL_D)
        assert shown.wait() == 0


def test_ctrl_c_ends_an_answer_and_not_the_chat(start_daemon: Callable[..., RunningDaemon]) -> None:
    """The engine is told, and the next turn is answered as if nothing had been; at the prompt it clears the line."""
    daemon = start_daemon(FAKE)
    with daemon.client() as client, terminal(daemon.environ, "run", "ok", "--no-history") as shown:
        shown.until(r"^>>>$")
        shown.type("hold\r")
        shown.until(r"^hold$")
        shown.type(CTRL_C)
        shown.until(r"^Interrupted.*\n>>>$")
        wait_until(lambda: client.stats().engine.cancelled == 1, "the answer is cancelled")
        shown.type("not sent" + CTRL_C)
        shown.until(r"^>>> not sent\n>>>$")
        shown.type("still here\r")
        shown.until(r"^still here\n>>>$")
        shown.type(CTRL_D)
        assert shown.wait() == 0


def test_arrow_key_recalls_history_of_the_last_chat(start_daemon: Callable[..., RunningDaemon], folder: Path) -> None:
    """The history is a private file beside the configuration."""
    daemon = start_daemon(FAKE).serving()
    for keys in ("as I said\r", UP + "\r"):
        with terminal(daemon.environ, "run", "ok") as shown:
            shown.until(r"^>>>$")
            shown.type(keys)
            shown.until(r"^as I said\n>>>$")
            shown.type(CTRL_D)
            assert shown.wait() == 0
    file = folder / "run_history"
    assert "as I said" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_top_shows_stats_and_q_restores_the_terminal(daemon: RunningDaemon, client: Client) -> None:
    """`top` shows memory, models, requests and speed in colour on the alternate screen."""
    client.load("embedded")
    with terminal(daemon.environ, "top", "--interval", "0.1") as shown:
        shown.until("q quits")
        for text in (
            "engine ready",
            "Prefix cache",
            "Free below the limit",
            "tokens per second",
            "embedded",
            "decode,",
        ):
            shown.until(text)
        assert {"cyan", "blue", "green"} <= shown.colours()
        client.complete("embedded", "Hello.", max_tokens=20, ignore_eos=True)
        shown.until(r"(?!0\.0 at most)\d+\.\d at most")
        shown.type("q")
        assert shown.wait() == 0
        assert shown.as_it_was


def test_ctrl_c_ends_top_as_well(daemon: RunningDaemon) -> None:
    """Ctrl-C ends `top` with status 0."""
    with terminal(daemon.environ, "top") as shown:
        shown.until("q quits")
        shown.type(CTRL_C)
        assert shown.wait() == 0


def test_top_outlives_the_daemon_that_it_watches(start_daemon: Callable[..., RunningDaemon]) -> None:
    """`top` reports the missing daemon, keeps the last figures, and continues when a daemon answers."""
    daemon = start_daemon(FAKE)
    with daemon.client() as client:
        client.stats()
    with terminal(daemon.environ, "top", "--interval", "0.1") as shown:
        shown.until("engine ready")
        assert daemon.stop() == 0
        shown.until("no mlx-sidecar|mlx-sidecar serve")
        shown.until("Prefix cache")
        start_daemon(FAKE)
        shown.until("engine ready")
        shown.type("q")
        assert shown.wait() == 0


def test_top_without_a_daemon_ends_at_once(folder: Path, daemon: RunningDaemon) -> None:
    """`top` exits with status 3 without a daemon, like any command."""
    with terminal({**daemon.environ, "MLX_SIDECAR_SOCKET": str(folder / "no.sock")}, "top") as shown:
        assert shown.wait() == exit_codes.NOT_RUNNING
        assert "mlx-sidecar serve" in shown.text.replace("\n", "")


@pytest.mark.parametrize("command", ["stats", "ps", "top"])
def test_no_color_variable_is_obeyed(daemon: RunningDaemon, command: str) -> None:
    """NO_COLOR turns colours off on a terminal that supports them."""
    with terminal({**daemon.environ, "NO_COLOR": "1"}, command) as shown:
        if command == "top":
            shown.until("q quits")
        else:
            assert shown.wait() == 0
        assert shown.text.strip()
        assert shown.colours() <= {"default"}
