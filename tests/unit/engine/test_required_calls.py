"""Required tool calls: for any weights, the answer is calls with arguments that the schemas of the tools allow."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.cache.resolver import Resolver, Wanted
from daemon.engine.output.notations.detection import HARMONY_MARKS as MARKS
from daemon.engine.prompt.chat_templates import Templates
from daemon.engine.prompt.preparation import callable_tools
from daemon.engine.prompt.tokenizers import Tokenizers
from daemon.engine.structured_output.required_calls import required_calls
from daemon.shared.errors import SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import marked_model
from tests.unit.engine.harness import Answer, Harness
from tests.unit.engine.marked_calls import HERMES
from tests.unit.engine.schemas import SCHEMAS, objects

NOTATIONS: dict[str, tuple[dict[str, bool], str]] = {
    "json in tags": HERMES,
    "json in tags that are no tokens": ({}, "<tool_call> tool_call.name"),
    "elements": ({}, '<function name=" <param name="'),
    "headers": ({"[TOOL_CALLS]": True, "[ARGS]": True}, "[TOOL_CALLS]"),
    "a list": ({"[TOOL_CALLS]": True}, "[TOOL_CALLS]"),
    "a section": (
        {
            "<|tool_calls_section_begin|>": True, "<|tool_calls_section_end|>": True, "<|tool_call_begin|>": True,
            "<|tool_call_argument_begin|>": True, "<|tool_call_end|>": True,
        },
        "<|tool_calls_section_begin|>",
    ),
    "blocks of another version": ({"｜DSML｜": True}, "｜DSML｜ tool_calls>"),
    "lines of Python": ({"<function_calls>": True, "</function_calls>": True}, "<functions> <function_calls>"),
    "fences in tags": ({"<tool_calls>": True}, "<tool_calls><tool_call> ```json"),
    "messages with headers": (dict.fromkeys(MARKS, True), ""),
}  # fmt: skip
"""Marks of models, and the text by which mlx-lm recognises their templates."""

PAINT = {
    "type": ["object", "null"],
    "properties": {"color": {"enum": ["red", "blue"]}, "coats": {"$ref": "#/$defs/few"}},
    "required": ["color", "coats"],
    "additionalProperties": False,
    "$defs": {"few": {"type": "integer", "minimum": 1, "maximum": 9}},
}
TOOLS = [pb.Tool(name="paint", parameters_json=json.dumps(PAINT)), pb.Tool(name="go_home")]
SCHEMA_OF = {"paint": PAINT, "go_home": {"const": {}}}


@pytest.fixture(name="model")
def _model(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a model of a notation."""

    def write(marks: dict[str, bool], known_by: str, opened: str = "") -> str:
        return str(marked_model(tmp_path, marks, f"{{# {known_by} #}}{opened}"))

    return write


def ask(
    harness: Harness, model: str, *, sampling: dict[str, Any] | None = None, most: int = 600, **fields: Any
) -> Answer:
    """Ask a model for calls."""
    given = {"tools": TOOLS, "tool_choice": pb.TOOL_CHOICE_REQUIRED, **fields}
    if given["tool_choice"] == pb.TOOL_CHOICE_REQUIRED:
        given = {"enable_thinking": False, **given}
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hello")], **given)
    return harness.run(
        pb.GenerateRequest(model=model, chat=chat, max_tokens=most, sampling=pb.Sampling(**sampling or {}))
    )


def calls_of(answer: Answer) -> list[tuple[str, Any]]:
    """Return the calls of an answer; fail if it has other text."""
    assert answer.finished.reason == pb.FINISH_REASON_TOOL_CALLS, (answer.failure, answer.text)
    assert not answer.text.strip("\n")
    deltas = [event.generate.delta for event in answer.events if event.generate.HasField("delta")]
    calls = [(call.name, json.loads(call.arguments_json)) for delta in deltas for call in delta.tool_calls]
    assert calls
    return calls


@pytest.mark.parametrize("name", NOTATIONS)
def test_required_tool_answer_is_only_tool_calls(harness: Harness, model: Callable[..., str], name: str) -> None:
    """This holds in every notation, for a model that was trained with none."""
    path = model(*NOTATIONS[name])
    for seed in range(2):
        for tool, arguments in calls_of(ask(harness, path, sampling={"temperature": 2.0, "seed": seed})):
            jsonschema.validate(arguments, SCHEMA_OF[tool])


@pytest.mark.parametrize("name", NOTATIONS)
def test_a_required_tool_is_called_once(harness: Harness, model: Callable[..., str], name: str) -> None:
    """The request has another tool, and a bias against the end of the sequence."""
    path = model(*NOTATIONS[name])
    sampling = {"temperature": 2.0, "seed": 1, "logit_bias": {2: -100.0}}
    ((tool, arguments),) = calls_of(ask(harness, path, required_tool="paint", sampling=sampling))
    assert tool == "paint"
    jsonschema.validate(arguments, PAINT)


def test_only_allowed_tools_are_required(harness: Harness, model: Callable[..., str]) -> None:
    """Any number of calls of them."""
    path = model(*HERMES)
    for only in ("paint", "go_home"):
        answer = ask(harness, path, allowed_tools=[only], sampling={"temperature": 2.0, "seed": 1})
        assert {tool for tool, _ in calls_of(answer)} == {only}


@pytest.fixture(name="shared", scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Harness, str]]:
    """Return one engine and one model for all examples."""
    marks, known_by = HERMES
    path = marked_model(tmp_path_factory.mktemp("models"), marks, f"{{# {known_by} #}}")
    harness = Harness(state_dir=tmp_path_factory.mktemp("state"))
    yield harness, str(path)
    harness.close()


@settings(max_examples=10)
@given(objects(SCHEMAS), st.sampled_from([0.0, 1.0, 20.0]), st.integers(0, 2**64 - 1))
def test_required_call_arguments_match_any_schema(
    shared: tuple[Harness, str], schema: dict[str, Any], temperature: float, seed: int
) -> None:
    """This holds for any temperature and seed."""
    harness, model = shared
    sent = json.dumps({**schema, "x-guidance": {"whitespace_pattern": " ?"}})
    tools = [pb.Tool(name="t", parameters_json=sent)]
    sampling = {"temperature": temperature, **({"seed": seed} if temperature else {})}
    answer = ask(harness, model, tools=tools, required_tool="t", sampling=sampling)
    ((_, arguments),) = calls_of(answer)
    jsonschema.validate(arguments, schema)


def test_gpt_oss_reasons_before_a_required_call(harness: Harness, model: Callable[..., str]) -> None:
    """The reasoning is a message, and the call is the next message."""
    path = model(*NOTATIONS["messages with headers"])
    end = 737 + MARKS.index("<|end|>")
    sampling = {"temperature": 1.0, "seed": 4, "logit_bias": {end: 4.0}}
    answer = ask(harness, path, enable_thinking=None, sampling=sampling)
    assert len(calls_of(answer)) == 1
    assert any(event.generate.delta.reasoning for event in answer.events)


def test_model_may_reason_before_a_required_call(harness: Harness, model: Callable[..., str]) -> None:
    """The reasoning has no form, and a field of its own."""
    path = model(*HERMES, "{{ '<think>\n' }}")
    answer = ask(
        harness, path, enable_thinking=None, sampling={"temperature": 1.0, "seed": 4, "logit_bias": {738: 4.0}}
    )
    assert calls_of(answer)
    assert any(event.generate.delta.reasoning for event in answer.events)


MANY = json.dumps({"properties": {f"p{number}": {} for number in range(200)}})
"""A schema that is not too much alone."""

REFUSED: dict[str, tuple[str, list[pb.Tool]]] = {
    "a name that its notation cannot hold": ("chat.tools[1].name", [*TOOLS[:1], pb.Tool(name="go [home]")]),
    "arguments that are no object": (
        "chat.tools[1].parameters_json", [*TOOLS[:1], pb.Tool(name="t", parameters_json='{"type": "string"}')]
    ),
    "a keyword that cannot be kept to": (
        "chat.tools[2].parameters_json", [*TOOLS, pb.Tool(name="t", parameters_json='{"not": {"required": ["a"]}}')]
    ),
    "a schema that takes too much work": (
        "chat.tools[0].parameters_json",
        [pb.Tool(name="t", parameters_json='{"properties": {"a": {"multipleOf": 1000003}}}'), *TOOLS],
    ),
    "tools that together take too much work": (
        "chat.tools", [pb.Tool(name=f"t{number}", parameters_json=MANY) for number in range(80)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_tool_schema_names_its_field(model: Callable[..., str], name: str) -> None:
    """The refusal comes before the model runs."""
    field, tools = REFUSED[name]
    source = Resolver([]).resolve(Wanted(model(*NOTATIONS["headers"])))
    tokenizer = Tokenizers(Templates(time.monotonic)).get(source)  # without a template, its worker is not started
    with pytest.raises(SidecarError) as caught:
        required_calls(callable_tools(pb.Chat(tools=tools)), tokenizer.markup, tokenizer.vocabulary)
    assert (caught.value.reason, caught.value.field) == ("INVALID_ARGUMENT", field), caught.value.message


def test_required_call_needs_a_known_notation(harness: Harness, model: Callable[..., str]) -> None:
    """NONE works with every model."""
    path = model({}, "")
    assert ask(harness, path).failure.field == "chat.tool_choice"
    assert ask(harness, path, tool_choice=pb.TOOL_CHOICE_NONE, most=2).finished.usage.completion_tokens


def test_forbidden_tools_are_not_in_the_prompt(harness: Harness) -> None:
    """The prompt equals that of a request without tools, so they share a prefix."""

    def prompt(choice: pb.ToolChoice, tools: list[pb.Tool]) -> int:
        return ask(harness, "embedded", most=1, tool_choice=choice, tools=tools).finished.usage.prompt_tokens

    without = prompt(pb.TOOL_CHOICE_NONE, [])
    assert prompt(pb.TOOL_CHOICE_NONE, TOOLS) == without < prompt(pb.TOOL_CHOICE_AUTO, TOOLS)
