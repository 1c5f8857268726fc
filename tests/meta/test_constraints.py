"""The libraries that were tested: written down as the tests run with them, and used by every installation."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import constraints

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = (constraints.RUN, constraints.DEVELOP)
PINS = {name: pin for path in FILES for name, pin in constraints.pins(path.read_text()).items()}


def named() -> list[Requirement]:
    """Return what pyproject.toml asks for; the fuzzer is left out, which has no wheel for every system."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    asked = [
        *PROJECT["tool"]["hatch"]["metadata"]["hooks"]["custom"]["dependencies"],
        *PROJECT["dependency-groups"]["dev"],
    ]
    return [Requirement(one) for one in [*asked, *(one for extra in extras for one in extra)]]


def test_installed_libraries_match_the_pinned_versions() -> None:
    """Otherwise the files would tell of another environment. `python -m tools.constraints` writes them."""
    others = {}
    for name, pin in PINS.items():
        try:
            here = version(name)
        except PackageNotFoundError:
            continue  # of another system, or of another version of Python
        if here != pin:
            others[name] = (here, pin)
    assert not others, "installed, written down"
    assert len(PINS) > 100


@pytest.mark.parametrize("requirement", named(), ids=str)
def test_every_dependency_has_a_tested_version(requirement: Requirement) -> None:
    """A bound of pyproject.toml that was moved without the file would make an installation impossible."""
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_both_systems_get_the_same_mlx() -> None:
    """Each has a half of its own beside it."""
    assert len({PINS[name] for name in ("mlx", "mlx-cpu", "mlx-metal")}) == 1


def test_constraint_files_hold_only_names_and_versions() -> None:
    """No index, no host, no path: where packages come from is each environment's own choice."""
    for path in FILES:
        for line in path.read_text().splitlines():
            assert re.fullmatch(r"#.*|-c \.\./daemon/constraints\.txt|[a-z0-9-]+==[0-9][a-z0-9.]*", line), line
        assert "://" not in path.read_text()


def test_malformed_pin_is_refused() -> None:
    """A line that was mended by hand is no reason to test with something unknown."""
    assert constraints.pins("# about\n-c other.txt\na-b==1.0\n") == {"a-b": "1.0"}
    with pytest.raises(ValueError, match="is not name==version"):
        constraints.pins("a>=1\n")


@pytest.mark.parametrize("page", ["README.md", "launchd/README.md", "docs/linux.md", "docs/upkeep.md"])
def test_documented_installs_use_the_tested_libraries(page: str) -> None:
    """So that the doctor is silent after it."""
    text = (ROOT / page).read_text()
    lines = re.findall(r"^.*\b(?:uv tool|pipx) install\b.*$", text, re.MULTILINE)
    assert lines
    assert not [line for line in lines if "daemon/constraints.txt" not in line]


def test_make_and_the_formula_use_the_tested_libraries() -> None:
    """CI runs `make test`, which makes its environment with make_venv."""
    make_venv = (ROOT / "tools" / "make_venv").read_text()
    installs = re.findall(r"^.*pip install\b.*--editable|^.*pip install\b.*\\\n.*--editable", make_venv, re.MULTILINE)
    assert len(installs) == 2
    assert all('--constraint "$tested"' in line for line in installs)
    assert 'buildpath/"daemon/constraints.txt"' in (ROOT / "launchd" / "mlx-sidecar.rb").read_text()
