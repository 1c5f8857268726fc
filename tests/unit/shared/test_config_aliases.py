"""Aliases of the configuration: each leads to a model, and one that does not is refused by its key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.shared.config_sources import load_config
from daemon.shared.config_values import read_aliases
from tests.unit.shared.config_files import refusal, write_file


@pytest.fixture(name="home")
def _home(tmp_path: Path) -> Path:
    (tmp_path / ".mlx-sidecar").mkdir()
    return tmp_path


def test_alias_may_stand_for_another_alias(home: Path) -> None:
    """Each of them has the model that the last one stands for; names with a colon are quoted."""
    write_file(home, '[aliases]\nchat = "fast"\n"qwen3:8b" = "org/name"\nfast = "qwen3:8b"\n')

    assert load_config({}, {}, home).config.aliases == dict.fromkeys(["chat", "qwen3:8b", "fast"], "org/name")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('a = "b"\nb = "a"', "aliases.a leads back to itself"),
        ('a = "a"', "aliases.a leads back to itself"),
        ('a = "llama"', "aliases.a leads to 'llama', which is no Hub id, absolute directory, 'embedded' or alias"),
        ('"a/b" = "org/name"', "aliases.a/b is none"),
        ('embedded = "org/name"', "aliases.embedded is the name of the model that ships"),
        ("a = 3", "aliases.a leads to 3"),
    ],
)
def test_wrong_alias_is_refused_by_its_key(home: Path, table: str, words: str) -> None:
    file = write_file(home, f"[aliases]\n{table}\n")

    assert words in refusal(home)
    assert f"aliases from {file} is " in refusal(home)


@given(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([*"abcdef", "org/name", "/m", "embedded", "x", ""])))
def test_any_table_of_aliases_is_refused_or_ends(table: dict[str, str]) -> None:
    """Every name leads to a model, never to another alias; a table that is refused names its key."""
    refused, read = "", {}
    try:
        read = read_aliases(table, text=False, home=Path("/home"))
    except ValueError as error:
        refused = str(error)
    assert not refused or re.search(r"aliases\.[a-f] ", refused)
    assert refused or set(read) == set(table)
    assert set(read.values()) <= {"org/name", "/m", "embedded"}
