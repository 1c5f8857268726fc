"""A release is refused unless tag, version and changelog agree; the formula is filled in from its sdist."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from daemon import __version__
from tools.release import FORMULA, changes, formula

TAG = f"v{__version__}"
CHANGELOG = (
    f"# Changelog\n\n## [{__version__}] - 2026-12-01\n\n### Added\n\n- All.\n\n## [0.0.1] - 2026-01-01\n\n- Less.\n"
)


def test_release_notes_are_the_changelog_section() -> None:
    """Up to the next one, or the end."""
    assert changes(TAG, CHANGELOG) == "### Added\n\n- All."
    assert changes(TAG, CHANGELOG.partition("\n## [0.0.1]")[0]) == "### Added\n\n- All."


@pytest.mark.parametrize(
    ("tag", "changelog", "why"),
    [
        ("v9.9.9", CHANGELOG, "the version is"),
        (TAG, CHANGELOG.replace(f"[{__version__}]", "[Unreleased]"), "has no section"),
        (TAG, CHANGELOG.replace("2026-12-01", "soon"), "has no section"),
        (TAG, CHANGELOG.replace("### Added\n\n- All.", ""), "has no section"),
    ],
)
def test_unready_release_is_refused(tag: str, changelog: str, why: str) -> None:
    """Another tag, no section, no date, no words."""
    with pytest.raises(ValueError, match=why):
        changes(tag, changelog)


def test_the_formula_has_every_value_filled_in() -> None:
    """And its service says the same as the plist."""
    text = formula(FORMULA.read_text(), b"sdist", "https://h/x.tar.gz", "https://h")
    assert not re.search(r"@\w+@", text)
    assert f'sha256 "{hashlib.sha256(b"sdist").hexdigest()}"' in text
    assert "keep_alive successful_exit: false" in text
    assert "process_type :interactive" in text


def test_homebrew_leaves_the_libraries_of_wheels_alone() -> None:
    """It fails to rewrite names in pydantic-core, among others, and then tells that the installation failed."""
    assert "\n  preserve_rpath\n" in FORMULA.read_text()


def test_formula_makes_the_directory_of_its_logs() -> None:
    """launchd starts nothing if it cannot open them."""
    text = FORMULA.read_text()
    made = re.findall(r'\(var/"(\S+)"\)\.mkpath', text)
    assert made == [*{file.rpartition("/")[0] for file in re.findall(r'var/"(\S+\.log)"', text)}]


def test_the_changelog_has_an_unreleased_section() -> None:
    """What is being done is written down as it is done."""
    assert "## [Unreleased]" in (Path(__file__).resolve().parents[2] / "CHANGELOG.md").read_text()
