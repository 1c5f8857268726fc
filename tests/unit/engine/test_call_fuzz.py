"""Answers of random calls in each notation are read as they were written, and nothing of broken ones is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.answer_checks import Read, markup_of, read
from tests.support.call_writer import HANDS, Answer, answers


@pytest.mark.parametrize("name", HANDS)
def test_written_calls_are_read_as_they_were_written(name: str) -> None:
    marks = markup_of(HANDS[name])

    @settings(max_examples=40)
    @given(answers(HANDS[name]))
    def check(answer: Answer) -> None:
        found = read(marks, answer.tools, [answer.written], opened=answer.opened)
        expected = [(call.name, dict(call.arguments)) for call in answer.calls]
        assert [(call.name, json.loads(call.arguments_json)) for call in found.calls] == expected
        assert (found.reasoning, found.text) == (answer.reasoning, answer.text)

    check()
