"""Calls in notations that write values in their own way keep to the schema of their tool, or the caller is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from llguidance import LLTokenizer
from mlx_lm.tokenizer_utils import TokenizerWrapper

from daemon.engine.output.answer_parser import AnswerParser
from daemon.engine.output.chat_markup import ChatMarkup
from daemon.engine.output.tool_calls import Tool
from daemon.engine.structured_output.call_guard import CallGuard, call_guard
from daemon.engine.structured_output.matcher import Vocabulary
from daemon.engine.structured_output.required_calls import required_calls
from daemon.shared.errors import SidecarError
from tests.unit.engine.fake_tokenizer import FakeTokenizer

M = "]<]minimax[>["
APART: dict[str, tuple[str, str, str]] = {
    "Qwen 3 Coder": (
        "<tool_call>\n<function=",
        "<tool_call>\n<function=run>\n<parameter=a>\n",
        "\n</parameter>\n</function>\n</tool_call>",
    ),
    "Seed-OSS": (
        "<seed:tool_call>",
        "<seed:tool_call>\n<function=run>\n<parameter=a>",
        "</parameter>\n</function>\n</seed:tool_call>",
    ),
    "GLM": ("<arg_key>", "<tool_call>run\n<arg_key>a</arg_key>\n<arg_value>", "</arg_value>\n</tool_call>"),
    "Hy3": (
        "<tool_calls{}> :opensource",
        (
            "<tool_calls:opensource>\n<tool_call:opensource>run<tool_sep:opensource>\n"
            "<arg_key:opensource>a</arg_key:opensource>\n<arg_value:opensource>"
        ),
        "</arg_value:opensource>\n</tool_call:opensource>\n</tool_calls:opensource>",
    ),
    "MiniMax M2": (
        "<minimax:tool_call>",
        '<minimax:tool_call>\n<invoke name="run">\n<parameter name="a">',
        "</parameter>\n</invoke>\n</minimax:tool_call>",
    ),
    "MiniCPM 5": ('<function name=" <param name="', '<function name="run"><param name="a">', "</param></function>"),
    "DeepSeek V3.2": (
        "｜DSML｜",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="run">\n<｜DSML｜parameter name="a" string="false">',
        "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    ),
    "LFM2": ("<|tool_call_start|>", "<|tool_call_start|>[run(a=", ")]<|tool_call_end|>"),
}
"""Notations that write each argument for itself: a text of the template, a call up to a value of `a`, and its rest."""
NESTED: dict[str, tuple[str, str, str]] = {
    "Gemma 4": ("<|tool_call> <tool_call|>", "<|tool_call>call:run{a:", "}<tool_call|>"),
    "FunctionGemma": ("<start_function_call>", "<start_function_call>call:run{a:", "}<end_function_call>"),
}
"""Those that write lists and objects in their own way as well."""
MAPPED = {**APART, **NESTED}
"""Those that can write arguments of any names."""
ALL = {
    **MAPPED,
    "MiniMax M3": (M, f'{M}<tool_call>\n{M}<invoke name="run">{M}<a>', f"{M}</a>{M}</invoke>\n{M}</tool_call>"),
}
OWN = [*NESTED, "MiniMax M3"]


def guarded(known_by: str, schema: dict[str, Any]) -> tuple[CallGuard | None, list[str]]:
    """Return what keeps calls of a tool with this schema, and the warnings."""
    markup, tokens = _model(known_by)
    return call_guard({"chat.tools[0]": Tool("run", "", schema)}, markup, lambda field: tokens)


def refusal(known_by: str, schema: dict[str, Any]) -> SidecarError:
    """Return the error of a request that requires a call of a tool with this schema."""
    markup, tokens = _model(known_by)
    with pytest.raises(SidecarError) as caught:
        required_calls({"chat.tools[0]": Tool("run", "", schema)}, markup, lambda field: tokens)
    return caught.value


def _model(known_by: str) -> tuple[ChatMarkup, Vocabulary]:
    return ChatMarkup(TokenizerWrapper(FakeTokenizer((), known_by))), Vocabulary(LLTokenizer("byte"), {})


def calls_of(known_by: str, written: str, schema: dict[str, Any]) -> list[Any]:
    """Return the arguments of the calls in an answer."""
    parser = AnswerParser(_model(known_by)[0], [Tool("run", "", schema)])
    parts = parser.add(written)
    parts += parser.finish(ended=True)
    return [json.loads(call.arguments_json) for call in parts.calls]


def kept(name: str, schema: dict[str, Any]) -> Callable[[str], bool]:
    """Return a function that tells whether a call with a written value of `a` is allowed, up to its end."""
    known_by, begun, ended = ALL[name]
    guard, warnings = guarded(known_by, schema)
    assert guard is not None
    assert not warnings
    return lambda value: (matcher := guard.entered(begun + value + ended)) is not None and matcher.complete


TREE = {"type": "object", "properties": {"a": {"type": "array", "items": {"$ref": "#"}}}, "required": ["a"]}
FIRST = {
    "type": "object",
    "properties": {"a": {"$ref": "#/properties/b/items"}, "b": {"type": "array", "items": {"$ref": "#/$defs/few"}}},
    "required": ["a"],
    "$defs": {"few": {"type": "integer", "maximum": 9}},
}


@pytest.mark.parametrize("name", APART)
def test_reference_to_the_root_is_followed(name: str) -> None:
    """A tree of objects. Taken as a reference to the schema of the argument, it would be lists of lists."""
    allowed = kept(name, TREE)
    assert allowed('[{"a": [{"a": []}]}]')
    assert not allowed("[[]]")
    assert not allowed('[{"b": 1}]')


@pytest.mark.parametrize("name", APART)
def test_reference_to_any_part_is_followed(name: str) -> None:
    """Not only to a definition: some programs write a schema once, and refer to that place."""
    allowed = kept(name, {**FIRST, "$id": "https://example.test/first"})
    assert allowed("7")
    assert not allowed("10")
    assert not allowed("[]")


@pytest.mark.parametrize("name", MAPPED)
def test_free_names_have_values_of_their_schema(name: str) -> None:
    """A tool that takes a mapping."""
    allowed = kept(name, {"type": "object", "additionalProperties": {"type": "integer", "maximum": 9}})
    assert allowed("7")
    assert not allowed("10")
    assert not allowed("x")
    assert not allowed("true")
    anything = kept(name, {"type": "object"})
    assert anything("true")


@pytest.mark.parametrize("name", NESTED)
def test_nested_free_names_have_typed_values(name: str) -> None:
    """At any depth; without a schema, values are of any kind."""
    inner = {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "boolean"}}}
    allowed = kept(name, {"type": "object", "properties": {"a": inner}})
    assert allowed("{x:[true,false],y:[]}")
    assert not allowed("{x:[1]}")
    assert not allowed("{x:true}")
    assert kept(name, {"type": "object", "properties": {"a": {"type": "object"}}})("{x:[1,{y:true}],z:null}")


STRING, INTEGER = {"type": "string"}, {"type": "integer"}
UNKEPT: dict[str, tuple[str, dict[str, Any]]] = {
    "names": ("propertyNames", {"properties": {"a": STRING}, "propertyNames": {"maxLength": 1}}),
    "members that need others": ("dependentRequired", {"properties": {"a": STRING}, "dependentRequired": {"a": ["b"]}}),
    "members that need a schema": ("dependentSchemas", {"properties": {"a": STRING}, "dependentSchemas": {"a": {}}}),
    "members that need others, as it was": ("dependencies", {"properties": {"a": STRING}, "dependencies": {"a": []}}),
    "a string that is not": ("not", {"properties": {"a": {**STRING, "not": {"const": "x"}}}}),
    "a string that depends": ("if", {"properties": {"a": {**STRING, "if": {"const": "x"}}}}),
    "both of two": ("allOf", {"allOf": [{"properties": {"a": INTEGER}}, {"properties": {"b": INTEGER}}]}),
    "one of two besides": ("anyOf", {"properties": {"a": INTEGER}, "anyOf": [{"required": ["a"]}]}),
    "required that is true": ("required", {"properties": {"a": INTEGER}, "required": True}),
    "required that are no names": ("required", {"properties": {"a": INTEGER}, "required": [["a"]]}),
    "properties that are a list": ("properties", {"properties": ["a"]}),
}
"""What notations without JSON arguments cannot keep to, and a word of the error."""


@pytest.mark.parametrize("name", [name for name in APART if name != "DeepSeek V3.2"])
def test_booleans_may_be_words_of_python(name: str) -> None:
    """As most of these templates write them, so that models do, and prompts with the call are in the cache."""
    schema = {"type": "object", "properties": {"a": {"type": ["boolean", "null"]}}}
    flag, (known_by, begun, ended) = kept(name, schema), ALL[name]
    for word, value in (("true", True), ("True", True), ("False", False), ("None", None)):
        assert flag(word)
        assert calls_of(known_by, f"{begun}{word}{ended}", schema) == [{"a": value}]
    assert not flag("Truest")
    constant = kept(name, {"type": "object", "properties": {"a": {"const": True}}})
    assert constant("True")
    assert not constant("False")
    assert not constant("None")


@pytest.mark.parametrize("name", NESTED)
def test_arguments_have_the_order_of_the_template(name: str) -> None:
    """It sorts them, whatever their order in the schema. In another order a model would leave optional ones out."""
    inner = {"type": "object", "properties": {"y": INTEGER, "x": INTEGER}}
    schema = {"type": "object", "properties": {"b": INTEGER, "C": INTEGER, "a": inner}, "required": ["b"]}
    allowed = kept(name, schema)
    assert allowed("{x:1,y:2},b:3,C:4")
    assert allowed("{y:2},b:3")
    assert not allowed("{y:2,x:1},b:3")


@pytest.mark.parametrize("why", UNKEPT)
@pytest.mark.parametrize("name", ALL)
def test_what_a_notation_cannot_keep_to_is_told(name: str, why: str) -> None:
    """By its word, at the field of the tool: a warning if any arguments are allowed then, an error with REQUIRED."""
    word, schema = UNKEPT[why]
    schema, known_by = {"type": "object", **schema}, ALL[name][0]
    _, warnings = guarded(known_by, schema)
    assert any(text.startswith("chat.tools[0].parameters_json") and word in text for text in warnings), warnings
    error = refusal(known_by, schema)
    assert error.field == "chat.tools[0].parameters_json"
    assert word in error.message


INNER: dict[str, tuple[str, dict[str, Any]]] = {
    "both of two": ("allOf", {"allOf": [{"properties": {"x": INTEGER}}, {"properties": {"y": INTEGER}}]}),
    "one of two besides": ("anyOf", {"properties": {"x": INTEGER}, "anyOf": [{"required": ["x"]}, {}]}),
    "both of two in a list": ("allOf", {"type": "array", "items": {"allOf": [INTEGER, {"minimum": 3}]}}),
    "a list of items": ("items", {"type": "array", "items": [INTEGER]}),
    "required that is true": ("required", {"type": "object", "properties": {"x": INTEGER}, "required": True}),
    "an object that is not": ("not", {"type": "object", "properties": {"x": INTEGER}, "not": {}}),
}


@pytest.mark.parametrize("why", INNER)
@pytest.mark.parametrize("name", OWN)
def test_what_a_value_cannot_be_kept_to_is_told(name: str, why: str) -> None:
    """Of a value that fits several schemas at a time, a grammar would allow what fits one of them."""
    word, inner = INNER[why]
    for schema in (inner, {"$ref": "#/$defs/inner"}, {"anyOf": [inner, {"type": "null"}]}):
        whole = {"type": "object", "properties": {"a": schema}, "$defs": {"inner": inner}}
        assert f"`{word}`" in refusal(ALL[name][0], whole).message


@pytest.mark.parametrize("name", OWN)
def test_unused_definition_is_not_looked_at(name: str) -> None:
    """Some programs give each tool all of their definitions."""
    schema = {"type": "object", "properties": {"a": INTEGER}, "$defs": {"both": {"allOf": [INTEGER, STRING]}}}
    assert guarded(ALL[name][0], schema)[1] == []


@pytest.mark.parametrize("name", ALL)
def test_tool_of_very_many_arguments_is_called(name: str) -> None:
    """Its schema may take too much work; then any arguments are allowed, and the caller is told."""
    many = {"type": "object", "properties": {"a": INTEGER} | {f"p{number}": STRING for number in range(400)}}
    known_by, begun, ended = ALL[name]
    guard, warnings = guarded(known_by, many)
    assert guard is not None or warnings
    assert calls_of(known_by, f"{begun}5{ended}", many) == [{"a": 5}]
