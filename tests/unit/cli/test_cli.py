"""The command line as a whole: help, exit codes, which daemon it calls, and what it imports."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import click
import pytest

from daemon.cli import COMMANDS, exit_codes, main
from daemon.cli.output.formatting import columns, span, table
from daemon.shared.wording import size
from mlx_sidecar import DaemonNotRunning, InternalError, ModelNotFound, QueueFull, UntrustedSocket
from tests.unit.cli.cli_fakes import GIB, FakeClient, client_fixture, run_cli  # noqa: F401


def test_help_lists_every_command_and_every_exit_code(client: FakeClient) -> None:
    result = run_cli(client, "--help")

    assert result.exit_code == 0
    for word in [*COMMANDS, *exit_codes.MEANINGS.values()]:
        assert word in result.stdout
    for code in exit_codes.MEANINGS:
        assert f"  {code} " in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_an_example(client: FakeClient, name: str) -> None:
    """Also that of each command of a group."""
    command = main.get_command(click.Context(main), name)
    parts = command.commands if isinstance(command, click.Group) else ()
    for words in [(name,), *((name, part) for part in parts)]:
        result = run_cli(client, *words, "--help")

        assert result.exit_code == 0
        assert f"mlx-sidecar {' '.join(words)}" in result.stdout.split("Examples:")[1]


def test_version_is_printed(client: FakeClient) -> None:
    assert run_cli(client, "--version").stdout.startswith("mlx-sidecar, version ")


def test_an_unknown_command_is_wrong_usage(client: FakeClient) -> None:
    assert run_cli(client, "fly").exit_code == exit_codes.USAGE


def test_daemon_not_running_exits_3_with_one_sentence(client: FakeClient) -> None:
    client.error = DaemonNotRunning("no mlx-sidecar answers at /s; start it with: mlx-sidecar serve")

    result = run_cli(client, "ps")

    assert result.exit_code == exit_codes.NOT_RUNNING
    assert result.stdout == ""
    assert result.stderr == "mlx-sidecar: no mlx-sidecar answers at /s; start it with: mlx-sidecar serve\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ModelNotFound("there is no model org/x"), "there is no model org/x (MODEL_NOT_FOUND)"),
        (QueueFull("64 requests wait", retry_after=2.0), "64 requests wait (QUEUE_FULL); try again in 2 s"),
        (QueueFull("all wait; try again shortly", retry_after=2.0), "all wait (QUEUE_FULL); try again in 2 s"),
        (
            QueueFull("all is in use; unload a model, or try again shortly", retry_after=0.5),
            "all is in use; unload a model (QUEUE_FULL); try again in 0.5 s",
        ),
        (InternalError("a bug", error_id="e-1"), "a bug (INTERNAL, error id e-1)"),
    ],
)
def test_a_refusal_exits_1_with_its_reason(client: FakeClient, error: Exception, line: str) -> None:
    client.error = error

    result = run_cli(client, "load", "org/x")

    assert (result.exit_code, result.stderr) == (exit_codes.REFUSED, f"mlx-sidecar: {line}\n")


def test_refusal_cannot_command_a_terminal(client: FakeClient) -> None:
    """Its words may be those of a model's files, such as names of tensors."""
    client.error = ModelNotFound("there is no model \x1b]0;mine\x07")

    assert run_cli(client, "ps").stderr == "mlx-sidecar: there is no model �]0;mine� (MODEL_NOT_FOUND)\n"


def test_user_without_a_home_is_told_to_set_it(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers run programs as users that no list names."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)

    result = run_cli(client, "config")

    assert result.exit_code == exit_codes.USAGE
    assert result.stderr == (
        "mlx-sidecar: HOME is not set, and the system knows no home directory of this user; set HOME to one.\n"
    )


def test_table_of_wide_names_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of folders are of any script, and macOS may give an accent as a character of its own."""
    rows = [["/模型/甲", "1 B"], ["/e\u0301te\u0301", "2 B"], ["/model", "3 B"]]
    table(["MODEL", "SIZE"], rows)
    lines = capsys.readouterr().out.splitlines()
    starts = [columns(line[: line.index(last)]) for line, (_, last) in zip(lines, [("", "SIZE"), *rows], strict=True)]
    assert starts == [10] * 4


@pytest.mark.parametrize(
    ("encoding", "shown"), [("utf-8", "x=/é😀\n"), ("latin-1", "x=/é\\U0001f600\n"), ("ascii", "x=/é😀\n")]
)
def test_output_of_any_encoding_shows_all(tmp_path: Path, encoding: str, shown: str) -> None:
    """In the middle of an answer, a character that a terminal has not would be a traceback; JSON stays JSON."""
    environ = {**os.environ, "HOME": str(tmp_path), "MLX_SIDECAR_ALIASES": "x=/é😀", "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "daemon", "config", "aliases"]
    written = "latin-1" if encoding == "latin-1" else "utf-8"
    plain, as_json = (
        subprocess.run([*command, *more], capture_output=True, env=environ, check=True).stdout.decode(written)
        for more in ([], ["--json"])
    )
    assert plain == shown
    assert json.loads(as_json) == {"x": "/é😀"}


def test_foreign_socket_is_a_configuration_error(client: FakeClient) -> None:
    client.error = UntrustedSocket("/s belongs to another user")

    assert run_cli(client, "stats").exit_code == exit_codes.USAGE


def test_unexpected_exception_keeps_its_traceback(client: FakeClient) -> None:
    client.error = ZeroDivisionError("a bug")

    assert isinstance(run_cli(client, "ps").exception, ZeroDivisionError)


def test_socket_comes_from_the_flag_or_the_config(
    client: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".mlx-sidecar").mkdir()
    (tmp_path / ".mlx-sidecar" / "config.toml").write_text('socket = "/from/file"')
    run_cli(client, "ps")
    assert client.socket == Path("/from/file")

    monkeypatch.setenv("MLX_SIDECAR_SOCKET", "/from/variable")
    run_cli(client, "ps")
    assert client.socket == Path("/from/variable")

    run_cli(client, "--socket", "/from/flag", "ps")
    assert client.socket == Path("/from/flag")


def test_wrong_configuration_exits_2_with_one_sentence(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_SIDECAR_MAX_MODELS", "none")

    result = run_cli(client, "ps")

    assert result.exit_code == exit_codes.USAGE
    assert result.stderr == (
        "mlx-sidecar: max_models from MLX_SIDECAR_MAX_MODELS is 'none', "
        "but must be a whole number from 1 to 2147483647.\n"
    )


def test_client_commands_import_no_mlx_or_server() -> None:
    code = (
        "import sys; from daemon.cli import main\n"
        "for name in ('run', 'load', 'ps', 'stop', 'invalidate', 'stats'): main.get_command(None, name)\n"
        "print([name for name in ('mlx', 'grpc', 'rich', 'structlog', 'daemon.server.app') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_python_m_daemon_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "daemon", "--version"], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("mlx-sidecar, version ")


def test_sizes_and_durations_are_readable() -> None:
    sizes = [0, 1023, 1024, 1536, 1024**2 - 1, 3 * GIB, 5 * 1024**4, 5 * 1024**5]
    assert [size(count) for count in sizes] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "1.0 MiB",
        "3.0 GiB",
        "5.0 TiB",
        "5120.0 TiB",
    ]
    assert [span(seconds) for seconds in (0, 1, 59, 59.6, 60, 240, 3599.9, 3600, 7300, 200000)] == [
        "0 seconds",
        "1 second",
        "59 seconds",
        "1 minute",
        "1 minute",
        "4 minutes",
        "1 hour",
        "1 hour",
        "2 hours",
        "2 days",
    ]
