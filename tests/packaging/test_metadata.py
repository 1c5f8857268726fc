"""What the two distributions say of themselves: in a checkout, in a release, and on the page of an index."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

from daemon import __version__
from tools.build_dists import ROOT

HOME = "https://forge.example/someone/mlx-sidecar"
DAEMON, CLIENT = ROOT, ROOT / "clients" / "python"


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove what the shell says about builds."""
    for name in ("SIDECAR_BUILD_CLIENT_BY_NAME", "SIDECAR_BUILD_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)


def copied(place: Path) -> Path:
    """Copy what the metadata of the daemon needs, and return the place."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "clients/python/build_metadata.py"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    shutil.copytree(CLIENT / "mlx_sidecar", place / "clients/python/mlx_sidecar")
    return place


def metadata(project: Path) -> Any:
    """Return what hatchling writes about a project."""
    return ProjectMetadata(str(project), PluginManager()).core


def client_of(project: Path) -> str:
    """Return the daemon's requirement for its client."""
    (found,) = [one for one in metadata(project).dependencies if one.startswith("mlx-sidecar-client")]
    return str(found)


def test_checkout_asks_no_index_for_its_client() -> None:
    """Whatever an index has under that name."""
    assert client_of(DAEMON) == f"mlx-sidecar-client @ {CLIENT.as_uri()}"


def test_clone_of_pip_asks_for_the_client_of_its_commit(tmp_path: Path) -> None:
    """By its address: the folder is gone after the installation, and pip keeps the wheel."""
    clone = copied(tmp_path / "pip-req-build-x")
    address = "https://forge.example/someone/mlx-sidecar"
    author = ["-c", "user.name=A", "-c", "user.email=a@forge.example", "-c", "commit.gpgsign=false"]
    for command in (
        ["init", "--quiet"],
        ["remote", "add", "origin", address],
        ["add", "."],
        [*author, "commit", "--quiet", "-m", "all"],
    ):
        subprocess.run(["git", *command], cwd=clone, check=True)
    shown = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, check=True, capture_output=True, text=True)
    expected = f"mlx-sidecar-client @ git+{address}@{shown.stdout.strip()}#subdirectory=clients/python"
    assert client_of(clone) == expected


def test_release_asks_for_the_client_of_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By name: a path of the machine that built it would be refused by the index, and found nowhere."""
    monkeypatch.setenv("SIDECAR_BUILD_CLIENT_BY_NAME", "1")
    assert client_of(DAEMON) == f"mlx-sidecar-client=={__version__}"
    monkeypatch.delenv("SIDECAR_BUILD_CLIENT_BY_NAME")
    unpacked = copied(tmp_path / "unpacked")
    fields = [f"Version: {__version__}", f"Requires-Dist: mlx-sidecar-client=={__version__}"]
    fields += [f"Project-URL: Repository, {HOME}", "Description-Content-Type: text/markdown"]
    (unpacked / "PKG-INFO").write_text("\n".join(["Metadata-Version: 2.4", "Name: mlx-sidecar", *fields, "", "Text"]))
    core = metadata(unpacked)
    assert (client_of(unpacked), core.urls, core.readme.strip()) == (
        f"mlx-sidecar-client=={__version__}",
        {"Repository": HOME},
        "Text",
    )


@pytest.mark.parametrize("project", [DAEMON, CLIENT], ids=["daemon", "client"])
def test_page_of_an_index_has_absolute_links(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the files of that version, and they exist; without an address there are no links to files."""
    monkeypatch.setenv("SIDECAR_BUILD_REPOSITORY", HOME + "/")
    core = metadata(project)
    base = f"{HOME}/blob/v{__version__}/"
    links = re.findall(r"\]\(([^)\s]+)\)", core.readme)
    files = [link.removeprefix(base).partition("#")[0] for link in links if link.startswith(base)]
    assert files
    assert all((ROOT / name).exists() for name in files), files
    assert all(re.match("https://|#", link) for link in links), links
    assert {"Repository", "Documentation", "Changelog", "Issues", "Security"} == set(core.urls)

    monkeypatch.delenv("SIDECAR_BUILD_REPOSITORY")
    core = metadata(project)
    assert not core.urls
    assert all(re.match("https://|#", link) for link in re.findall(r"\]\(([^)\s]+)\)", core.readme))
