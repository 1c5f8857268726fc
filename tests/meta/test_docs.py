"""Documentation that cannot rot: what exists is documented, and what is documented exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import page
from daemon.cli import COMMANDS
from daemon.config import KEYS
from daemon.errors import Reason
from mlx_sidecar.v1 import sidecar_pb2
from tools.readme_figure import filled

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    """In the operations page."""
    assert f"`mlx-sidecar {command}" in OPERATIONS


@pytest.mark.parametrize("key", KEYS)
def test_every_configuration_key_is_documented(key: str) -> None:
    """In the operations page."""
    assert f"`{key}`" in OPERATIONS


@pytest.mark.parametrize("reason", Reason)
def test_every_error_reason_is_documented(reason: Reason) -> None:
    """In the operations page, with what to do."""
    assert f"`{reason}`" in OPERATIONS


def test_every_rpc_is_in_the_request_lifecycle() -> None:
    """And in the README."""
    rpcs = [method.name for method in sidecar_pb2.DESCRIPTOR.services_by_name["SidecarService"].methods]
    for path in (ROOT / "README.md", ROOT / "docs" / "request-lifecycle.md"):
        assert all(rpc in path.read_text() for rpc in rpcs)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    """Relative links only; the web is not asked."""
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_every_package_has_its_line_in_the_architecture() -> None:
    """One line for each module of the daemon's top level and for each package."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    names = {path.name for path in (ROOT / "daemon").glob("*.py") if path.name not in ("__init__.py", "__main__.py")}
    packages = {f"{path.parent.relative_to(ROOT)}/" for path in (ROOT / "daemon").rglob("__init__.py")} - {"daemon/"}
    missing = sorted(name for name in names | packages if f"`{name}`" not in text)
    assert not missing


def test_the_readme_quotes_the_last_benchmark() -> None:
    """`make bench` puts it there; `python -m tools.readme_figure` alone does too."""
    text = (ROOT / "README.md").read_text()
    assert filled(text) == text


def test_the_benchmark_page_shows_the_raw_figures_and_nothing_else() -> None:
    """`make bench` writes both; a table that was edited by hand, or a figure without its table, fails here."""
    text = page.PAGE.read_text()
    assert page.filled(text) == text
    _, results = page.load()
    assert all(f"<!-- figures: {name} -->" in text for name in results)


def test_every_test_that_the_prefix_cache_page_names_exists() -> None:
    """A promise without its test is none."""
    defined = set(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "prefix-cache.md").read_text()))
    assert len(named) > 30
    assert not named - defined
