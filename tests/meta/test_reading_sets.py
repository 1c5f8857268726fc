"""The code answers three questions of a newcomer in few files, and files, functions and names stay short."""

from __future__ import annotations

from statistics import median

import pytest

from tools import reading_sets
from tools.reading_sets import QUESTIONS, file_lengths, files, function_lengths, functions, mistakes, p90, root_files

GENERATE, BLOCK, EVICTION = QUESTIONS


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_step_is_named_by_a_step_before(question: str) -> None:
    """A list that the code has left behind would count nothing."""
    assert mistakes(question) == []


def test_path_of_generate_gets_no_longer() -> None:
    """Through two processes, a lookup by content, and templates; mini-sglang takes about 15 and 20."""
    assert len(files(GENERATE)) <= 28
    assert len(functions(GENERATE)) <= 42


def test_prefix_block_takes_14_files() -> None:
    """From a computed chunk to the trie and back into a cache, full attention only."""
    assert len(files(BLOCK)) <= 14


def test_model_eviction_takes_8_files() -> None:
    """All triggers but Invalidate."""
    assert len(files(EVICTION)) <= 8


def test_few_files_lie_at_the_roots() -> None:
    """A folder is read faster than a list."""
    assert root_files("daemon") <= 3
    assert root_files("daemon/engine") <= 10


def test_requests_and_threads_are_not_persons() -> None:
    """The subject of a sentence is the thing; see CONTRIBUTING."""
    words = reading_sets.persons()
    assert sum(words.values()) <= 10, words


def test_median_test_name_has_45_characters() -> None:
    """Longer names are read less, and searched for in vain."""
    assert median(map(len, reading_sets.test_names())) <= 45


def test_longest_file_has_350_lines() -> None:
    """A longer one has two subjects."""
    assert max(file_lengths().values()) <= 350


def test_functions_fit_a_screen() -> None:
    """Nine of ten; signature and docstring included."""
    assert p90(function_lengths()) <= 18
