"""Odd surroundings at the start of a process: it serves, or exits with one sentence and the right exit code."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.cache.digest_notes import DigestFile
from daemon.shared import process_setup
from daemon.shared.config import ConfigError
from daemon.shared.config_file import MOST_BYTES, MOST_DOTS
from daemon.shared.config_sources import load_config
from daemon.shared.process_setup import LEAST_OPEN_FILES, hold_standard_streams, limits_kept
from daemon.shared.small_file import NotSmall, read_small
from tests.support.daemons import END_SECONDS, RunningDaemon, environment, wait_until

SIDECAR = [sys.executable, "-m", "daemon"]
FAKE = [sys.executable, "-m", "tests.support.serve_fake"]
USAGE = 2
Launch = Callable[..., RunningDaemon]


@pytest.fixture(name="launch")
def _launch(folder: Path) -> Iterator[Launch]:
    """Return a function that starts a daemon by a line of shell, in which `@` stands for it."""
    started: list[subprocess.Popen[bytes]] = []

    def launch(line: str, command: list[str] = FAKE, **environ: str | None) -> RunningDaemon:
        places = {**environment(folder), **{name: value for name, value in environ.items() if value is not None}}
        for name in [name for name, value in environ.items() if value is None]:
            places.pop(name, None)
        script = line.replace("@", "exec " + shlex.join(command))
        started.append(subprocess.Popen(["/bin/sh", "-c", script], env=places))
        return RunningDaemon(folder, places, started[-1])

    yield launch
    for process in started:
        process.kill()
        process.wait()


def _serves(daemon: RunningDaemon, model: str = "ok") -> None:
    """Check that it loads, answers and ends well."""
    with daemon.client() as client:
        client.load(model)
        assert client.complete(model, "one two", max_tokens=1).usage.completion_tokens == 1
    assert daemon.stop() == 0


def _refusal(line: str, folder: Path, **environ: str) -> str:
    """Return the one sentence that the daemon refuses to start with."""
    script = line.replace("@", shlex.join([*SIDECAR, "serve"]))
    ended = subprocess.run(
        ["/bin/sh", "-c", script],
        env={**environment(folder), **environ},
        capture_output=True,
        text=True,
        timeout=END_SECONDS,
    )
    assert ended.returncode == USAGE, ended.stderr
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("mlx-sidecar: ")
    return sentence.removeprefix("mlx-sidecar: ")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_daemon_serves_with_standard_streams_closed(launch: Launch, closed: str) -> None:
    """No socket or file of it gets their numbers: output to standard error goes nowhere."""
    daemon = launch(f"@ {closed}")
    if Path("/proc").exists():
        wait_until(daemon.socket.exists, "the daemon listens")
        for word in closed.split():
            assert os.readlink(f"/proc/{daemon.process.pid}/fd/{word[0]}") == "/dev/null"
    _serves(daemon)


def test_daemon_without_log_serves_with_closed_streams(launch: Launch) -> None:
    """Its log is lost, and nothing else."""
    daemon = launch("@ 0<&- 1>&- 2>&-", MLX_SIDECAR_LOG_FILE="")
    with daemon.client() as client:
        assert client.complete("ok", "one").text == "one"
    assert daemon.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_foreign_signals_end_neither_process(launch: Launch, number: signal.Signals) -> None:
    daemon = launch("@", [*SIDECAR, "serve"])
    with daemon.client() as client:
        engine = client.stats().engine.pid
        client.load("embedded")
        daemon.signal(number)
        os.kill(engine, number)
        assert client.complete("embedded", "The", max_tokens=1).usage.completion_tokens == 1
        assert client.stats().engine.pid == engine
    assert daemon.stop() == 0


def test_ends_of_children_are_known_where_they_were_ignored(launch: Launch) -> None:
    """A program that ignores SIGCHLD hands that on: the system would reap the engine, and its status would be lost."""
    daemon = launch("trap '' CHLD; @")
    os.kill(daemon.engine_pid(), signal.SIGKILL)
    wait_until(lambda: any(line["event"] == "engine_died" for line in daemon.log()), "the end of the engine is seen")
    (died,) = (line for line in daemon.log() if line["event"] == "engine_died")
    assert died["status"] == -signal.SIGKILL
    _serves(daemon)


@pytest.mark.parametrize("files", [LEAST_OPEN_FILES, 1024])
def test_hard_file_limit(launch: Launch, files: int) -> None:
    """mlx-lm wants 4,096 when it is imported, and would end the engine again and again. Root may raise a hard limit."""
    unprivileged = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
    if unprivileged and not shutil.which("setpriv"):
        pytest.skip("root without setpriv could raise the limit")
    daemon = launch(f"ulimit -n {files}; @", [*unprivileged, *SIDECAR, "serve"])
    _serves(daemon, "embedded")


def test_too_few_open_files_are_reported(folder: Path) -> None:
    said = _refusal(f"ulimit -n {LEAST_OPEN_FILES - 1}; @", folder)
    assert said == "The limit of open files is 63, and the daemon needs at least 64; raise it with: ulimit -n 8192"


@pytest.mark.skipif(sys.platform != "linux", reason="macOS keeps no such limit")
def test_too_small_an_address_space_is_reported(folder: Path) -> None:
    """MLX could not be imported, and the engine would end again and again."""
    said = _refusal("ulimit -v 2000000; @", folder)
    assert said.startswith("The limit of address space is 1953 MiB, and the daemon needs at least")
    assert said.endswith("lift it with: ulimit -v unlimited")


def test_libraries_keep_the_open_file_limit() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    original = resource.setrlimit
    with limits_kept():
        resource.setrlimit(resource.RLIMIT_NOFILE, (16, 1 << 40))
        resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
    assert resource.setrlimit is original


@pytest.mark.parametrize("place", ["/nonexistent/tmp", "/etc/passwd", "/proc"])
def test_missing_tmpdir_is_replaced_by_another(launch: Launch, place: str) -> None:
    """MLX compiles there. It is told in one line of the log."""
    daemon = launch("@", [*SIDECAR, "serve"], TMPDIR=place)
    _serves(daemon, "embedded")
    assert "tmpdir_replaced" in [line["event"] for line in daemon.log()]


def test_daemon_without_any_tmpdir_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(ConfigError, match="no directory for temporary files"):
        process_setup.settle_temporary_directory()


@pytest.mark.parametrize("home", ["/nonexistent/home", "", "relative", None])
def test_a_daemon_serves_without_a_home(launch: Launch, home: str | None) -> None:
    """If the socket and the state directory are elsewhere."""
    _serves(launch("@", HOME=home))


def test_daemon_without_home_and_socket_path_says_so(folder: Path) -> None:
    environ = {name: value for name, value in environment(folder).items() if not name.startswith("MLX_SIDECAR")}
    environ.pop("XDG_RUNTIME_DIR", None)
    ended = subprocess.run(
        [*SIDECAR, "serve"],
        env={**environ, "HOME": "/proc/nowhere"},
        capture_output=True,
        text=True,
        timeout=END_SECONDS,
    )
    assert ended.returncode == USAGE
    assert len(ended.stderr.splitlines()) == 1
    assert "/proc/nowhere/.mlx-sidecar" in ended.stderr


def _deep(opening: str, closing: str, depth: int) -> bytes:
    return f"max_models = {opening * depth}{closing * depth}".encode()


CONFIGS: dict[str, tuple[bytes, str]] = {
    "100,000 arrays": (_deep("[", "]", 100_000), "it has more than 65536 bytes"),
    "30,000 arrays": (_deep("[", "]", 30_000), "is nested too deep"),
    "20,000 tables": (b"a = " + b"{a=" * 20_000, "is nested too deep"),
    "a key of 30,000 parts": (b"a." * 30_000 + b"a = 1", "is nested too deep"),
    "a table of 30,000 parts": (b"[" + b"a." * 30_000 + b"a]", "is nested too deep"),
    "no UTF-8": (b'log_level = "\xff\xfe"', "is not valid TOML: byte 13 is not UTF-8"),
    "zeros": (bytes(100), "is not valid TOML"),
    "a number of 5,000 digits": (b"max_queue = " + b"9" * 5000, "is not valid TOML: Exceeds the limit"),
    "too large": (b"#" * (MOST_BYTES + 1), "it has more than 65536 bytes"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_unreadable_config_is_refused_in_a_sentence(tmp_path: Path, kind: str) -> None:
    """At once: a parser that needs the square of a file's length is not asked."""
    content, said = CONFIGS[kind]
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config({"state_dir": str(tmp_path)}, {}, tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "config.toml"))
    assert said in str(caught.value)
    assert str(caught.value).endswith(".")
    assert len(str(caught.value)) < 400


def test_config_path_that_blocks_is_not_waited_for(folder: Path) -> None:
    """A pipe, a directory, a device, a gigabyte: the daemon and the commands end with a sentence."""
    file = folder / "config.toml"
    os.mkfifo(file)
    assert _refusal("@", folder) == f"{file} cannot be read: it is no regular file."
    file.unlink()
    file.mkdir()
    assert _refusal("@", folder) == f"{file} cannot be read: Is a directory."
    file.rmdir()
    file.symlink_to("/dev/zero")
    assert _refusal("@", folder) == f"{file} cannot be read: it is no regular file."
    file.unlink()
    with file.open("wb") as hole:
        hole.truncate(1 << 30)
    assert _refusal("@", folder) == f"{file} cannot be read: it has more than 65536 bytes."


def test_largest_legal_config_file_is_read(tmp_path: Path) -> None:
    """Comments have as many dots as they like; lines may end as on Windows; links lead to it."""
    real = tmp_path / "real.toml"
    real.write_bytes(b"# ...\r\n" * 5000 + b"max_models = 7\r\n" + b"model_roots = ['/a.b.c']\r\n")
    (tmp_path / "config.toml").symlink_to(real)
    assert real.read_bytes().count(b".") > MOST_DOTS
    assert tomllib.loads(real.read_text())["max_models"] == 7
    assert load_config({"state_dir": str(tmp_path)}, {}, tmp_path).config.max_models == 7


def test_unusable_digest_notes_cost_only_time(tmp_path: Path) -> None:
    """They are read when the engine starts, which must not wait for a pipe."""
    os.mkfifo(tmp_path / "digests.json")
    assert DigestFile(tmp_path / "digests.json").read() == {}


def test_log_file_that_is_a_pipe_is_not_waited_for(launch: Launch, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    daemon = launch("@ 2>/dev/null", MLX_SIDECAR_LOG_FILE=str(folder / "pipe"))
    _serves(daemon)


def test_small_files_are_read_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100)
    before = len(os.listdir("/dev/fd"))
    assert read_small(file, 100) == b"x" * 100
    for path, most in ((file, 99), (tmp_path, 100), (Path("/dev/null"), 100)):
        with pytest.raises(NotSmall):
            read_small(path, most)
    with pytest.raises(FileNotFoundError):
        read_small(tmp_path / "other", 1)
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("closed", ["1>&-", "0<&- 1>&- 2>&-"])
def test_commands_work_with_standard_streams_closed(launch: Launch, closed: str) -> None:
    """No descriptor of gRPC gets a number that text is written to."""
    daemon = launch("@")
    with daemon.client() as client:
        for arguments in ("ps", "load ok", "stats --json", "config", "invalidate ok --yes"):
            ended = _shell(f"{shlex.join(SIDECAR)} {arguments} {closed}", daemon)
            assert ended.returncode == 0, (arguments, ended.stderr)
        assert client.complete("ok", "one").text == "one"
    assert daemon.stop() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_command_with_unwritable_output_says_so(launch: Launch) -> None:
    """With a sentence, and not with success."""
    daemon = launch("@")
    with daemon.client() as client:
        client.load("ok")
    for arguments in ("ps", "stats --json", "config"):
        ended = _shell(f"{shlex.join(SIDECAR)} {arguments} >/dev/full", daemon)
        assert (ended.returncode, ended.stderr) == (1, "mlx-sidecar: standard output: No space left on device\n")
    assert daemon.stop() == 0


def _shell(line: str, daemon: RunningDaemon) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", line], env=daemon.environ, capture_output=True, text=True, timeout=END_SECONDS
    )


def test_open_standard_streams_are_left_alone() -> None:
    before = [os.fstat(fd) for fd in range(3)], sys.stdin, sys.stdout, sys.stderr
    hold_standard_streams()
    assert ([os.fstat(fd) for fd in range(3)], sys.stdin, sys.stdout, sys.stderr) == before
