"""The command line as a new user meets it: no daemon, one that goes away, a path that is wrong, a small terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.cli import exit_codes
from daemon.server.singleton import holder
from tests.support.daemons import RunningDaemon, alive, environment, listens, wait_until
from tests.support.terminal import terminal

FAKE = [sys.executable, "-m", "tests.support.serve_fake"]
CTRL_C, CTRL_D = "\x03", "\x04"
COMMAND = [sys.executable, "-m", "daemon"]


def run(environ: dict[str, str], *args: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command as a program would: without a terminal."""
    return subprocess.run(
        [*COMMAND, *args],
        env=environ,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(name="alone")
def _alone(folder: Path) -> Iterator[dict[str, str]]:
    """Return the environment of a user without a daemon; one that is started by then ends with the test."""
    environ = {name: value for name, value in environment(folder).items() if name != "MLX_SIDECAR_LOG_FILE"}
    yield environ
    pid = holder(Path(environ["MLX_SIDECAR_SOCKET"]))
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not alive(pid), "the daemon that was started ends")


def test_start_flag_daemon_outlives_its_command(alone: dict[str, str], folder: Path) -> None:
    """It has a session of its own, logs to a private file, and the next command finds it."""
    first = run(alone, "run", "embedded", "--raw", "Hello", "--max-tokens", "1", "--start", "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["usage"]["completion_tokens"] == 1
    pid = holder(Path(alone["MLX_SIDECAR_SOCKET"]))
    assert pid is not None
    assert (
        f"Started the daemon (pid {pid}); it runs until it gets SIGTERM, and logs to {folder}/daemon.log."
        in first.stderr
    )
    assert os.getsid(pid) == pid
    assert "serving" in (folder / "daemon.log").read_text()
    assert {(folder / name).stat().st_mode & 0o777 for name in ("daemon.log", "daemon.stderr")} == {0o600}

    second = run(alone, "stats", "--start", "--json")
    assert (json.loads(second.stdout)["daemon"]["pid"], second.stderr) == (pid, "")


def test_concurrent_start_flags_share_one_daemon(alone: dict[str, str]) -> None:
    """The lock lets one of them serve; the others wait for it and use it."""
    commands = [
        subprocess.Popen(
            [*COMMAND, "stats", "--json", "--start"],
            env=alone,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    done = [(*command.communicate(timeout=120), command.returncode) for command in commands]

    assert [code for _, _, code in done] == [0, 0, 0], done
    assert {json.loads(out)["daemon"]["pid"] for out, _, _ in done} == {holder(Path(alone["MLX_SIDECAR_SOCKET"]))}


def test_start_flag_reports_why_the_daemon_failed(alone: dict[str, str], folder: Path) -> None:
    """One sentence, and at once; here its socket's directory lets others in."""
    (folder / "run").mkdir()
    (folder / "run").chmod(0o755)

    failed = run(alone, "ps", "--start")

    assert failed.returncode == exit_codes.NOT_RUNNING
    assert len(failed.stderr.splitlines()) == 1
    assert failed.stderr.startswith("mlx-sidecar: the daemon was started and does not serve (mlx-sidecar: The socket's")
    assert "has mode 0755" in failed.stderr
    assert f"see {folder}/daemon.stderr and {folder}/daemon.log" in failed.stderr


def test_wrong_config_is_reported_before_any_start(alone: dict[str, str], folder: Path) -> None:
    (folder / "config.toml").write_text("max_modles = 3\n")

    failed = run(alone, "ps", "--start")

    assert failed.returncode == exit_codes.USAGE
    assert failed.stderr == f"mlx-sidecar: max_modles in {folder}/config.toml is no setting; did you mean max_models?\n"
    assert not (folder / "daemon.stderr").exists()


def test_run_asks_once_before_it_starts_a_daemon(alone: dict[str, str]) -> None:
    """The conversation follows at once; neither its Ctrl-C nor its end reaches the daemon."""
    with terminal(alone, "run", "embedded", "--no-history") as shown:
        shown.until(r"No daemon is running\. Start one\? \[Y/n\]:")
        shown.type("\r")
        shown.until(r"^Started the daemon")
        shown.until(r"^>>>$")
        pid = holder(Path(alone["MLX_SIDECAR_SOCKET"]))
        shown.type(f"oops{CTRL_C}")
        shown.until(r"^>>> oops\n>>>$")
        shown.type(CTRL_D)
        assert shown.wait() == 0
        assert shown.text.count("Start one?") == 1
    assert pid is not None
    assert run(alone, "ps").returncode == 0


def test_declined_start_ends_the_command(alone: dict[str, str]) -> None:
    """With the exit status and the sentence of a daemon that does not run."""
    with terminal(alone, "load", "embedded") as shown:
        shown.until(r"Start one\? \[Y/n\]:")
        shown.type("n\r")
        assert shown.wait() == exit_codes.NOT_RUNNING
        assert "mlx-sidecar serve" in shown.text.replace("\n", "")
    assert not listens(Path(alone["MLX_SIDECAR_SOCKET"]))


@pytest.mark.parametrize("command", [["run", "embedded", "hi"], ["load", "embedded"], ["pull", "org/name"]])
def test_start_question_is_never_asked_without_tty(alone: dict[str, str], command: list[str]) -> None:
    """Nothing is started, and standard error has the one sentence."""
    failed = run(alone, *command)

    assert failed.returncode == exit_codes.NOT_RUNNING
    assert "Start one?" not in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


def test_chat_continues_after_its_daemon_restarts(start_daemon: Callable[..., RunningDaemon]) -> None:
    """What was typed meanwhile is answered then; the note says what it waits for."""
    daemon = start_daemon(FAKE).serving()
    with terminal(daemon.environ, "run", "ok", "--no-history") as shown:
        shown.until(r"^>>>$")
        shown.type("first\r")
        shown.until(r"^first\n>>>$")
        assert daemon.stop() == 0
        shown.type("second\r")
        shown.until(r"went away; waiting for it to come back\. Ctrl-C leaves\.")
        start_daemon(FAKE)
        shown.until(r"is back; asking again\.(\n.*)*\nsecond\n>>>$")
        shown.type(CTRL_D)
        assert shown.wait() == 0


def test_chat_asks_again_after_a_killed_daemon(start_daemon: Callable[..., RunningDaemon]) -> None:
    """From its beginning: the new daemon knows nothing of it."""
    daemon = start_daemon(FAKE).serving()
    with terminal(daemon.environ, "run", "ok", "--no-history") as shown:
        shown.until(r"^>>>$")
        shown.type("hold\r")
        shown.until(r"^hold$")
        daemon.process.kill()
        daemon.wait()
        shown.until(r"waiting for it to come back")
        start_daemon(FAKE)
        shown.until(r"asking again\.(\n.*)*\nhold$")
        shown.type(CTRL_C)
        shown.until(r"^Interrupted; this turn is forgotten\.\n>>>$")
        shown.type(CTRL_D)
        assert shown.wait() == 0


def test_ctrl_c_leaves_waiting_chat_and_keeps_history(start_daemon: Callable[..., RunningDaemon], folder: Path) -> None:
    """It is in the history, for the next conversation."""
    daemon = start_daemon(FAKE).serving()
    with terminal(daemon.environ, "run", "ok") as shown:
        shown.until(r"^>>>$")
        assert daemon.stop() == 0
        shown.type("a long question\r")
        shown.until(r"waiting for it to come back")
        shown.type(CTRL_C)
        assert shown.wait() == exit_codes.INTERRUPTED
    assert "a long question" in (folder / "run_history").read_text()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["run", "./nope", "hi"], "nope"),
        (["load", "./nope"], "nope"),
        (["run", "../nope", "hi"], "../nope"),
        (["load", "a/b/nope"], "a/b/nope"),
        (["load", "~/nope"], "home/nope"),
        (["run", "embedded", "hi", "--draft-model", "./nope"], "nope"),
        (["load", "embedded", "--adapter", "nope"], "nope"),
    ],
)
def test_missing_model_directory_is_named_in_full(
    daemon: RunningDaemon, folder: Path, command: list[str], name: str
) -> None:
    """So that a person sees where it was looked for."""
    failed = run({**daemon.serving().environ, "HOME": str(folder / "home")}, *command, folder=folder)

    assert failed.returncode == exit_codes.REFUSED
    assert f"there is no directory {folder}/{name} (MODEL_NOT_FOUND)" in failed.stderr


def test_top_shows_models_whole_on_a_small_terminal(daemon: RunningDaemon) -> None:
    """50 columns, 12 lines; `--socket` follows the command."""
    assert run(daemon.serving().environ, "load", "embedded").returncode == 0
    nowhere = {**daemon.environ, "MLX_SIDECAR_SOCKET": "/nowhere/s.sock"}
    with terminal(nowhere, "top", "--socket", str(daemon.socket), columns=50, lines=12) as shown:
        for pattern in (r"engine ready", r"^embedded +1\.\d MiB  ready +\d+$", r"decode, \d+ prefill", r"^q quits$"):
            shown.until(pattern)
        shown.type("q")
        assert shown.wait() == 0
