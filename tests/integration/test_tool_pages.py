"""What the pages of docs/tools show agrees with the program, and runs where it can; only the model is another one."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.launch.tools import TOOLS
from daemon.shared.config_sources import load_config
from tests.support.tool_pages import PAGES, ROOT, blocks
from tests.unit.cli.cli_fakes import GIB, STATS, FakeClient, run_cli

PAGE_OF = {"claude": "claude-code.md", "qwen": "qwen-code.md"}


LAUNCHES = [
    line
    for page in PAGES
    for block in blocks(page, "sh")
    for line in block.splitlines()
    if line.startswith("mlx-sidecar launch")
]


def test_each_tool_has_its_page() -> None:
    """With the command that installs it, and two that start it."""
    for name, tool in TOOLS.items():
        page = PAGES[PAGE_OF.get(name, f"{name}.md")]
        assert f"`{tool.install}`" in page
        assert page.count(f"mlx-sidecar launch {name}") >= 2
        assert all(variable in page for variable in re.findall(r"`(MLX_SIDECAR_\w+)`", page))


def test_versions_that_were_tried_are_those_of_the_tests() -> None:
    """Of each tool that the tests run; Node is none."""
    pins = json.loads((ROOT / "tests" / "agents" / "package.json").read_text())["dependencies"]
    tried = re.findall(r"^\| \[.*\| (\S+), in the tests \|$", PAGES["README.md"], re.MULTILINE)
    of_npm = [version for name, version in pins.items() if name != "node"]
    assert sorted(tried) == sorted([*of_npm, _pinned("agents/aider.txt")["aider-chat"]])


def test_frameworks_that_were_tried_are_those_of_the_tests() -> None:
    """Each version in the table of the page is a pin."""
    pins = {**_pinned("http/frameworks_openai2.txt"), **_pinned("http/frameworks.txt")}
    rows = re.findall(r"^\| (.*) \| (.*\d\.\d.*) \| .* \|$", PAGES["frameworks.md"], re.MULTILINE)
    assert rows
    for title, tried in rows:
        for name, version in re.findall(r"(?:`([\w-]+)` )?(\d+(?:\.\d+)+)", tried):
            assert pins[name or title] == version


def _pinned(file: str) -> dict[str, str]:
    lines = (ROOT / "tests" / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("line", dict.fromkeys(LAUNCHES))
def test_launches_of_the_pages_are_understood(line: str) -> None:
    """Shown instead of started: the tools are not here."""
    words = shlex.split(line)[1:]
    given = words.index("--") if "--" in words else len(words)
    shows = [] if "--print" in words else ["--print"]
    client = FakeClient()
    client.state = replace(STATS, memory=replace(STATS.memory, limit_bytes=64 * GIB))
    done = run_cli(client, *words[:given], *shows, *words[given:])
    assert done.exit_code == 0, done.stderr
    shown = shlex.split(done.stdout.splitlines()[-1])
    assert shown[0] == TOOLS[words[1]].program
    assert shown[len(shown) - len(words[given + 1 :]) :] == words[given + 1 :]


def test_settings_of_the_pages_can_be_read(tmp_path: Path) -> None:
    """JSON is JSON, and our own configuration is accepted."""
    (zed,) = blocks("editors.md", "json")
    assert json.loads(zed)["language_models"]["openai_compatible"]["mlx-sidecar"]["available_models"]
    (ours,) = blocks("elsewhere.md", "toml")
    (tmp_path / ".mlx-sidecar").mkdir()
    (tmp_path / ".mlx-sidecar" / "config.toml").write_text(ours)
    assert load_config({}, {}, tmp_path).config.http_hosts == tuple(tomllib.loads(ours)["http_hosts"])
