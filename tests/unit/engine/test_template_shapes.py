"""A template's shape is found by rendering small conversations with it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.engine.prompt.chat_templates import Templates
from daemon.engine.prompt.template_shape import FLAGS, LEFT_OUT, SWITCHES, TemplateShape
from tests.support import chat_templates as habits
from tests.support.builders import Clock
from tests.unit.engine.template_shapes import read, shape_of

NOT_WORTH_IT = {"variables", "switch", "developer"}


def unusual(shape: TemplateShape) -> dict[str, Any]:
    """Return what differs from the usual shape."""
    usual = TemplateShape()
    names = [field.name for field in fields(shape) if field.name not in NOT_WORTH_IT]
    return {name: getattr(shape, name) for name in names if getattr(shape, name) != getattr(usual, name)}


QUIET = {"leaves_out": frozenset({"reasoning"})}


@pytest.mark.parametrize(
    ("habit", "found"),
    [
        ("ECHO", QUIET),
        ("CONCATENATES", {"text_arguments": True, **QUIET}),
        ("PRINTS", {"text_arguments": True, **QUIET}),
        ("ITERATES", QUIET),
        ("NULL_CONTENT", {"text_arguments": True, "call_content": "none", "split_turns": True, **QUIET}),
        ("CALLS_OR_TEXT", {"split_turns": True, **QUIET}),
        ("FIRST_CALL", {"leaves_out": frozenset({"reasoning", "further_calls"})}),
        ("NAMES_TOOLS", QUIET),
        ("NINE", {"short_ids": True, **QUIET}),
        ("SEEN_IDS", {"repeated_ids": False, **QUIET}),
        ("NO_TOOLS", {"leaves_out": frozenset({"calls", "answers", "reasoning"})}),
        ("ALTERNATES", {"system": False, "systems": False, "late_system": False, "user_runs": False, **QUIET}),
        ("FIRST_SYSTEM", {"systems": False, "late_system": False, "leaves_out": frozenset({"calls", "reasoning"})}),
        ("GATHERS_SYSTEMS", {"late_system": False, "leaves_out": frozenset({"calls", "reasoning"})}),
        ("DEVELOPER", {"leaves_out": frozenset({"calls", "reasoning"})}),
        ("THINKS_LAST", {"leaves_out": frozenset({"calls", "late_reasoning"})}),
        ("REASONS", {"reasoning_key": "reasoning", "leaves_out": frozenset({"calls"})}),
        ("ONE_PLACE", {"joined_reasoning": True}),
        ("BLOCKS", {"reasoning_key": "content"}),
        ("ONLY_TOOLS", QUIET),
        ("FORGETS_REASONING", {"systems": False, "late_system": False, "leaves_out": frozenset({"old_reasoning"})}),
        ("FORGETS_TEXT", {"leaves_out": frozenset({"reasoning", "old_text_beside_calls"})}),
        ("PLANS", {"split_turns": True, "leaves_out": frozenset({"reasoning_of_split"})}),
    ],
)
def test_habit_of_a_template_is_found(habit: str, found: dict[str, Any]) -> None:
    assert unusual(shape_of(getattr(habits, habit))) == found


def test_developer_needs_a_meaning_in_the_template() -> None:
    """A template that writes any role as it is has none: its model was trained on `system`."""
    assert shape_of(habits.DEVELOPER).developer
    assert not shape_of(habits.ECHO).developer
    assert not shape_of(habits.FIRST_SYSTEM).developer


def test_template_that_refuses_everything_has_the_usual_shape() -> None:
    assert unusual(shape_of("{{ raise_exception('no') }}")) == {}
    assert unusual(shape_of("{{ messages[7].content + 1 }}")) == {}


@given(tries=st.integers(0, 25), habit=st.sampled_from(["ECHO", "NULL_CONTENT", "ALTERNATES", "ONE_PLACE", "NO_TOOLS"]))
def test_probe_that_runs_out_of_time_claims_nothing(tries: int, habit: str) -> None:
    """What was not tried is taken as usual: nothing is said to be left out that the whole probe finds written."""
    template = getattr(habits, habit)
    whole, cut = shape_of(template), shape_of(template, tries)
    assert cut.leaves_out <= whole.leaves_out
    assert {"system", "systems", "late_system", "user_runs"} & set(unusual(cut)) <= set(unusual(whole))


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("{% if thinking is defined and thinking %}x{% endif %}", {"thinking"}),
        ("{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ thinking }}", {"thinking"}),
        ("{% set thinking = thinking | default(true) %}{{ thinking }}", {"thinking"}),
        ("{% macro f(a) %}{{ a ~ date }}{% endmacro %}{{ f(1) }}", {"date"}),
        ("{% for m in messages %}{% if m %}{% set x = m %}{% endif %}{{ x }}{% endfor %}", {"messages"}),
        ("{{ raise_exception('a') }}{{ strftime_now('%Y') }}{% set ns = namespace(a=1) %}{{ ns.a }}", set()),
    ],
)  # fmt: skip
def test_variables_are_found_in_the_syntax_tree(template: str, names: set[str]) -> None:
    """A name that the template itself sets before it reads it is no variable that a request can set."""
    assert read(template) == names


@pytest.mark.parametrize("name", SWITCHES)
def test_switch_of_thinking_has_any_known_name(name: str) -> None:
    """One that is no flag has to show that it knows the values."""
    shows = habits.ECHO + "{% if NAME == VALUE %}{{ '<think>' }}{% endif %}".replace("NAME", name)
    assert shape_of(shows.replace("VALUE", repr(SWITCHES[name][0]))).switch == name
    flag = isinstance(SWITCHES[name][0], bool)
    assert shape_of(shows.replace("VALUE", "'other'")).switch == (name if flag else None)
    assert shape_of(habits.ECHO).switch is None
    assert shape_of(habits.FLAGGED).switch == FLAGS
    assert shape_of(habits.ECHO + "</think>").switch is None
    assert TemplateShape().switch == "enable_thinking", "code that renders is not asked what it reads"


def test_shape_survives_json() -> None:
    shape = shape_of(habits.NULL_CONTENT)
    assert TemplateShape.from_json(shape.to_json()) == shape
    assert TemplateShape.from_json(TemplateShape().to_json()) == TemplateShape()
    assert shape.leaves_out <= set(LEFT_OUT)


def test_worker_finds_a_shape_once(templates: Templates) -> None:
    """It is remembered by the template and the variables of every conversation, without which it may fail."""
    template = habits.CONCATENATES + "{{ bos_token + '' }}"
    shape = templates.shape(template, {"bos_token": "<s>"})
    assert shape.text_arguments
    assert templates.shape(template, {"bos_token": "<s>"}) is shape
    assert templates.shape(template, {}) == TemplateShape(shape.variables, None)


def test_endless_template_has_the_usual_shape() -> None:
    """Its worker is killed; the conversation is then refused by the same limit."""
    templates = Templates(Clock(), ["false"])
    assert templates.shape("{{ messages }}", {}) == TemplateShape()
    templates.close()


def test_slow_template_is_tried_for_a_while(templates: Templates) -> None:
    """Half a second of a processor, and the part of the shape that was found counts."""
    slow = "{% for a in range(6000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}" + habits.ALTERNATES
    shape = templates.shape(slow, {})
    assert shape.variables
    assert not shape.leaves_out
