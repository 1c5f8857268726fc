"""
The tools that can be launched: a record for each, with what it has to be told and how.

A tool gets variables, arguments and files in a folder of its launch. Nothing of the user's is changed, and what the
user gives after `--` comes last, so that it wins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.shared.config_sources import LAUNCH_TOKEN

TOKEN = LAUNCH_TOKEN
"""Variable with the door's token, for tools that are told the name of a variable and not the token."""
PROVIDER = "mlx-sidecar"
"""What tools call the door."""
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Place:
    """
    What a launched tool has to know.

    Attributes:
        url: Of the door, without a path.
        token: What each request carries.
        model: Name of the model.
        context: Longest prompt plus answer, in tokens.
        folder: Where its files are.
    """

    url: str
    token: str
    model: str
    context: int
    folder: Path

    @property
    def output(self) -> int:
        """Most tokens of an answer: a quarter of the context, which leaves the rest to the conversation."""
        return max(1, min(32_000, self.context // 4))

    def file(self, name: str) -> str:
        """Return the path of a file of the launch."""
        return str(self.folder / name)


@dataclass(frozen=True, slots=True)
class Settings:
    """
    What one launch of a tool needs.

    Attributes:
        environment: Variables.
        arguments: Arguments before those of the user.
        files: The content of each file of its folder.
        unset: Variables of the user's that would win over these.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    unset: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Tool:
    """
    A tool.

    Attributes:
        title: Its name in sentences.
        program: Its program's name.
        install: A command that installs it.
        settings: Returns what a launch needs.
        default: Arguments if the user gives none.
    """

    title: str
    program: str
    install: str
    settings: Callable[[Place], Settings]
    default: Sequence[str] = ()


def _json(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, indent=2) + "\n"


def _codex(place: Place) -> Settings:
    provider = f"model_providers.{PROVIDER}"
    values = {
        "model_provider": PROVIDER,
        "model": place.model,
        "model_context_window": place.context,
        f"{provider}.name": PROVIDER,
        f"{provider}.base_url": f"{place.url}/v1",
        f"{provider}.env_key": TOKEN,
        f"{provider}.wire_api": "responses",
    }
    # JSON of a text or a number is also TOML, which `-c` takes.
    arguments = [part for name, value in values.items() for part in ("-c", f"{name}={json.dumps(value)}")]
    return Settings({TOKEN: place.token}, arguments)


_CLAUDE_LEAST_WINDOW = 100_000
"""Claude Code takes no smaller window; a share of it, in percent, is where it begins to summarise."""
_CLAUDE_ROOM = 0.85


def _claude(place: Place) -> Settings:
    window = max(_CLAUDE_LEAST_WINDOW, place.context)
    models = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("HAIKU", "SONNET", "OPUS")))
    return Settings(
        {
            "ANTHROPIC_BASE_URL": place.url,
            "ANTHROPIC_AUTH_TOKEN": place.token,
            **dict.fromkeys([*models, "CLAUDE_CODE_SUBAGENT_MODEL"], place.model),
            "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(window),
            "CLAUDE_AUTOCOMPACT_PCT_OVERRIDE": str(max(1, int(100 * _CLAUDE_ROOM * place.context / window))),
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(place.output),
            "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # a line before the prompt that changes with the user's words
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
        unset=(
            "ANTHROPIC_API_KEY",
            "ANTHROPIC_SMALL_FAST_MODEL",  # the old name of the model for small tasks, which goes first
            "CLAUDE_CODE_USE_BEDROCK",
            "CLAUDE_CODE_USE_VERTEX",
            "CLAUDE_CODE_USE_FOUNDRY",
        ),
    )


def _opencode(place: Place, variable: str = "OPENCODE_CONFIG_CONTENT") -> Settings:
    limits = {"context": place.context, "output": place.output}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": PROVIDER,
        "options": {"baseURL": f"{place.url}/v1", "apiKey": f"{{env:{TOKEN}}}"},
        "models": {place.model: {"name": place.model, "limit": limits, "tool_call": True}},
    }
    name = f"{PROVIDER}/{place.model}"
    content = {"provider": {PROVIDER: provider}, "model": name, "small_model": name}
    return Settings({TOKEN: place.token, variable: json.dumps(content)})


def _kilo(place: Place) -> Settings:
    return _opencode(place, "KILO_CONFIG_CONTENT")  # it is made of opencode


def _qwen(place: Place) -> Settings:
    model = {"name": place.model, "generationConfig": {"contextWindowSize": place.context}}
    settings = {"model": model, "security": {"auth": {"selectedType": "openai"}}}
    return Settings(
        {
            "OPENAI_BASE_URL": f"{place.url}/v1",
            "OPENAI_API_KEY": place.token,
            "OPENAI_MODEL": place.model,
            "QWEN_CODE_SYSTEM_SETTINGS_PATH": place.file("settings.json"),
        },
        ["--auth-type", "openai"],
        {"settings.json": _json(settings)},
    )


def _aider(place: Place) -> Settings:
    name = f"openai/{place.model}"
    entry = {
        "max_input_tokens": place.context,
        **dict.fromkeys(("max_tokens", "max_output_tokens"), place.output),
        **dict.fromkeys(("input_cost_per_token", "output_cost_per_token"), 0),
        "litellm_provider": "openai",
        "mode": "chat",
    }
    return Settings(
        {
            "OPENAI_API_BASE": f"{place.url}/v1",
            "OPENAI_API_KEY": place.token,
            **dict.fromkeys(("AIDER_MODEL", "AIDER_WEAK_MODEL"), name),
            "AIDER_MODEL_METADATA_FILE": place.file("models.json"),
        },
        files={"models.json": _json({name: entry})},
    )


def _crush(place: Place) -> Settings:
    limits = {"context_window": place.context, "default_max_tokens": place.output}
    provider = {
        "type": "openai-compat",
        "name": PROVIDER,
        "base_url": f"{place.url}/v1",
        "api_key": f"${TOKEN}",
        "models": [{"id": place.model, "name": place.model, **limits}],
    }
    chosen = {"model": place.model, "provider": PROVIDER}
    content = {"providers": {PROVIDER: provider}, "models": {"large": chosen, "small": chosen}}
    variables = {TOKEN: place.token, "CRUSH_GLOBAL_CONFIG": str(place.folder)}
    return Settings(variables, files={"crush.json": _json(content)})


def _goose(place: Place) -> Settings:
    return Settings(
        {
            "GOOSE_PROVIDER": "openai",
            "GOOSE_MODEL": place.model,
            "GOOSE_CONTEXT_LIMIT": str(place.context),
            "OPENAI_HOST": place.url,
            "OPENAI_BASE_PATH": "v1/chat/completions",
            "OPENAI_API_KEY": place.token,
        },
        unset=("OPENAI_BASE_URL",),
    )


_CLINE_PROVIDER = "openai-compatible"


def _cline(place: Place) -> Settings:
    settings = {
        "provider": _CLINE_PROVIDER,
        "model": place.model,
        "baseUrl": f"{place.url}/v1",
        "contextWindow": place.context,
        "maxTokens": place.output,
    }
    entry = {"settings": settings, "updatedAt": "2026-01-01T00:00:00.000Z", "tokenSource": "manual"}
    stored = {"version": 1, "lastUsedProvider": _CLINE_PROVIDER, "modes": {}, "providers": {_CLINE_PROVIDER: entry}}
    return Settings(
        {
            "OPENAI_API_KEY": place.token,
            "CLINE_PROVIDER_SETTINGS_PATH": place.file("providers.json"),
            "CLINE_SESSION_BACKEND_MODE": "local",  # a hub in the background would keep the door of its first session
        },
        ["--provider", _CLINE_PROVIDER, "--model", place.model],
        {"providers.json": _json(stored)},
    )


def _continue(place: Place) -> Settings:
    model = {
        "name": place.model,
        "provider": "openai",
        "model": place.model,
        "apiBase": f"{place.url}/v1",
        "apiKey": f"${{{{ secrets.{TOKEN} }}}}",
        "roles": ["chat", "edit", "apply"],
        "capabilities": ["tool_use"],
        "defaultCompletionOptions": {"contextLength": place.context, "maxTokens": place.output},
    }
    content = {"name": PROVIDER, "version": "1.0.0", "schema": "v1", "models": [model]}
    # JSON is also YAML.
    return Settings({TOKEN: place.token}, ["--config", place.file("config.yaml")], {"config.yaml": _json(content)})


def _pi(place: Place) -> Settings:
    model = {
        "id": place.model,
        "name": place.model,
        "reasoning": False,
        "input": ["text"],
        "cost": dict.fromkeys(("input", "output", "cacheRead", "cacheWrite"), 0),
        "contextWindow": place.context,
        "maxTokens": place.output,
    }
    provider = {
        "name": PROVIDER,
        "baseUrl": f"{place.url}/v1",
        "api": "openai-completions",
        "models": [model],
    }
    # Versions differ in whether a key of the settings is the name of a variable, so the extension reads it itself.
    code = (
        f"const provider = {json.dumps(provider, indent=2)};\n"
        f"provider.apiKey = process.env.{TOKEN};\n"
        f"export default (pi) => pi.registerProvider({json.dumps(PROVIDER)}, provider);\n"
    )
    arguments = ["--extension", place.file("provider.js"), "--provider", PROVIDER, "--model", place.model]
    return Settings({TOKEN: place.token}, arguments, {"provider.js": code})


def _copilot(place: Place) -> Settings:
    return Settings(
        {
            "COPILOT_PROVIDER_BASE_URL": f"{place.url}/v1",
            "COPILOT_PROVIDER_API_KEY": place.token,
            "COPILOT_PROVIDER_TYPE": "openai",
            "COPILOT_PROVIDER_WIRE_API": "responses",  # by the other APIs it asks for temperature 0
            "COPILOT_PROVIDER_TRANSPORT": "http",
            "COPILOT_MODEL": place.model,
            "COPILOT_PROVIDER_MAX_PROMPT_TOKENS": str(max(1, place.context - place.output)),
            "COPILOT_PROVIDER_MAX_OUTPUT_TOKENS": str(place.output),
        },
        unset=(
            "COPILOT_PROVIDER_API_KEY_COMMAND",
            "COPILOT_PROVIDER_BEARER_TOKEN",
            "COPILOT_PROVIDER_HEADERS",
            "COPILOT_PROVIDER_MODEL_ID",
            "COPILOT_PROVIDER_WIRE_MODEL",
        ),
    )


TOOLS: Mapping[str, Tool] = {
    "codex": Tool("Codex", "codex", "npm install -g @openai/codex", _codex),
    "claude": Tool("Claude Code", "claude", "npm install -g @anthropic-ai/claude-code", _claude),
    "opencode": Tool("opencode", "opencode", "npm install -g opencode-ai", _opencode),
    "qwen": Tool("Qwen Code", "qwen", "npm install -g @qwen-code/qwen-code", _qwen),
    "kilo": Tool("Kilo Code", "kilo", "npm install -g @kilocode/cli", _kilo),
    "cline": Tool("Cline", "cline", "npm install -g cline", _cline),
    "continue": Tool("Continue", "cn", "npm install -g @continuedev/cli", _continue),
    "pi": Tool("pi", "pi", "npm install -g @earendil-works/pi-coding-agent", _pi),
    "copilot": Tool("Copilot CLI", "copilot", "npm install -g @github/copilot", _copilot),
    "aider": Tool("aider", "aider", "uv tool install aider-chat", _aider),
    "crush": Tool("Crush", "crush", "npm install -g @charmland/crush", _crush),
    "goose": Tool("goose", "goose", "brew install block-goose-cli", _goose, ("session",)),
}
"""Every tool, by the name that `mlx-sidecar launch` takes."""


def environment(settings: Settings, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a tool. A proxy of the user's is not asked for what is on this machine."""
    kept = {name: value for name, value in inherited.items() if name not in settings.unset}
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [one for one in kept.get(name, "").split(",") if one]
        kept[name] = ",".join([*hosts, *([] if LOOPBACK in hosts else [LOOPBACK])])
    return {**kept, **settings.environment}
