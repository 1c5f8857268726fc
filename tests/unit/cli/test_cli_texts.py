"""`tokens`, `embed`, `help`, and the prompt of `run`: words without quotes, and what is piped in beside them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from daemon.cli import input as cli_input
from daemon.cli import main
from daemon.cli.session import Session
from mlx_sidecar import Client
from tests.unit.cli.cli_fakes import FakeClient, client_fixture, run_cli  # noqa: F401


def asked(client: FakeClient) -> str:
    """Return the text of the last prompt."""
    prompt = client.called("generate")[-1][0][1]
    return str(prompt if isinstance(prompt, str) else prompt[-1].content)


def test_run_takes_a_prompt_without_quotes(client: FakeClient) -> None:
    assert run_cli(client, "run", "m", "what", "is", "the", "capital", "of", "France").exit_code == 0
    assert asked(client) == "what is the capital of France"


def test_pipe_that_stays_open_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line says so; what comes later is not lost."""
    reader, writer = os.pipe()
    said: list[str] = []

    def echo(text: str, *, err: bool) -> None:
        said.append(f"{err}: {text}")
        os.write(writer, b"late")
        os.close(writer)

    monkeypatch.setattr(cli_input, "HINT_SECONDS", 0)
    monkeypatch.setattr(click, "echo", echo)
    with os.fdopen(reader) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert cli_input.piped() == "late"
    assert said == ["True: Waiting for the end of standard input; without any, add: < /dev/null"]


def test_run_appends_what_is_piped_in(client: FakeClient) -> None:
    """Behind the prompt, once, with and without the template; an empty pipe adds nothing."""
    run_cli(client, "run", "m", "Review", "this", stdin="a diff\n")
    assert asked(client) == "Review this\n\na diff"
    run_cli(client, "run", "m", "--raw", "Once ", stdin="upon a time\n")
    assert asked(client) == "Once upon a time\n"
    run_cli(client, "run", "m", "--file", "-", "Review", stdin="a diff\n")
    assert asked(client) == "a diff\n\nReview"
    run_cli(client, "run", "m", "Hi", stdin="")
    assert asked(client) == "Hi"


def test_run_refuses_a_pipe_that_is_no_text(client: FakeClient) -> None:
    result = run_cli(client, "run", "m", "Hi", stdin=b"\xff\xfe")
    assert result.exit_code == 2
    assert "standard input is not UTF-8" in result.stderr


def test_tokens_counts_or_prints_ids(client: FakeClient) -> None:
    assert run_cli(client, "tokens", "m", "one", "two").stdout == "3 tokens; the context holds 4096.\n"
    assert client.called("tokenize")[-1] == (("m", "one two"), {"count_only": True})
    assert run_cli(client, "tokens", "m", "--ids", stdin="piped").stdout == "5 6 7\n"
    assert client.called("tokenize")[-1] == (("m", "piped"), {"count_only": False})
    assert run_cli(client, "tokens", "m", "--decode", "5", "6,7").stdout == "a text\n"
    assert client.called("tokenize")[-1][0] == ("m", [5, 6, 7])
    assert json.loads(run_cli(client, "tokens", "m", "one", "--json").stdout)["ids"] == [5, 6, 7]


def test_tokens_renders_conversations(client: FakeClient, tmp_path: Path) -> None:
    run_cli(client, "tokens", "m", "--chat", "Hi")
    assert client.called("tokenize")[-1][0] == ("m", [{"role": "user", "content": "Hi"}])
    file = tmp_path / "talk.json"
    file.write_text('{"messages": [{"role": "user"}], "tools": [{"name": "t"}]}')
    run_cli(client, "tokens", "m", "--messages", str(file))
    options = {"count_only": True, "tools": [{"name": "t"}]}
    assert client.called("tokenize")[-1] == (("m", [{"role": "user"}]), options)


@pytest.mark.parametrize(
    ("conversation", "words"),
    [
        ("[1, 2]", "has no messages"),
        ("[]", "has no messages"),
        ("5", "has no messages"),
        ('{"message": []}', "has 'message'"),
        ('{"messages": [{"role": "user"}], "tools": 5}', "tools of"),
        ('[{"content": "Hi"}]', "chat.messages[0].role is missing"),
        ('[{"role": "user", "text": "Hi"}]', "chat.messages[0] has the key 'text'"),
        ('[{"role": "user", "content": [{"type": "text"}]}]', "chat.messages[0].content cannot have a value"),
        ('[{"role": "user", "tool_calls": [{"type": "function"}]}]', "chat.messages[0].tool_calls[0] has the key"),
        ('{"messages": [{"role": "user"}], "tools": [{"type": "function"}]}', "chat.tools[0] has the key 'type'"),
    ],
)
def test_tokens_names_what_is_no_conversation(tmp_path: Path, conversation: str, words: str) -> None:
    """Nothing of a file is left out, and none of it ends the command with a traceback."""
    file = tmp_path / "talk.json"
    file.write_text(conversation)
    session = Session(lambda _: Client(tmp_path / "none"), lambda session, socket, ask: None)
    result = CliRunner().invoke(main, ["tokens", "m", "--messages", str(file)], obj=session)
    assert result.exit_code == 2, result.output
    assert f"{file}" in result.stderr
    assert words in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--decode", "--chat", "5"], "exclude each other"),
        (["--decode", "five"], "--decode takes token ids"),
    ],
)
def test_tokens_refuses_wrong_usage(client: FakeClient, arguments: list[str], words: str) -> None:
    result = run_cli(client, "tokens", "m", *arguments)
    assert (result.exit_code, words in result.stderr) == (2, True)


def test_embed_prints_a_vector_a_line(client: FakeClient) -> None:
    shown = run_cli(client, "embed", "m", "one text", "another", "--prompt-name", "query", "--dimensions", "2")
    assert [json.loads(line) for line in shown.stdout.splitlines()] == [[0.5, 0.0], [0.5, 1.0]]
    (model, texts), options = client.called("embed")[-1]
    assert (model, texts, options["prompt_name"], options["dimensions"]) == ("m", ("one text", "another"), "query", 2)


def test_embed_reads_lines_in_batches_of_256(client: FakeClient) -> None:
    tree = json.loads(run_cli(client, "embed", "m", "--json", stdin="a line\n\n" * 300).stdout)
    assert len(tree["vectors"]) == 300
    assert [len(call[0][1]) for call in client.called("embed")] == [256, 44]
    assert tree["usage"] == {"prompt_tokens": 2 * 1426, "cached_tokens": 2 * 1408}


def test_embed_gives_each_line_of_a_file_one_vector(client: FakeClient) -> None:
    """Characters at which only Python ends a line are part of it: else vectors would belong to other lines."""
    run_cli(client, "embed", "m", stdin="a\x85b\u2028c\u2029d\x0c\x1ce\r\nf\rg\n".encode())
    assert client.called("embed")[-1][0][1] == ("a\x85b\u2028c\u2029d\x0c\x1ce", "f", "g")


def test_embed_loads_the_model_with_its_adapter(client: FakeClient) -> None:
    """Without it the load would be of another model, which takes the memory of this one."""
    run_cli(client, "embed", "m", "a text", "--adapter", "/adapters/a")
    (_, options) = client.called("get_or_load")[-1]
    assert options["adapter"] == client.called("embed")[-1][1]["adapter"] == "/adapters/a"


def test_embed_without_text_is_wrong_usage(client: FakeClient) -> None:
    assert run_cli(client, "embed", "m").exit_code == 2


@pytest.mark.parametrize("words", [[], ["run"], ["list"], ["service", "install"]])
def test_help_prints_what_the_option_prints(client: FakeClient, words: list[str]) -> None:
    helped, optioned = run_cli(client, "help", *words), run_cli(client, *words, "--help")
    assert helped.exit_code == 0
    assert helped.stdout == optioned.stdout


def test_help_of_an_unknown_command_is_refused(client: FakeClient) -> None:
    assert "There is no command 'nonsense'" in run_cli(client, "help", "nonsense").stderr
