"""With `--json` standard output is one JSON document whatever goes wrong; a broken configuration stops few commands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from daemon.cli import COMMANDS, exit_codes, main
from mlx_sidecar import DaemonNotRunning, Invalidated, ModelNotFound, QueueFull
from tests.unit.cli.cli_fakes import FakeClient, client_fixture, pretend_terminal, pretend_typing, run_cli  # noqa: F401

ROOT = Path(__file__).resolve().parents[3]
KEYS = ["message", "exit_status", "code", "reason", "field", "retry_after", "error_id", "metadata"]
CALLS = {
    "run": ["m", "Hi"],
    "pull": ["m"],
    "load": ["m"],
    "ps": [],
    "stop": ["m"],
    "invalidate": ["m", "--yes"],
    "stats": [],
    "show": ["m"],
    "tokens": ["m", "Hi"],
    "embed": ["m", "Hi"],
}
"""Commands that call the daemon and have `--json`, with what they need."""


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command and every command of a group, with its words."""
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        yield (name,), command
        if isinstance(command, click.Group):
            yield from (((name, one), part) for one, part in command.commands.items())


def options(command: click.Command) -> set[str]:
    """Return the names of a command's options."""
    return {name for one in command.params for name in one.opts if name.startswith("--")}


WITH_JSON = [words for words, command in commands() if "--json" in options(command)]
WITHOUT_JSON = [words for words, command in commands() if "--json" not in options(command)]
CALLERS = [words[0] for words, command in commands() if "--start" in options(command)]


def told(result: Result) -> dict[str, Any]:
    """Return the error that standard output has, after checks that hold for every one."""
    tree = json.loads(result.stdout)
    assert list(tree) == ["error"]
    error: dict[str, Any] = tree["error"]
    assert list(error) == KEYS
    assert error["exit_status"] == result.exit_code != 0
    assert error["message"] in result.stderr or result.exit_code == exit_codes.INTERRUPTED
    return error


@pytest.fixture(name="broken")
def _broken(client: FakeClient, tmp_path: Path) -> Path:
    """Return a configuration with a typo."""
    file = tmp_path / ".mlx-sidecar" / "config.toml"
    file.parent.mkdir()
    file.write_text("max_modles = 3\n")
    return file


def test_json_error_has_the_documented_shape() -> None:
    """The documented example has the same keys as a real error."""
    (shown,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
    named = {"request_id": "req-088ff9d1aa34357c"}
    error = QueueFull("64 requests wait already, the most that max_queue allows", retry_after=1.0, metadata=named)
    answer = exit_codes.explain(error)
    assert answer is not None
    assert json.loads(shown) == exit_codes.document(error, answer.text, answer.code)
    assert list(json.loads(shown)["error"]) == KEYS


@pytest.mark.parametrize("words", WITH_JSON)
def test_wrong_usage_is_json_for_commands_with_json(client: FakeClient, words: tuple[str, ...]) -> None:
    """The unknown option makes the command line unparsable, and the error is still JSON."""
    error = told(run_cli(client, *words, "--json", "--no-such-option"))

    assert "--no-such-option" in error["message"]
    assert (error["exit_status"], error["code"], error["reason"]) == (exit_codes.USAGE, None, None)
    assert client.calls == []


@pytest.mark.parametrize("words", [words for words in WITH_JSON if words[0] not in ("service", *CALLS, "ls", "rm")])
def test_wrong_configuration_is_a_json_error(client: FakeClient, broken: Path, words: tuple[str, ...]) -> None:
    """The message names the file and the probable key in one sentence."""
    words += ("--all", "--yes") if words == ("cache", "rm") else ()
    assert (
        f"max_modles in {broken} is no setting; did you mean max_models?"
        in told(run_cli(client, *words, "--json"))["message"]
    )


@pytest.mark.parametrize("words", [words for words in WITH_JSON if words[0] == "service"])
def test_impossible_service_command_is_a_json_error(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """On a system without launchd, the error of `service` is JSON."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("SUDO_USER", raising=False)

    assert told(run_cli(client, *words, "--json"))["exit_status"] == exit_codes.REFUSED


def test_json_error_tests_cover_every_calling_command() -> None:
    assert {words[0] for words in WITH_JSON if words[0] in CALLERS} == {*CALLS, "ls", "rm"}


@pytest.mark.parametrize("name", CALLS)
def test_refusal_is_json_with_all_error_details(client: FakeClient, name: str) -> None:
    """The JSON error has the reason, the retry delay and the error id."""
    client.error = QueueFull("64 requests wait", retry_after=2.0, metadata={"waiting": "64"}, error_id="e-1")

    assert told(run_cli(client, name, *CALLS[name], "--json")) == {
        "message": "64 requests wait (QUEUE_FULL, error id e-1); try again in 2 s",
        "exit_status": exit_codes.REFUSED,
        "code": "RESOURCE_EXHAUSTED",
        "reason": "QUEUE_FULL",
        "field": None,
        "retry_after": 2.0,
        "error_id": "e-1",
        "metadata": {"waiting": "64"},
    }


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DaemonNotRunning("no mlx-sidecar answers at /s"), exit_codes.NOT_RUNNING),
        (KeyboardInterrupt(), exit_codes.INTERRUPTED),
    ],
)
def test_absent_daemon_and_interrupt_are_json_errors(
    client: FakeClient, name: str, error: Exception, code: int
) -> None:
    client.error = error

    assert told(run_cli(client, name, *CALLS[name], "--json"))["exit_status"] == code


def test_unexpected_exception_is_json_and_a_traceback(client: FakeClient) -> None:
    """Standard error gets the traceback, standard output the JSON error."""
    client.error = ZeroDivisionError("oh")

    result = run_cli(client, "ps", "--json")

    assert isinstance(result.exception, ZeroDivisionError)
    assert json.loads(result.stdout)["error"]["message"] == "a bug: ZeroDivisionError: oh"


def test_json_usage_error_names_its_option(client: FakeClient) -> None:
    assert (
        "'soon' must be a number of seconds" in told(run_cli(client, "load", "m", "--ttl", "soon", "--json"))["message"]
    )


def test_declined_question_is_a_json_result(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A declined question is no error, and standard output is JSON."""
    pretend_terminal(monkeypatch, "stdin")
    client.dropped = Invalidated(("m",), 1, 1, 0)

    result = run_cli(client, "invalidate", "m", "--json", stdin="n\n")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["models"] == []
    assert [options["dry_run"] for _, options in client.called("invalidate_model")] == [True]


@pytest.mark.parametrize("words", WITHOUT_JSON)
def test_without_json_flag_errors_are_only_sentences(client: FakeClient, words: tuple[str, ...]) -> None:
    result = run_cli(client, *words, "--no-such-option")

    assert (result.exit_code, result.stdout) == (exit_codes.USAGE, "")


def test_prompt_text_json_is_no_flag(client: FakeClient) -> None:
    """Words after `--` are no options, so `-- --json` is a prompt."""
    client.error = ModelNotFound("no")

    result = run_cli(client, "run", "m", "--", "--json")

    assert result.stdout == ""


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["completion", "bash"], *([one, "--help"] for one in COMMANDS)]
)
def test_config_typo_stops_no_command_without_config(client: FakeClient, broken: Path, args: list[str]) -> None:
    result = run_cli(client, *args)

    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize("name", [*CALLS, "metrics"])
def test_config_typo_stops_no_command_with_a_socket(
    client: FakeClient, broken: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The socket comes from the flag or from the variable."""
    assert run_cli(client, name, *CALLS.get(name, []), "--socket", "/s").exit_code == 0
    monkeypatch.setenv("MLX_SIDECAR_SOCKET", "/t")
    monkeypatch.setenv("MLX_SIDECAR_MAX_BATCH", "none")
    assert run_cli(client, name, *CALLS.get(name, [])).exit_code == 0
    assert client.socket == Path("/t")


def test_config_typo_stops_no_chat(client: FakeClient, broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chat's history is still written beside the configuration."""
    histories = pretend_typing(monkeypatch, "one")

    assert run_cli(client, "run", "m", "--socket", "/s").exit_code == 0
    assert histories == [broken.parent / "run_history"]


@pytest.mark.parametrize("args", [["ps"], ["stats"], ["config"], ["serve"], ["run", "m", "Hi"], ["ls"]])
def test_config_typo_is_reported_in_one_sentence(client: FakeClient, broken: Path, args: list[str]) -> None:
    result = run_cli(client, *args)

    assert (result.exit_code, result.stdout) == (exit_codes.USAGE, "")
    assert result.stderr == f"mlx-sidecar: max_modles in {broken} is no setting; did you mean max_models?\n"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["run", "m", "Hi", "--speculation", "MPT"], "'ngram', 'draft', 'mtp'. Did you mean mtp?\n"),
        (["config", "max_modles"], "Did you mean max_models?\n"),
        (["embed", "m", "Hi", "--pooling", "xyz"], "'last_token', 'mean', 'cls'.\n"),
    ],
)
def test_value_that_is_none_of_several_is_told_with_all_of_them(client: FakeClient, args: list[str], told: str) -> None:
    """And with the nearest one, if any is near."""
    result = run_cli(client, *args)

    assert (result.exit_code, result.stdout) == (exit_codes.USAGE, "")
    assert result.stderr.endswith(told)


def test_invalid_socket_option_is_refused_by_name(client: FakeClient) -> None:
    result = run_cli(client, "ps", "--socket", "run/s")

    assert result.exit_code == exit_codes.USAGE
    assert result.stderr == (
        "mlx-sidecar: socket from --socket is 'run/s', but must be an absolute path, or one that starts with \"~/\".\n"
    )


@pytest.mark.parametrize("name", sorted({*CALLERS} - {"top", "http", "launch", "rm"}))
def test_socket_option_works_after_a_command_too(client: FakeClient, name: str) -> None:
    """If the option is given twice, the later value wins."""
    for args, wanted in (
        (["--socket", "/before", name], "/before"),
        ([name, "--socket", "/after"], "/after"),
        (["--socket", "/before", name, "--socket", "/after"], "/after"),
    ):
        client.socket = None
        assert run_cli(client, *args, *CALLS.get(name, [])).exit_code == 0
        assert client.socket == Path(wanted)


@pytest.mark.parametrize("name", ["status", "start", "stop", "logs"])
def test_socket_option_is_refused_for_service(client: FakeClient, name: str) -> None:
    """Only `service install` can set the socket of the service."""
    result = run_cli(client, "--socket", "/s", "service", name)

    assert result.exit_code == exit_codes.USAGE
    assert "--socket belongs to service install" in result.stderr


def test_every_calling_command_has_socket_and_start() -> None:
    """The commands that call the daemon are exactly the commands with both options."""
    assert set(CALLERS) == {*CALLS, "ls", "rm", "top", "metrics", "http", "launch"}
    assert all({"--socket", "--start"} <= options(command) for words, command in commands() if words[0] in CALLERS)


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        (["frobnicate"], True),
        (["ps", "--frobnicate"], True),
        (["load"], True),
        (["invalidate"], True),
        (["rm", "embedded", "--yes"], False),
        (["--socket", "relative", "ps"], False),
    ],
)
def test_each_refusal_begins_with_the_program(client: FakeClient, arguments: list[str], usage: bool) -> None:
    """Whether click finds it, a command or the configuration; wrong usage has the command's usage before it."""
    *before, last = run_cli(client, *arguments).stderr.splitlines()
    assert last.startswith("mlx-sidecar: ")
    assert [line.split(":")[0] for line in before[:1]] == (["Usage"] if usage else [])


def test_documented_commands_that_start_a_daemon_are_all() -> None:
    """Those with `--start`."""
    page = (ROOT / "docs" / "operations.md").read_text()
    (named,) = re.findall(r"`--start` after any command that calls the daemon \((.*?)\)", page, re.DOTALL)
    assert sorted(re.findall(r"`(.*?)`", named)) == sorted(CALLERS)
