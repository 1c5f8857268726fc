"""Reasoning ends at its budget: the answer follows, in its form if it has one, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Harness
from tests.unit.engine.marked_calls import FIRST, _model, request

__all__ = ["_model"]

THINKING = ["<think>", "</think>"]
OPENED = "{{ '<think>\n' }}"


@pytest.mark.parametrize("budget", [0, 1, 7, 40])
def test_reasoning_ends_at_its_budget(harness: Harness, model: Callable[..., str], budget: int) -> None:
    """Up to there the tokens are those of a request without one, and the answer follows."""
    path = model(THINKING, "", opened=OPENED)
    fields = {"chat": {"tools": []}, "max_tokens": 60}
    never = {"sampling": {"logit_bias": {FIRST + 1: -100.0, 2: -100.0}}}
    free = harness.run(request(path, **fields, **never))
    kept = harness.run(request(path, **fields, **never, reasoning_budget=budget))
    assert kept.ids[: budget + 1] == [*free.ids[:budget], FIRST + 1]
    assert kept.finished.usage.reasoning_tokens == budget + 1
    assert kept.text
    assert free.finished.usage.reasoning_tokens == 60


def test_reasoning_that_the_model_opens_has_a_budget(harness: Harness, model: Callable[..., str]) -> None:
    path = model(THINKING, "")
    bias = {"logit_bias": {FIRST: 60.0, FIRST + 1: -100.0, 2: -100.0}}
    fields = {"chat": {"tools": []}, "max_tokens": 30}
    answer = harness.run(request(path, **fields, sampling=bias, reasoning_budget=5))
    assert answer.ids[0] == FIRST
    assert answer.ids.index(FIRST + 1) == 6


def test_reasoning_budget_holds_before_a_form(harness: Harness, model: Callable[..., str]) -> None:
    path = model(THINKING, "", opened=OPENED)
    chat: dict[str, Any] = {"tools": []}
    form = pb.ResponseFormat(regex="[0-9]{3}")
    never = {"logit_bias": {FIRST + 1: -100.0}}
    answer = harness.run(request(path, chat=chat, sampling=never, response_format=form, reasoning_budget=9))
    assert answer.ids[9] == FIRST + 1
    assert len(answer.text) == 3
    assert answer.text.isdecimal()


def test_budget_needs_a_model_that_reasons(harness: Harness, model: Callable[..., str]) -> None:
    answer = harness.run(request(model([], ""), chat={"tools": []}, reasoning_budget=5))
    assert answer.failure.field == "reasoning_budget"
