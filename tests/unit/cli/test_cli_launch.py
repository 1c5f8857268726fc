"""`launch`: which model, the question before a fetch, and what `--print` shows."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.cli import exit_codes
from daemon.cli.commands import launch
from daemon.launch.tools import TOOLS
from mlx_sidecar import ModelNotCached
from tests.unit.cli.cli_fakes import (  # noqa: F401
    GIB,
    INFO,
    LISTED,
    MODEL_STATS,
    STATS,
    FakeClient,
    FakeStream,
    client_fixture,
    pretend_terminal,
    run_cli,
)


@pytest.fixture(name="roomy", autouse=True)
def _roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the fake daemon memory for more than its model's context."""
    memory = replace(STATS.memory, limit_bytes=64 * GIB)
    monkeypatch.setattr("tests.unit.cli.cli_fakes.STATS", replace(STATS, memory=memory))


class NotFetched(FakeClient):
    """A daemon whose model is not on this machine yet."""

    def get_or_load(self, model: str, **options: Any) -> FakeStream:
        self._note("get_or_load", model, **options)
        if options.get("estimate_only") or options["allow_download"]:
            return FakeStream([], self.info)
        raise ModelNotCached("not here")


@pytest.fixture(name="launched")
def _launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """Return what was started instead of a tool. A program of each tool is installed."""
    started: list[tuple[Any, ...]] = []
    monkeypatch.setattr(launch, "_become", lambda session, *what: started.append(what))
    for tool in TOOLS.values():
        program = tmp_path / "bin" / tool.program
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return started


def test_launch_takes_the_model_used_last(client: FakeClient, launched: list[tuple[Any, ...]]) -> None:
    """And passes on the tool's own arguments."""
    result = run_cli(client, "launch", "codex", "--", "exec", "--json", "Hi")
    assert result.exit_code == 0, result.stderr
    ((tool, program, model, context, arguments),) = launched
    assert (tool.title, model, arguments) == ("Codex", "org/name", ("exec", "--json", "Hi"))
    assert program.endswith("/codex")
    assert context == INFO.context_length


@pytest.mark.parametrize("can", [{"embeddings": True}, {"chat": False}])
def test_launch_passes_over_models_that_do_not_chat(
    client: FakeClient, launched: list[tuple[Any, ...]], can: dict[str, bool]
) -> None:
    """An index that is made beside the tool keeps its model in use all the time."""
    vectors = replace(LISTED, model="org/vectors", aliases=(), can=replace(LISTED.can, **can))
    client.listed = replace(client.listed, models=(vectors, LISTED))
    busy = replace(MODEL_STATS, info=replace(INFO, model="org/vectors"), in_use=1, idle=None)
    client.state = replace(client.state, models=(busy, MODEL_STATS))
    assert run_cli(client, "launch", "codex").exit_code == 0
    assert [model for _, _, model, *_ in launched] == ["org/name"]
    assert [one[1] for one in client.calls if one[0] == "get_or_load"] == [("org/name",)]
    client.state = replace(client.state, models=(busy,))
    result = run_cli(client, "launch", "codex")
    assert (result.exit_code, "--model" in result.stderr) == (exit_codes.USAGE, True)


def test_launch_needs_memory_for_a_prompt(client: FakeClient, launched: list[tuple[Any, ...]]) -> None:
    """A tool cannot work with a context of nothing."""
    client.info = replace(INFO, max_request_tokens=0)
    result = run_cli(client, "launch", "codex")
    assert (result.exit_code, launched) == (exit_codes.REFUSED, [])
    assert "no memory for a prompt" in result.stderr


def test_launch_without_a_model_in_memory_asks_for_one(client: FakeClient, launched: list[tuple[Any, ...]]) -> None:
    """There is none to take."""
    client.state = replace(client.state, models=())
    result = run_cli(client, "launch", "codex")
    assert (result.exit_code, launched) == (exit_codes.USAGE, [])
    assert "--model" in result.stderr


def test_a_tool_without_arguments_may_need_some(client: FakeClient, launched: list[tuple[Any, ...]]) -> None:
    """goose alone prints its help; a session is meant."""
    run_cli(client, "launch", "goose")
    run_cli(client, "launch", "goose", "--", "run")
    assert [what[-1] for what in launched] == [("session",), ("run",)]


def test_a_fetch_is_asked_for(launched: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the size; no means that nothing is fetched and nothing started."""
    pretend_terminal(monkeypatch, "stdin", "stderr")
    for answer, fetched in (("n", False), ("y", True)):
        client = NotFetched()
        result = run_cli(client, "launch", "claude", "--model", "org/name", stdin=answer)
        assert "org/name is not on this machine. Fetch 3.0 GiB?" in result.stderr
        assert (result.exit_code == 0, bool(launched)) == (fetched, fetched)
        assert any(options["allow_download"] for _, options in client.called("get_or_load")) == fetched


def test_scripts_are_not_asked(launched: list[tuple[Any, ...]]) -> None:
    """They are told the command that fetches."""
    result = run_cli(NotFetched(), "launch", "claude", "--model", "org/name")
    assert (result.exit_code, launched) == (exit_codes.REFUSED, [])
    assert "mlx-sidecar pull org/name" in result.stderr


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_that_is_not_installed_is_told_how(
    client: FakeClient, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one sentence, before a model is loaded."""
    monkeypatch.setenv("PATH", "/nowhere")
    result = run_cli(client, "launch", tool)
    assert result.exit_code == exit_codes.REFUSED
    assert (
        result.stderr == f"mlx-sidecar: {TOOLS[tool].title} is not installed; install it with: {TOOLS[tool].install}\n"
    )
    assert client.calls == []


@pytest.mark.parametrize("tool", TOOLS)
def test_print_shows_what_a_launch_would_do(client: FakeClient, tool: str, launched: list[tuple[Any, ...]]) -> None:
    """As lines of a shell; nothing is loaded or started, and the tool need not be there."""
    result = run_cli(client, "launch", tool, "--print", "--", "a b")
    assert (result.exit_code, launched) == (0, [])
    lines = result.stdout.splitlines()
    assert shlex.split(lines[-1])[0] == TOOLS[tool].program
    assert shlex.split(lines[-1])[-1] == "a b"
    assert all(line.startswith(("# ", "#   ", "export ", "unset ")) for line in lines[:-1])
    assert "TOKEN" in result.stdout
    assert "127.0.0.1:PORT" in result.stdout
    assert [options["estimate_only"] for _, options in client.called("get_or_load")] == [True]


def test_launch_that_fails_leaves_no_folder(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever it fails by, such as a configuration that is read only then."""
    folders = tmp_path / "temporary"
    folders.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folders))
    monkeypatch.setattr(shutil, "which", lambda _: "/nowhere/codex")
    config = tmp_path / ".mlx-sidecar" / "config.toml"
    config.parent.mkdir()
    config.write_text("max_models = 'x'\n")
    result = run_cli(client, "launch", "codex", "--socket", "/nowhere/s.sock")
    assert (result.exit_code, "max_models" in result.stderr) == (exit_codes.USAGE, True)
    assert list(folders.iterdir()) == []


def test_files_of_a_launch_are_kept_for_a_long_session(tmp_path: Path) -> None:
    """macOS removes what was last read more than three days ago from its temporary directories, each night."""
    launch._write(tmp_path, {"settings.json": "{}"})
    found = (tmp_path / "settings.json").stat()
    assert found.st_atime - found.st_mtime > 300 * 86_400
