"""`mlx-sidecar launch` with tools that are small scripts: what they get, and that the door ends with them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import END_SECONDS, RunningDaemon, alive, wait_until

TOOL = f"""#!{sys.executable}
import json, os, signal, sys, urllib.request
base = os.environ["OPENAI_BASE_URL"]
def status(token):
    request = urllib.request.Request(base + "/models", headers={{"authorization": "Bearer " + token}})
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code
seen = {{
    "arguments": sys.argv[1:],
    "status": status(os.environ["OPENAI_API_KEY"]),
    "without": status("wrong"),
    "file": open(os.environ["QWEN_CODE_SYSTEM_SETTINGS_PATH"]).read(),
    "mode": os.stat(os.path.dirname(os.environ["QWEN_CODE_SYSTEM_SETTINGS_PATH"])).st_mode & 0o777,
    "pid": os.getpid(),
    "base": base,
}}
with open("seen.json.part", "w") as file:
    json.dump(seen, file)
os.rename("seen.json.part", "seen.json")
print("the tool speaks")
if "wait" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    sys.stdout.flush()
    signal.pause()
sys.exit(7)
"""

GRPC_VARIABLE = "GRPC_ENABLE_FORK_SUPPORT"


class Launch:
    """
    A launch of the fake tool.

    Args:
        daemon: What it works with.
        folder: Its working directory.
        arguments: Of the tool.
    """

    def __init__(self, daemon: RunningDaemon, folder: Path, *arguments: str) -> None:
        self._folder = folder
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        program = folder / "bin" / "qwen"
        program.parent.mkdir()
        program.write_text(TOOL)
        program.chmod(0o755)
        own = {"PATH": f"{program.parent}:{os.environ['PATH']}", "TMPDIR": str(self.temporary)}
        command = [sys.executable, "-m", "daemon", "launch", "qwen", "--model", "embedded", "--", *arguments]
        paths = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            command, env={**daemon.environ, **own, "PYTHONPATH": paths}, cwd=folder, stdout=subprocess.PIPE
        )

    def seen(self) -> dict[str, Any]:
        """Wait until the tool has seen its surroundings, and return what it saw."""
        file = self._folder / "seen.json"
        wait_until(lambda: file.exists() or self.process.poll() is not None, "the tool runs")
        seen: dict[str, Any] = json.loads(file.read_text())
        return seen

    def leaves_nothing(self) -> None:
        """Wait until the door has ended, with its port and its files."""
        wait_until(lambda: not list(self.temporary.iterdir()), "the files are removed")
        port = int(self.seen()["base"].rpartition(":")[2].partition("/")[0])
        with socket.socket() as client:
            wait_until(lambda: client.connect_ex(("127.0.0.1", port)) != 0, "the door is closed")


@pytest.fixture(name="launch")
def _launch(daemon: RunningDaemon, tmp_path: Path) -> Iterator[Callable[..., Launch]]:
    """Return a function that launches the tool, which has ended at the end of the test."""
    started: list[Launch] = []

    def start(*arguments: str) -> Launch:
        started.append(Launch(daemon.serving(), tmp_path, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def test_a_tool_gets_a_door_of_its_own(launch: Callable[..., Launch]) -> None:
    """With a token that alone is let in, and a private file. Its arguments and its exit status are passed on."""
    running = launch("--yes", "a b")
    output, _ = running.process.communicate(timeout=END_SECONDS)
    assert running.process.returncode == 7
    assert output == b"the tool speaks\n"
    seen = running.seen()
    assert seen["arguments"] == ["--auth-type", "openai", "--yes", "a b"]
    assert (seen["status"], seen["without"], seen["mode"]) == (200, 401, 0o700)
    assert json.loads(seen["file"])["model"]["name"] == "embedded"
    assert seen["pid"] == running.process.pid
    running.leaves_nothing()


def test_signals_reach_the_tool(launch: Callable[..., Launch]) -> None:
    """It ends as it likes, and the door after it."""
    running = launch("wait")
    running.seen()
    assert running.process.stdout is not None
    assert running.process.stdout.readline() == b"the tool speaks\n"
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(END_SECONDS) == 5
    running.leaves_nothing()


def test_door_ends_with_a_tool_that_is_killed(launch: Callable[..., Launch]) -> None:
    """No process has a chance to clean up, but the door."""
    running = launch("wait")
    running.seen()
    running.process.kill()
    assert running.process.wait(END_SECONDS) == -signal.SIGKILL
    running.leaves_nothing()


def test_ctrl_c_is_for_the_tool_alone(launch: Callable[..., Launch]) -> None:
    """The door is in no process group that a terminal signals."""
    running = launch("wait")
    seen = running.seen()
    doors = subprocess.run(["ps", "-eo", "pid=,ppid=,pgid="], capture_output=True, text=True, check=True).stdout
    rows = [[int(part) for part in line.split()] for line in doors.splitlines()]
    ((door, _, group),) = [row for row in rows if row[1] == seen["pid"]]
    assert group == door
    running.process.kill()
    wait_until(lambda: not alive(door), "the door has ended")


def launched(daemon: RunningDaemon, folder: Path, script: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Launch a tool that is a script of the shell, and wait for its end."""
    program = folder / "qwen"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    paths = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    own = {"PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(folder), "PYTHONPATH": paths}
    given = {name: value for name, value in daemon.serving().environ.items() if name != GRPC_VARIABLE}
    command = [sys.executable, "-m", "daemon", "launch", "qwen", "--model", "embedded"]
    return subprocess.run(command, env={**given, **own, **environ}, capture_output=True, text=True, timeout=END_SECONDS)


def test_a_door_that_cannot_start_is_told(daemon: RunningDaemon, tmp_path: Path) -> None:
    """The tool is not started without it."""
    (tmp_path / "launch.log").mkdir()
    done = launched(daemon, tmp_path, "echo started", MLX_SIDECAR_STATE_DIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "launch.log, cannot be opened" in done.stderr
    assert not list(tmp_path.glob("mlx-sidecar-*"))


def test_tool_gets_no_variable_of_the_program(daemon: RunningDaemon, tmp_path: Path) -> None:
    """What the command sets for its own use of gRPC would change how programs of the user do."""
    done = launched(daemon, tmp_path, "echo ${" + GRPC_VARIABLE + "-none}")
    assert done.stdout == "none\n"
    wait_until(lambda: not list(tmp_path.glob("mlx-sidecar-*")), "the door has ended")


def test_pipes_of_a_tool_break_as_in_a_shell(daemon: RunningDaemon, tmp_path: Path) -> None:
    """Python ignores SIGPIPE, and what is ignored stays so in the program that it becomes: `yes` would complain."""
    done = launched(daemon, tmp_path, "yes | head -n 1")
    assert (done.returncode, done.stdout) == (0, "y\n")
    assert "roken pipe" not in done.stderr
    wait_until(lambda: not list(tmp_path.glob("mlx-sidecar-*")), "the door has ended")
