"""Calls of a model's own accord keep to their grammar; the rest of the answer, and other rows, are as without tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from llguidance import LLTokenizer
from mlx_lm.tokenizer_utils import TokenizerWrapper
from structlog.testing import capture_logs

from daemon.engine.output.answer_parser import AnswerParser
from daemon.engine.output.chat_markup import ChatMarkup
from daemon.engine.output.harmony import understood
from daemon.engine.output.notations.detection import HARMONY_MARKS
from daemon.engine.output.tool_calls import Tool
from daemon.engine.prompt import answer_constraints
from daemon.engine.structured_output import free_mask
from daemon.engine.structured_output.call_guard import call_guard
from daemon.engine.structured_output.free_mask import FreeMask
from daemon.engine.structured_output.matcher import Vocabulary
from daemon.engine.structured_output.required_calls import required_calls
from daemon.shared.errors import Reason, SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.fake_tokenizer import FakeTokenizer
from tests.unit.engine.harness import Answer, Harness
from tests.unit.engine.marked_calls import AUTO, FIRST, MARKS, REQUIRED, SCHEMA_OF, TOOLS, _model, calls_of, request

__all__ = ["_model"]


@pytest.mark.parametrize(
    ("name", "special"), [*((name, True) for name in MARKS), ("Hermes", False), ("Mistral", False)]
)
def test_begun_calls_are_whole_and_valid(harness: Harness, model: Callable[..., str], name: str, special: bool) -> None:
    """The model has random weights, and is driven to begin one call after the other."""
    marks, known_by = MARKS[name]
    path = model(marks, known_by, special=special)
    long_tags = ("MiniMax M", "DeepSeek V3.2", "DeepSeek V4", "LongCat", "MiniCPM")  # of a character a token
    most = 300 if name.startswith(long_tags) else 120
    answer = harness.run(request(path, sampling={"logit_bias": {FIRST: 80.0}}, max_tokens=most))
    assert answer.finished.reason == pb.FINISH_REASON_LENGTH, answer.failure
    calls = calls_of(answer)
    assert calls, answer.text
    for tool, arguments in calls:
        jsonschema.validate(arguments, SCHEMA_OF[tool])
    assert answer.text.count(marks[0]) <= 1, "only the last call may be cut short"


@pytest.mark.parametrize(
    ("name", "only"), [("Hermes", "paint"), ("Hermes", "go_home"), ("Qwen 3 Coder", "go_home"), ("Kimi K2", "paint")]
)
def test_only_allowed_tools_are_called(harness: Harness, model: Callable[..., str], name: str, only: str) -> None:
    path = model(*MARKS[name])
    answer = harness.run(request(path, sampling={"logit_bias": {FIRST: 80.0}}, chat={"allowed_tools": [only]}))
    calls = calls_of(answer)
    assert {tool for tool, _ in calls} == {only}, answer.text
    for _, arguments in calls:
        jsonschema.validate(arguments, SCHEMA_OF[only])


def test_line_about_a_given_up_grammar_names_its_request(
    harness: Harness, model: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call goes on without its grammar, and the line leads to the call's own line in the log."""

    def refuse(*_: object) -> None:
        raise SidecarError(Reason.INVALID_ARGUMENT, "too much work")

    path = model(*MARKS["Hermes"])
    monkeypatch.setattr(free_mask, "expanded", refuse)
    with capture_logs() as lines:
        answer = harness.run(request(path, sampling={"logit_bias": {FIRST: 80.0}}, request_id="mine"))
    assert answer.finished.reason == pb.FINISH_REASON_LENGTH, answer.failure
    (given_up,) = [line for line in lines if line["event"] == "call_grammar_given_up"]
    assert given_up["request_id"] == "mine"


def test_prompts_that_allow_other_tools_share_their_prefix(harness: Harness, model: Callable[..., str]) -> None:
    """Of free answers, of calls alone, and of calls or JSON; each answer is that of a prompt that reuses nothing."""
    marks, known_by = MARKS["Hermes"]
    path = model(marks, known_by, opened="{% for tool in tools %}{{ tool.function }}{% endfor %}")
    form = {"response_format": pb.ResponseFormat(json_object=pb.JsonObject())}
    told = []
    for only, choice, fields in ((["paint"], AUTO, {}), (["go_home"] * 2, REQUIRED, {}), (["go_home"], AUTO, form)):
        chat = {"allowed_tools": only, "tool_choice": choice, "enable_thinking": False}
        wanted = request(path, chat=chat, sampling={"logit_bias": {FIRST: 80.0}}, max_tokens=60, **fields)
        warm = harness.run(wanted)
        wanted.cache.mode = pb.CACHE_MODE_BYPASS
        cold = harness.run(wanted)
        assert (warm.content, calls_of(warm)) == (cold.content, calls_of(cold))
        assert {tool for tool, _ in calls_of(warm)} <= set(only)
        told.append(warm.finished.usage)
    assert not told[0].cached_tokens
    assert {one.prompt_tokens for one in told} == {told[0].prompt_tokens}
    assert all(one.prompt_tokens - one.cached_tokens <= 16 for one in told[1:]), "a block at most"


def test_warnings_name_an_allowed_tool_by_its_place(harness: Harness, model: Callable[..., str]) -> None:
    """Its place among all tools of the request, also if the same tool stood elsewhere in a request before."""
    loose = pb.Tool(name="mix", parameters_json='{"properties": {"a": {"type": "array", "uniqueItems": true}}}')
    path = model(*MARKS["Hermes"])
    for tools, place in (([loose, *TOOLS], 0), ([*TOOLS, loose], 2)):
        answer = harness.run(request(path, chat={"tools": tools, "allowed_tools": ["mix"]}, max_tokens=1))
        (warning,) = answer.started.warnings
        assert warning.startswith(f"chat.tools[{place}].parameters_json is not kept to: ")


def test_rows_beside_guarded_calls_are_unchanged(harness: Harness, model: Callable[..., str]) -> None:
    path = model(*MARKS["Hermes"])
    plain = request(path, chat={"tools": []})
    alone = harness.run(plain).ids
    guarded = harness.begin(request(path, sampling={"logit_bias": {FIRST: 80.0}}))
    harness.until(lambda: harness.decoding(guarded))
    beside = Answer(harness.finish(harness.begin(plain)))
    assert beside.ids == alone
    assert calls_of(Answer(harness.finish(guarded)))


def test_tools_that_are_not_called_change_nothing(
    harness: Harness, model: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same prompt and seed give the same tokens with a guard and without one."""
    path = model(*MARKS["Hermes"])
    forbidden = {"logit_bias": {FIRST: -100.0, 2: -100.0}}
    guarded = harness.run(request(path, sampling=forbidden))
    monkeypatch.setattr(answer_constraints, "call_guard", lambda *_: (None, []))
    free = harness.run(request(path, sampling=forbidden))
    assert guarded.ids == free.ids
    assert len(guarded.ids) > 100


def test_late_masks_equal_waiting(harness: Harness, model: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that is sampled again has the random key and the penalties of the first time."""
    penalties = {"repetition_penalty": 1.2, "frequency_penalty": 0.5}
    wanted = request(model(*MARKS["Hermes"]), sampling={"logit_bias": {FIRST: 30.0}, **penalties})
    late = harness.run(wanted)
    monkeypatch.setattr(FreeMask, "waits", True)
    assert harness.run(wanted).ids == late.ids
    assert calls_of(late)


def test_loose_schema_is_told(harness: Harness, model: Callable[..., str]) -> None:
    """Calls are of the tools all the same."""
    loose = {"type": "object", "properties": {"colors": {"type": "array", "uniqueItems": True}}}
    tools = [pb.Tool(name="mix", parameters_json=json.dumps(loose)), TOOLS[1]]
    path = model(*MARKS["Hermes"])
    answer = harness.run(request(path, chat={"tools": tools}, sampling={"logit_bias": {FIRST: 80.0}}))
    (warning,) = answer.started.warnings
    assert warning.startswith("chat.tools[0].parameters_json is not kept to: ")
    assert "uniqueItems" in warning
    assert {name for name, _ in calls_of(answer)} <= {"mix", "go_home"}


def test_marks_within_reasoning_are_not_guarded(harness: Harness, model: Callable[..., str]) -> None:
    """Reasoning that mentions the mark goes on freely; its end is never sampled here."""
    path = model(["<tool_call>", "<think>", "</think>"], "<tool_call>", opened="{{ '<think>\n' }}")
    bias = {FIRST: 9.0, FIRST + 2: -100.0}
    answer = harness.run(request(path, sampling={"logit_bias": bias}))
    assert answer.text == ""
    assert calls_of(answer) == []
    assert answer.ids.count(FIRST) > 3


SPOKEN = {
    "functools": ("functools[", "import functools\n@functools.lru_cache\n", 'So. functools[{"name": "'),
    "Command R": (
        "Action: ```json tool_name",
        "Plan: milk.\nAction: go to the shop\nAction: ```sh\nls\n```\n",
        'Plan: home. Action: ```json\n[\n    {"tool_name": "',
    ),
    "Functionary 3.2": (">>>all", "So:\n>>> print(1)\n1\n>>>all\nYes >>>nowhere\n", "So. >>>go_home\n"),
}
"""Notations with a mark that is a word: a text of the template, an answer with the word, and how a call begins."""


@pytest.mark.parametrize("name", SPOKEN)
def test_words_in_text_begin_no_call(name: str) -> None:
    """A mask would make a call of an answer about Python."""
    known_by, said, begun = SPOKEN[name]
    assert not any(_masked(known_by, said))
    assert _masked(known_by, begun)[-1]


OTHERWISE = {
    "DeepSeek V3.2": ("｜DSML｜", '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="go_home">\n'),
    "DeepSeek V4": ("｜DSML｜ tool_calls>", '<｜DSML｜function_calls>\n<｜DSML｜invoke name="go_home">\n'),
    "Kimi K2": ("<|tool_calls_section_begin|>", "<|tool_call_begin|>functions.go_home:0"),
    "Qwen 3 Coder": ("<tool_call>\n<function=", "<function=go_home>\n"),
}
"""Notations with several marks that begin a block: a text of the template, and a block with an unusual one."""


@pytest.mark.parametrize("name", OTHERWISE)
def test_block_with_an_unusual_mark_is_not_masked(name: str) -> None:
    """The grammar of a block has the usual mark: a mask would write it again, and no parser reads that."""
    assert not any(_masked(*OTHERWISE[name]))


@pytest.mark.parametrize("id_", ["", "[CALL_ID]abc123XYZ"])
def test_call_of_mistral_may_have_an_id(id_: str) -> None:
    """Some of its models were trained with one: their template writes it, and a prompt with it is in the cache."""
    markup = ChatMarkup(TokenizerWrapper(FakeTokenizer(("[ARGS]",), "[TOOL_CALLS]")))
    tokens = Vocabulary(LLTokenizer("byte"), {})
    guard, warnings = call_guard({"chat.tools[0]": Tool("run", "", {})}, markup, lambda field: tokens)
    assert guard is not None, warnings
    matcher = guard.entered(f"[TOOL_CALLS]run{id_}[ARGS]{{}}")
    assert matcher is not None
    assert matcher.complete


@pytest.mark.parametrize(("words", "known_by", "name"), [(HARMONY_MARKS, "", "go home"), ((), ">>>all", "all")])
def test_name_that_is_read_as_another_is_told(words: tuple[str, ...], known_by: str, name: str) -> None:
    """A header of gpt-oss ends a name at a space, and a message of Functionary to `all` is text."""
    markup = ChatMarkup(understood(TokenizerWrapper(FakeTokenizer(words, known_by))))
    tokens = Vocabulary(LLTokenizer("byte"), {})
    tools = {"chat.tools[0]": Tool(name, "", {}), "chat.tools[1]": Tool("go", "", {})}
    guard, warnings = call_guard(tools, markup, lambda field: tokens)
    assert guard is not None
    assert warnings == ["chat.tools[0].name is a name that this model's notation of calls cannot hold"]
    with pytest.raises(SidecarError) as caught:
        required_calls(tools, markup, lambda field: tokens)
    assert caught.value.field == "chat.tools[0].name"


def test_call_that_was_read_is_masked_no_more() -> None:
    """For a grammar, a value without the line end before its mark goes on: the answer could never end."""
    schema = {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}
    begun = "<tool_call>\n<function=go_home>\n<parameter=code>\nls"
    masked = _masked("<tool_call>\n<function=", f"{begun}</parameter>\n</function>\n</tool_call>", schema)
    assert masked[len(begun)]
    assert not masked[-1]


def _masked(known_by: str, written: str, parameters: dict[str, Any] | None = None) -> list[bool]:
    """Return for each character of an answer whether the next one is masked."""
    markup = ChatMarkup(TokenizerWrapper(FakeTokenizer((), known_by)))
    tokens = Vocabulary(LLTokenizer("byte"), {})
    tools = {"chat.tools[0]": Tool("go_home", "", parameters or {})}
    guard, warnings = call_guard(tools, markup, lambda field: tokens)
    assert guard is not None, warnings
    scout = AnswerParser(markup, tuple(tools.values()))
    mask = FreeMask(tokens.tokens.vocab_size, scout, lambda ids: bytes(ids).decode("utf-8", "replace"), guard=guard)
    masked = []
    for byte in written.encode():
        masks = (mask.mask(SimpleNamespace(id=byte)), mask.late_mask())
        masked.append(any(one is not None for one in masks))
    return masked


M = "]<]minimax[>["
WITHOUT_QUOTES = {
    "MiniMax M3": (f'{M}<tool_call>\n{M}<invoke name="run">{M}<code>', f"{M}</code>{M}</invoke>\n{M}</tool_call>"),
    "GLM": ("<tool_call>run\n<arg_key>code</arg_key>\n<arg_value>", "</arg_value>\n</tool_call>"),
    "LongCat": (
        "<longcat_tool_call>run<longcat_arg_key>code</longcat_arg_key><longcat_arg_value>",
        "</longcat_arg_value></longcat_tool_call>",
    ),
    "Qwen 3 Coder": (
        "<tool_call>\n<function=run>\n<parameter=code>\n",
        "\n</parameter>\n</function>\n</tool_call>",
    ),
    "Seed-OSS": (
        "<seed:tool_call>\n<function=run>\n<parameter=code>",
        "</parameter>\n</function>\n</seed:tool_call>",
    ),
    "MiniMax M2": (
        '<minimax:tool_call>\n<invoke name="run">\n<parameter name="code">',
        "</parameter>\n</invoke>\n</minimax:tool_call>",
    ),
    "DeepSeek V3.2": (
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="run">\n<｜DSML｜parameter name="code" string="true">',
        "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    ),
    "Gemma 4": ('<|tool_call>call:run{code:<|"|>', '<|"|>}<tool_call|>'),
    "FunctionGemma": ("<start_function_call>call:run{code:<escape>", "<escape>}<end_function_call>"),
}
"""A call of one text, before and behind it, in notations that write texts without escapes."""


@pytest.mark.parametrize("kind", [{"type": "string"}, {"anyOf": [{"type": "string"}, {"type": "integer"}]}], ids=str)
@pytest.mark.parametrize("name", WITHOUT_QUOTES)
def test_masks_leave_no_character_out_of_a_text(name: str, kind: dict[str, Any]) -> None:
    """Code has brackets, and marks have them: a mask that kept them out would change an argument."""
    begun, ended = WITHOUT_QUOTES[name]
    code = "a[0] ]< ]<] </b> <|x|> {c} (d) 'e' \"f\" <g\n\té漢🙂]"
    schema = {"type": "object", "properties": {"code": kind}, "required": ["code"]}
    tool = Tool("run", "", schema)
    markup = ChatMarkup(TokenizerWrapper(FakeTokenizer((), MARKS[name][1])))
    tokens = Vocabulary(LLTokenizer("byte"), {})
    guard, warnings = call_guard({"chat.tools[0]": tool}, markup, lambda field: tokens)
    assert guard is not None
    assert not warnings
    matcher = guard.entered(begun + code + ended)
    assert matcher is not None
    assert matcher.complete
    parser = AnswerParser(markup, [tool])
    calls = [call for parts in (parser.add(begun + code + ended), parser.finish(ended=True)) for call in parts.calls]
    assert [json.loads(call.arguments_json) for call in calls] == [{"code": code}]
