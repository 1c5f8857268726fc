"""Long files begin first: the list of them, and the option that lets it decide, are those that `make test` uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import LONG

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("file", LONG)
def test_long_test_file_exists(file: str) -> None:
    """A file that was renamed would begin last again."""
    assert (ROOT / file).is_file()


def test_long_files_are_collected_first(request: pytest.FixtureRequest) -> None:
    """In their order; those that were not asked for are left out."""
    files = list(dict.fromkeys(item.nodeid.partition("::")[0] for item in request.session.items))
    long = [file for file in LONG if file in files]
    assert files[: len(long)] == long


def test_collected_order_is_kept_when_files_are_shared_out() -> None:
    assert "--dist loadfile --no-loadscope-reorder" in (ROOT / "Makefile").read_text("utf-8")
