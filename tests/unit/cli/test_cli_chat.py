"""`run` without a prompt: a conversation, its commands, and what ends a turn but not the conversation."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from daemon.cli import exit_codes
from daemon.cli.terminal import chat
from daemon.cli.terminal.prompt import Terminal, _private
from mlx_sidecar import (
    ConnectionLost,
    ContextLengthExceeded,
    DaemonNotRunning,
    Delta,
    EngineRestarted,
    Message,
    ShuttingDown,
    Stats,
)
from tests.unit.cli.cli_fakes import STATS, FakeClient, client_fixture, pretend_terminal, pretend_typing, run_cli  # noqa: F401

SYSTEM, ONE, TWO, HELLO = (
    Message("system", "Be brief"),
    Message("user", "one"),
    Message("user", "two"),
    Message("assistant", "Hello"),
)


def prompts(client: FakeClient) -> list[list[Message]]:
    """Return what the model was asked."""
    return [args[1] for args, _ in client.called("generate")]


def test_chat_turn_includes_the_earlier_turns(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_typing(monkeypatch, "one", " ", "two")

    result = run_cli(client, "run", "m", "--system", "Be brief")

    assert result.exit_code == 0
    assert prompts(client) == [[SYSTEM, ONE], [SYSTEM, ONE, HELLO, TWO]]


def test_chat_turn_includes_the_reasoning_of_earlier_turns(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_typing(monkeypatch, "one", "two")
    client.deltas = [Delta("", (1,), (), reasoning="Hm."), "Hello"]

    run_cli(client, "run", "m")

    assert prompts(client)[1] == [ONE, replace(HELLO, reasoning_content="Hm."), TWO]


def test_chat_says_that_an_answer_was_cut_while_it_reasoned(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_typing(monkeypatch, "one", "two")
    client.deltas, client.reason = [Delta("", (1,), (), reasoning="Hm.")], "length"

    result = run_cli(client, "run", "m", "--max-tokens", "2")

    assert result.stderr.count("all of them reasoning; raise --max-tokens") == 2


def test_chat_shows_each_warning_once(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_typing(monkeypatch, "one", "two", "three")
    client.warnings = ("reasoning is left out", "calls are left out")

    result = run_cli(client, "run", "m")

    assert [line for line in result.stderr.splitlines() if line.startswith("Warning")] == [
        "Warning: reasoning is left out",
        "Warning: calls are left out",
    ]


def test_ctrl_c_drops_only_the_current_chat_turn(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_typing(monkeypatch, "one", "two")
    client.deltas = ["Hel", KeyboardInterrupt()]

    result = run_cli(client, "run", "m")

    assert result.exit_code == 0
    assert prompts(client) == [[ONE], [TWO]]
    assert all(stream.closed for stream in client.streams)
    assert "Interrupted" in result.stderr


def test_error_drops_only_the_current_chat_turn(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_typing(monkeypatch, "one", "two")
    client.deltas = [ContextLengthExceeded("5000 tokens, 4096 is the most")]

    result = run_cli(client, "run", "m")

    assert result.exit_code == 0
    assert prompts(client) == [[ONE], [TWO]]
    assert "4096 is the most (CONTEXT_LENGTH_EXCEEDED); this turn is forgotten." in result.stderr


class Away:
    """A daemon that goes away in the middle of an answer, and answers the third look after it; or Ctrl-C is pressed."""

    def __init__(self, client: FakeClient, gone: Exception, patient: bool = True) -> None:
        self._client, self._gone, self._patient = client, gone, patient
        self._events = [*client.deltas]
        self.looks = 0
        client.deltas = ["Hel", gone]
        client.stats = self.stats  # type: ignore[method-assign,assignment]

    def stats(self) -> Stats:
        self.looks += 1
        self._client.calls.append(("stats", (), {}))
        if self.looks < 3:
            raise DaemonNotRunning("gone")
        if not self._patient:
            raise KeyboardInterrupt
        self._client.deltas = self._events
        return replace(STATS, daemon=replace(STATS.daemon, draining=self.looks == 3))


@pytest.mark.parametrize(
    "gone", [DaemonNotRunning("gone"), ShuttingDown("drains"), ConnectionLost("cut off"), EngineRestarted("died")]
)
def test_chat_waits_for_its_daemon_and_asks_again(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch, gone: Exception
) -> None:
    """The conversation goes on with all its turns; the model is loaded anew; a daemon that drains is no daemon yet."""
    monkeypatch.setattr(chat, "LOOK_SECONDS", 0.0)
    pretend_typing(monkeypatch, "one", "/clear", "two", "one")
    away = Away(client, gone)

    result = run_cli(client, "run", "m", "--system", "Be brief")

    assert result.exit_code == 0
    assert prompts(client) == [[SYSTEM, ONE], [SYSTEM, ONE], [SYSTEM, TWO], [SYSTEM, TWO, HELLO, ONE]]
    assert [name for name, _, _ in client.calls] == [
        *("get_or_load", "generate"), *["stats"] * 4, *("get_or_load", "generate", "generate", "generate"),
    ]  # fmt: skip
    assert away.looks == 4
    assert result.stdout.startswith("Hel\nHello\n")
    assert result.stderr.count("waiting for it to come back. Ctrl-C leaves.") == 1
    assert result.stderr.count("The daemon is back") == 1
    assert "forgotten" not in result.stderr


def test_chat_waits_as_long_as_the_engine_is_away(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon answers meanwhile: without the wait it would be asked, and refuse, some times a second."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    pretend_typing(monkeypatch, "one")
    Away(client, EngineRestarted("keeps dying", retry_after=42.0))

    assert run_cli(client, "run", "m").exit_code == 0
    assert pauses == [42.0, *[chat.LOOK_SECONDS] * 3]


def test_ctrl_c_leaves_a_chat_without_a_daemon(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chat exits with the status of an interruption."""
    monkeypatch.setattr(chat, "LOOK_SECONDS", 0.0)
    pretend_typing(monkeypatch, "one", "two")
    Away(client, DaemonNotRunning("gone"), patient=False)

    assert run_cli(client, "run", "m").exit_code == exit_codes.INTERRUPTED
    assert prompts(client) == [[ONE]]


def test_clear_keeps_the_system_message(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_typing(monkeypatch, "one", "/clear", "two", "/system", "one")

    run_cli(client, "run", "m", "--system", "Be brief")

    assert prompts(client) == [[SYSTEM, ONE], [SYSTEM, TWO], [ONE]]


def test_system_command_restarts_the_chat(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_typing(monkeypatch, "one", "/system Be brief", "two")

    run_cli(client, "run", "m")

    assert prompts(client) == [[ONE], [SYSTEM, TWO]]


def test_verbose_toggles_and_help_lists_commands(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_typing(monkeypatch, "/help", "one", "/verbose", "two", "/exit", "never")

    result = run_cli(client, "run", "m")

    assert len(prompts(client)) == 2
    assert result.stderr.count("first token") == 1
    assert all(f"/{name}" in result.stderr for name in ("clear", "system", "verbose", "help", "exit"))


def test_unknown_chat_command_is_not_sent(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_typing(monkeypatch, "/etc/passwd is a file", " /etc is a directory")

    result = run_cli(client, "run", "m")

    assert "There is no /etc/passwd" in result.stderr
    assert prompts(client) == [[Message("user", " /etc is a directory")]]


def test_chat_refuses_raw_and_json(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_terminal(monkeypatch, "stdin", "stdout")

    assert run_cli(client, "run", "m", "--raw").exit_code == exit_codes.USAGE
    assert run_cli(client, "run", "m", "--json").exit_code == exit_codes.USAGE


def test_chat_history_is_saved_beside_the_config(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    histories = pretend_typing(monkeypatch)
    run_cli(client, "run", "m")
    run_cli(client, "run", "m", "--no-history")

    assert histories == [tmp_path / ".mlx-sidecar" / "run_history", None]
    assert run_cli(client, "run", "m", "Hi", "--no-history").exit_code == exit_codes.USAGE


def asked(keys: str, history: Path | None, times: int = 1) -> list[str | None]:
    """Return what a terminal makes of keys."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        terminal = Terminal(history)
        return [terminal.ask() for _ in range(times)]


def test_chat_line_is_a_turn_and_ctrl_d_ends() -> None:
    assert asked("Grüße\r\x04", None, times=2) == ["Grüße", None]


def test_backslash_and_paste_continue_a_chat_line() -> None:
    assert asked("one\\\rtwo\r", None) == ["one\ntwo"]
    assert asked("\x1b[200~pasted\nlines\x1b[201~\r", None) == ["pasted\nlines"]


def test_ctrl_c_discards_the_typed_chat_line() -> None:
    assert asked("oops\x03right\r", None) == ["right"]


def test_chat_history_is_loaded_in_the_next_session(folder: Path) -> None:
    file = folder / "state" / "run_history"
    asked("first\r", file)

    assert asked("\x1b[A\r", file) == ["first"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_unwritable_chat_history_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "state").write_text("a file where a directory should be")

    assert asked("first\r", folder / "state" / "run_history") == ["first"]
    assert "is not kept" in capsys.readouterr().err


def test_history_that_takes_no_line_ends_no_conversation(tmp_path: Path) -> None:
    """On a full disk, a traceback would follow each line; a file that was deleted meanwhile is made private again."""
    file = tmp_path / "state" / "run_history"
    history = _private(file)
    file.unlink()
    history.append_string("one")
    assert file.stat().st_mode & 0o777 == 0o600
    shutil.rmtree(file.parent)
    history.append_string("two")
    assert not file.exists()
    assert history.get_strings()[-1] == "two"
