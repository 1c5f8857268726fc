"""What each tool is told: in the form that it reads, with the door, the token, the model and the context."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from daemon.launch.tools import TOOLS, Place, Settings, environment
from daemon.shared.config import KEYS
from daemon.shared.config_sources import load_config

PLACE = Place("http://127.0.0.1:8080", "sesame", "org/a model", 40_000, Path("/folder"))


def told(tool: str) -> Settings:
    """Return what a tool is told."""
    return TOOLS[tool].settings(PLACE)


@pytest.mark.parametrize("tool", TOOLS)
def test_each_tool_is_told_where_and_what(tool: str) -> None:
    """The token is in the environment alone: arguments and files can be seen more easily."""
    settings = told(tool)
    variables = "\n".join(settings.environment.values())
    everything = "\n".join([variables, *settings.arguments, *settings.files.values()])
    assert PLACE.url in everything
    assert PLACE.model in everything
    assert "sesame" in variables
    assert "sesame" not in "\n".join([*settings.arguments, *settings.files.values()])


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool not in ("claude", "copilot")])
def test_each_tool_is_told_the_context(tool: str) -> None:
    """So that it shortens a conversation in time."""
    settings = told(tool)
    assert "40000" in "\n".join([*settings.environment.values(), *settings.arguments, *settings.files.values()])


def test_codex_gets_values_of_toml() -> None:
    """As its option `-c` wants them."""
    arguments = told("codex").arguments
    assert arguments[::2] == ["-c"] * (len(arguments) // 2)
    read = tomllib.loads("\n".join(arguments[1::2]))
    assert (read["model"], read["model_context_window"]) == (PLACE.model, 40_000)
    provider = read["model_providers"][read["model_provider"]]
    assert (provider["base_url"], provider["wire_api"]) == ("http://127.0.0.1:8080/v1", "responses")
    assert told("codex").environment == {provider["env_key"]: "sesame"}


def test_claude_summarises_before_a_small_context_is_full() -> None:
    """It takes no window below 100,000 tokens; the share of it does."""
    variables = told("claude").environment
    assert variables["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "100000"
    assert variables["CLAUDE_AUTOCOMPACT_PCT_OVERRIDE"] == "34"
    assert {"ANTHROPIC_API_KEY", "ANTHROPIC_SMALL_FAST_MODEL"} <= set(told("claude").unset)


def test_copilot_is_told_both_parts_of_the_context() -> None:
    """Prompt and answer fill it. What the user has set for another provider would win."""
    settings = told("copilot")
    parts = [settings.environment[f"COPILOT_PROVIDER_MAX_{part}_TOKENS"] for part in ("PROMPT", "OUTPUT")]
    assert parts == ["30000", "10000"]
    assert {"COPILOT_PROVIDER_BEARER_TOKEN", "COPILOT_PROVIDER_WIRE_MODEL"} <= set(settings.unset)


def test_files_of_tools_can_be_read() -> None:
    """Each is JSON, or a program around it, and named by a variable or an argument."""
    for tool in TOOLS:
        settings = told(tool)
        for name, content in settings.files.items():
            assert json.loads(content[content.index("{") : content.rindex("}") + 1])
            told_of = (*settings.environment.values(), *settings.arguments)
            assert {"/folder", f"/folder/{name}"} & set(told_of)
    for tool, variable in (("opencode", "OPENCODE_CONFIG_CONTENT"), ("kilo", "KILO_CONFIG_CONTENT")):
        assert json.loads(told(tool).environment[variable])["model"] == "mlx-sidecar/org/a model"


def test_pi_gets_the_token_itself() -> None:
    """Of its versions some take a key for the name of a variable, and some for the key."""
    (code,) = told("pi").files.values()
    assert "provider.apiKey = process.env.MLX_SIDECAR_TOKEN;" in code
    assert told("pi").environment == {"MLX_SIDECAR_TOKEN": "sesame"}


def test_a_proxy_is_not_asked_for_this_machine() -> None:
    """What else the user has said of proxies stays; variables that would win are gone."""
    inherited = {"HTTP_PROXY": "http://proxy", "NO_PROXY": "intern", "ANTHROPIC_API_KEY": "theirs", "HOME": "/me"}
    found = environment(told("claude"), inherited)
    assert (found["NO_PROXY"], found["no_proxy"]) == ("intern,127.0.0.1", "127.0.0.1")
    assert found["HOME"] == "/me"
    assert "ANTHROPIC_API_KEY" not in found
    assert environment(told("claude"), found)["NO_PROXY"] == "intern,127.0.0.1"


@pytest.mark.parametrize("tool", TOOLS)
def test_variables_of_a_tool_are_no_settings(tool: str, tmp_path: Path) -> None:
    """`mlx-sidecar ps` in the shell of a tool would be refused for a variable that only the launch has set."""
    resolved = load_config({}, environment(told(tool), {}), tmp_path)
    assert resolved.origins == dict.fromkeys(KEYS, "default")
