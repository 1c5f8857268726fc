"""`run`: the prompt goes to the model, the answer to stdout, everything else to stderr."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.cli import exit_codes
from daemon.cli.output.formatting import printable
from mlx_sidecar import Completion, Delta, Finished, InternalError, Message, Miss
from tests.unit.cli.cli_fakes import (  # noqa: F401
    TIMINGS,
    USAGE,
    FakeClient,
    FakeStream,
    client_fixture,
    pretend_terminal,
    run_cli,
)


def test_run_downloads_loads_and_streams_the_answer(client: FakeClient) -> None:
    result = run_cli(client, "run", "org/name", "Hi")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello\n", "")
    assert client.called("get_or_load") == [(("org/name",), {"adapter": "", "allow_download": True})]
    ((args, options),) = client.called("generate")
    assert args == ("org/name", [Message(role="user", content="Hi")])
    assert {key: value for key, value in options.items() if value is not None} == {
        "cache_mode": "read_write",
        "salt": "",
        "model_defaults": True,
    }
    assert client.streams[0].closed


def test_run_prints_samples_in_order(client: FakeClient) -> None:
    one = Completion("One", (1,), (), "stop", "", USAGE, TIMINGS, "r-1", "m", seed=7)
    other = replace(one, text="Two", index=1, seed=8)
    end = Finished("stop", "", USAGE, TIMINGS)
    events = [
        Delta("Tw", (), (), index=1),
        Delta("One", (), ()),
        Delta("o\n", (), (), index=1),
        replace(end, index=1, seed=8),
        replace(end, index=0, seed=7),
    ]
    client.answer = FakeStream(events, (one, other))

    result = run_cli(client, "run", "m", "Hi", "--samples", "2", "--temperature", "1", "--verbose")

    assert result.stdout == "--- sample 0, seed 7 ---\nOne\n--- sample 1, seed 8 ---\nTwo\n"
    assert "decode       20 tokens in 0.500 s" in result.stderr
    client.answer = FakeStream(events, (one, other))
    tree = json.loads(run_cli(client, "run", "m", "Hi", "--samples", "2", "--json").stdout)
    assert [(sample["text"], sample["seed"]) for sample in tree] == [("One", 7), ("Two", 8)]


def test_run_prints_samples_that_were_cut_short(client: FakeClient) -> None:
    client.answer = FakeStream([Delta("Tw", (), (), index=1), InternalError("a bug")], ())

    result = run_cli(client, "run", "m", "Hi", "--samples", "2")

    assert (result.exit_code, result.stdout) == (exit_codes.REFUSED, "--- sample 1, cut short ---\nTw\n")


@pytest.mark.parametrize("args", [[], ["--json"], ["--verbose"]])
def test_run_shows_warnings_once(client: FakeClient, args: list[str]) -> None:
    """On standard error, so that a pipe gets the answer alone."""
    client.warnings = ("chat.messages[0] is left out",)

    result = run_cli(client, "run", "m", "Hi", *args)

    assert result.stderr.count("chat.messages[0] is left out") == 1
    assert "Warning: chat.messages[0] is left out\n" in result.stderr
    assert "Warning" not in result.stdout


@pytest.mark.parametrize(
    ("miss", "text"),
    [
        (Miss("never_seen", 0, 0, None, None, None, ()), "no stored prompt begins like this one"),
        (
            Miss("diverged", 1137, 0, 2, 0, 90.0, ()),
            "differs from a stored prompt from token 1,137 on, message 2, character 0, 2 minutes ago",
        ),
        (Miss("diverged", 17, 0, None, None, None, ()), "differs from a stored prompt from token 17 on"),
        (Miss("evicted", 48, 0, None, None, 3.0, ()), "48 tokens were stored and are evicted, 3 seconds ago"),
        (
            Miss("other_namespace", 48, 0, None, None, None, ("weights", "salt")),
            "48 tokens are stored for another weights and salt",
        ),
        (Miss("too_short", 0, 0, None, None, None, ()), "too few tokens to reuse any"),
        (
            Miss("resume_point", 96, 32, None, 7, None, ()),
            "96 tokens are shared with a stored prompt, character 7, but the model can only go on from token 32",
        ),
        (Miss("unknown", 0, 0, None, None, None, ()), "unknown"),
    ],
    ids=lambda value: value.reason if isinstance(value, Miss) else "",
)
def test_run_verbose_tells_the_miss(client: FakeClient, miss: Miss, text: str) -> None:
    client.miss = miss

    assert f"miss         {text}" in run_cli(client, "run", "m", "Hi", "--verbose").stderr.splitlines()


@pytest.mark.parametrize(("tokens", "told"), [(0, ""), (1024, " (1,024 from the disk)")])
def test_run_verbose_tells_memory_and_disk_apart(client: FakeClient, tokens: int, told: str) -> None:
    client.disk_tokens = tokens

    lines = run_cli(client, "run", "m", "Hi", "--verbose").stderr.splitlines()

    assert f"prompt       1,426 tokens, 1,408 of them cached{told}" in lines


@pytest.mark.parametrize(
    ("options", "deltas", "reason", "told"),
    [
        (["--format", "json"], ['{"a'], "length", "no whole JSON; raise --max-tokens"),
        ([], [Delta("", (), (), "Hm")], "length", "all of them reasoning"),
        ([], ["Hel"], "length", ""),
        (["--format", "json"], ["{}"], "stop", ""),
    ],
)
def test_run_tells_of_an_answer_that_is_cut(
    client: FakeClient, options: list[str], deltas: list[Any], reason: str, told: str
) -> None:
    """A pipe would get half of a document, or nothing, without a word. What --max-tokens may well cut is no trouble."""
    client.deltas, client.reason = deltas, reason
    result = run_cli(client, "run", "m", "Hi", *options)
    assert (result.exit_code, told in result.stderr, bool(result.stderr)) == (0, True, bool(told))


def test_run_reads_stdin_without_a_prompt(client: FakeClient) -> None:
    run_cli(client, "run", "m", stdin="Grüße\n")
    run_cli(client, "run", "m", "--raw", stdin="Once\n")

    assert [args[1] for args, _ in client.called("generate")] == [
        [Message(role="user", content="Grüße")],
        "Once\n",
    ]


def test_run_shows_reasoning_on_a_terminal_only(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client.deltas = [Delta("", (1,), (), reasoning="Let me"), Delta("", (2,), (), reasoning=" see."), "Hello"]
    assert run_cli(client, "run", "m", "Hi").stdout == "Hello\n"

    pretend_terminal(monkeypatch, "stdout")
    assert run_cli(client, "run", "m", "Hi").stdout == "Let me see.\n\nHello\n"


def test_run_prints_timings_on_stderr_when_asked(client: FakeClient) -> None:
    result = run_cli(client, "run", "m", "Hi", "--verbose")

    assert result.stdout == "Hello\n"
    assert result.stderr.splitlines() == [
        "",
        "prompt       1,426 tokens, 1,408 of them cached",
        "first token  0.100 s",
        "prefill      18 tokens in 0.090 s, 200.0 tokens/s",
        "decode       10 tokens in 0.500 s, 20.0 tokens/s",
    ]


def test_run_json_prints_one_object(client: FakeClient) -> None:
    result = run_cli(client, "run", "m", "Hi", "--json")

    tree = json.loads(result.stdout)
    assert tree["text"] == "Hello"
    usage = {"prompt_tokens": 1426, "cached_tokens": 1408, "completion_tokens": 11}
    assert tree["usage"] == usage | {"draft_tokens": 0, "accepted_tokens": 0, "reasoning_tokens": 0, "guesses": []}
    assert tree["timings"]["prefill"] == 0.09
    assert (tree["reason"], tree["model"], tree["request_id"]) == ("stop", "m", "r-1")


def test_ctrl_c_cancels_the_call_and_exits_130(client: FakeClient) -> None:
    client.deltas = ["Hel", KeyboardInterrupt()]

    result = run_cli(client, "run", "m", "Hi")

    assert (result.exit_code, result.stdout) == (exit_codes.INTERRUPTED, "Hel\n")
    assert client.streams[0].closed


def test_run_error_before_text_leaves_stdout_empty(client: FakeClient) -> None:
    client.deltas = [InternalError("a bug")]

    assert run_cli(client, "run", "m", "Hi").stdout == ""


def test_run_error_after_text_ends_the_line_first(client: FakeClient) -> None:
    client.deltas = ["Hel", InternalError("a bug")]

    result = run_cli(client, "run", "m", "Hi")

    assert (result.exit_code, result.stdout) == (exit_codes.REFUSED, "Hel\n")
    assert result.stderr == "mlx-sidecar: a bug (INTERNAL)\n"


def test_run_adds_no_second_final_newline(client: FakeClient) -> None:
    client.deltas = ["a\n", ""]

    assert run_cli(client, "run", "m", "Hi").stdout == "a\n"


def test_run_escapes_terminal_control_sequences(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client.deltas = ["a\x1b]0;title\x07b\n"]
    assert "\x1b" in run_cli(client, "run", "m", "Hi", "--raw").stdout

    pretend_terminal(monkeypatch, "stdout")

    assert run_cli(client, "run", "m", "Hi").stdout == "a\ufffd]0;title\ufffdb\n"
    assert printable("Grüße 世界 👩\u200d🚀\tx\n") == "Grüße 世界 👩\u200d🚀\tx\n"


def test_run_puts_files_before_the_prompt(client: FakeClient, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("first\n")
    run_cli(client, "run", "m", "--file", "a.md", "--file", "-", "What?", stdin="second\n")
    run_cli(client, "run", "m", "--file", "a.md")
    run_cli(client, "run", "m", "--raw", "--file", "a.md", "then")

    assert [args[1] for args, _ in client.called("generate")] == [
        [Message("user", "first\n\nsecond\n\nWhat?")],
        [Message("user", "first")],
        "first\nthen",
    ]


def test_run_refuses_an_unusable_file_before_loading(client: FakeClient, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"\xff")
    missing, binary = run_cli(client, "run", "m", "--file", "a"), run_cli(client, "run", "m", "--file", "b")

    assert (missing.exit_code, binary.exit_code) == (exit_codes.USAGE, exit_codes.USAGE)
    assert "'a' does not exist" in missing.stderr
    assert "The prompt on b is not UTF-8 text." in binary.stderr
    assert client.calls == []
