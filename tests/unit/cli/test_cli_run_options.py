"""`run`: its options reach the request, and those that cannot be are refused before a call."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.cli import exit_codes
from daemon.cli.commands.run import command
from mlx_sidecar import GenerateOptions, Message
from tests.unit.cli.cli_fakes import FakeClient, client_fixture, run_cli  # noqa: F401


def test_run_sends_every_option(client: FakeClient) -> None:
    args = "--max-tokens 5 --temperature 0.5 --top-p 0.9 --top-k 40 --min-p 0.1 --seed 7 --salt s --no-cache"
    args += " --repetition-penalty 1.1"
    more = "--no-think --effort low --stop a --stop b"
    run_cli(client, "run", "m", "Hi", *args.split(), *more.split(), "--system", "Be brief")

    ((positional, options),) = client.called("generate")
    assert positional[1] == [Message(role="system", content="Be brief"), Message(role="user", content="Hi")]
    assert options == {
        "model_defaults": True,
        "samples": None,
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "seed": 7,
        "salt": "s",
        "cache_mode": "bypass",
        "stop": ("a", "b"),
        "enable_thinking": False,
        "reasoning_effort": "low",
        "reasoning_budget": None,
    }


def test_run_greedy_overrides_the_model(client: FakeClient) -> None:
    run_cli(client, "run", "m", "Hi", "--greedy")
    run_cli(client, "run", "m", "Hi", "--temperature", "0")
    refused = run_cli(client, "run", "m", "Hi", "--greedy", "--temperature", "1")

    assert [options["temperature"] for _, options in client.called("generate")] == [0.0, 0.0]
    assert refused.exit_code == exit_codes.USAGE
    assert "--greedy and --temperature exclude each other." in refused.stderr


def test_run_keeps_the_prompt_when_asked(client: FakeClient) -> None:
    assert run_cli(client, "run", "m", "Hi", "--keep", "1h").exit_code == 0
    assert client.called("generate")[0][1]["keep"] == 3600

    for args in (["--keep", "1h", "--no-cache"], ["--keep", "soon"]):
        assert run_cli(client, "run", "m", "Hi", *args).exit_code == exit_codes.USAGE
    assert len(client.called("generate")) == 1


def test_run_sends_the_form_of_the_answer(client: FakeClient, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"const": "é"}', encoding="utf-8")
    given = [("--format", "json"), ("--schema", str(schema)), ("--regex", "é+"), ("--grammar", str(schema))]
    for option in given:
        run_cli(client, "run", "m", "Hi", *option)

    names = ("json_object", "json_schema", "regex", "grammar")
    asked = [{name: options[name] for name in names if name in options} for _, options in client.called("generate")]
    text = schema.read_text("utf-8")
    assert asked == [{"json_object": True}, {"json_schema": text}, {"regex": "é+"}, {"grammar": text}]


def test_run_loads_and_asks_with_an_adapter(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its path is made absolute, because the daemon has another working directory."""
    monkeypatch.chdir(tmp_path)
    run_cli(client, "run", "m", "Hi", "--adapter", "lora")
    called = [client.called(name)[0][1]["adapter"] for name in ("get_or_load", "generate")]
    assert called == [str(tmp_path / "lora")] * 2


IN_PROGRAMS = {
    "add_generation_prompt",
    "continue_final_message",
    "template_args",
    "tools",
    "tool_choice",
    "required_tool",
    "allowed_tools",
    "stop_at_tool_call",
}
IN_PROGRAMS |= {"logit_bias", "stop_token_ids", "ignore_eos", "top_logprobs", "prompt_logprobs", "draft_tokens"}
IN_PROGRAMS |= {"presence_penalty", "frequency_penalty", "priority", "request_id", "require_loaded"}
"""Options of a generation that programs set and people at a terminal do not."""


def test_run_has_the_options_of_a_generation() -> None:
    """A new option gets a flag, or a place in the list above."""
    flags = {option.name for option in command.params}
    under = {"cache_mode": "no_cache", "json_object": "form", "json_schema": "schema", "model_defaults": "greedy"}
    under |= {"enable_thinking": "think", "reasoning_effort": "effort"}
    options = set(GenerateOptions.__annotations__) - IN_PROGRAMS
    assert {under.get(name, name) for name in options} <= flags
    assert set(GenerateOptions.__annotations__) >= IN_PROGRAMS


@pytest.mark.parametrize(
    ("args", "stdin", "sentence"),
    [
        (["m", ""], "", "The prompt is empty."),
        (["m"], "\n", "The prompt is empty."),
        (["m"], b"\xff", "The prompt on standard input is not UTF-8 text."),
        (["m", "x", "--raw", "--system", "y"], "", "--system needs the chat template"),
        (["m", "x", "--raw", "--think"], "", "--think/--no-think needs the chat template"),
        (["m", "x", "--raw", "--effort", "low"], "", "--effort needs the chat template"),
        (["m", "x", "--format", "json", "--schema", "-"], "{}", "--format and --schema exclude each other."),
        (["m", "x", "--regex", "a", "--grammar", "-"], "{}", "--regex and --grammar exclude each other."),
        (["m", "x", "--schema", "-"], b"\xff", "<stdin> is not UTF-8 text."),
        (["m", "x", "--schema", "/nowhere"], "", "No such file"),
        (["m", "x", "--max-tokens", "0"], "", "0 is not in the range x>=1"),
        (["m", "x", "--seed", "y"], "", "'y' is not a valid integer"),
    ],
)
def test_run_refuses_wrong_usage_before_it_calls(
    client: FakeClient, args: list[str], stdin: str | bytes, sentence: str
) -> None:
    result = run_cli(client, "run", *args, stdin=stdin)

    assert result.exit_code == exit_codes.USAGE
    assert sentence in result.stderr
    assert client.calls == []
