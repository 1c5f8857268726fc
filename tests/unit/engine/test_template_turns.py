"""Conversations reach a template in the shape that it takes, from wherever a checkpoint keeps it; losses are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.cache.resolver import Resolver, Wanted
from daemon.engine.output.detokenizer import Token
from daemon.engine.prompt.chat_templates import Templates
from daemon.engine.prompt.preparation import Rendered, prepare_request, render
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.engine.prompt.tokenizers import Tokenizers
from daemon.shared.errors import Reason, SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support import chat_templates as habits
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import Answer, Harness

CALL = pb.ToolCall(id="call_7f3a", name="look", arguments_json='{"at": "sea"}')
CALLED = pb.ChatMessage(role="assistant", tool_calls=[CALL])
ANSWERED = pb.ChatMessage(role="tool", content="blue", tool_call_id="call_7f3a")
TOOL = pb.Tool(name="look", parameters_json='{"type": "object"}')


def says(role: str, content: str = "", **fields: Any) -> pb.ChatMessage:
    """Return a message."""
    return pb.ChatMessage(role=role, content=content, **fields)


HI = says("user", "Hi")


class Model:
    """A model whose templates a test writes."""

    def __init__(self, path: Path, templates: Templates) -> None:
        self.path = path
        self._tokenizers = Tokenizers(templates)
        (path / "chat_template.jinja").unlink()

    def write(self, files: dict[str, Any]) -> Model:
        """Write files; what is no text is written as JSON, into a file that may be there."""
        for name, content in files.items():
            file = self.path / name
            file.parent.mkdir(exist_ok=True)
            if not isinstance(content, str):
                content = json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **content})
            file.write_text(content)
        return self

    def has(self, template: str) -> Model:
        """Give it one template."""
        return self.write({"chat_template.jinja": template})

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self._tokenizers.get(Resolver([]).resolve(Wanted(str(self.path))))

    def render(self, *messages: pb.ChatMessage, **fields: Any) -> Rendered:
        """Return a conversation as its template writes it."""
        return render(pb.GenerateRequest(chat=pb.Chat(messages=messages, **fields)), self.tokenizer)

    def text(self, *messages: pb.ChatMessage, **fields: Any) -> str:
        """Return a conversation as text, without the beginning of an answer."""
        return self.render(*messages, **{"add_generation_prompt": False, **fields}).text

    def refusal(self, *messages: pb.ChatMessage, **fields: Any) -> str:
        """Return the field that a conversation is refused for."""
        with pytest.raises(SidecarError) as caught:
            self.render(*messages, **fields)
        assert caught.value.reason is Reason.INVALID_ARGUMENT
        return str(caught.value.field)


@pytest.fixture(name="model")
def _model(tmp_path: Path, templates: Templates) -> Model:
    """Return a model without a template."""
    return Model(copy_of_embedded(tmp_path, "model"), templates)


# Cases of other servers, by their names.


@pytest.mark.parametrize("habit", ["CONCATENATES", "PRINTS", "NULL_CONTENT"])
def test_tool_turn_arguments_as_text(model: Model, habit: str) -> None:
    """The text is the caller's own; templates that iterate or write JSON get a mapping."""
    spaced = pb.ToolCall(id="c", name="look", arguments_json='{"at":  "sea"}')
    turn = says("assistant", tool_calls=[spaced])
    assert '[look {"at":  "sea"}]' in model.has(getattr(habits, habit)).text(HI, turn)
    assert "[look {}]" in model.text(HI, says("assistant", tool_calls=[pb.ToolCall(id="c", name="look")]))
    assert "[look at=sea]" in model.has(habits.ITERATES).text(HI, turn)
    assert '[look {"at": "sea"}]' in model.has(habits.ECHO).text(HI, turn)


def test_tool_turn_without_a_name(model: Model) -> None:
    """The name is that of the call with its id, or without an id that of the call at its place."""
    model.has(habits.NAMES_TOOLS)
    other = pb.ToolCall(id="c2", name="hear")
    calls = says("assistant", tool_calls=[CALL, other])
    assert "<tool look>blue</>" in model.text(HI, CALLED, ANSWERED)
    answers = [says("tool", "loud", tool_call_id="c2"), ANSWERED]
    assert "<tool hear>loud</><tool look>blue</>" in model.text(HI, calls, *answers)
    assert "<tool look>a</><tool hear>b</>" in model.text(HI, calls, says("tool", "a"), says("tool", "b"))
    assert model.refusal(HI, CALLED, says("tool", "x", tool_call_id="unknown")) == "chat"


@pytest.mark.parametrize("name", ["enable_thinking", "thinking", "reasoning"])
def test_thinking_switch_of_another_name(model: Model, name: str) -> None:
    """The switch is given under the name that is read; without one, the request is refused."""
    model.has(habits.switched(name))
    assert model.text(HI, enable_thinking=True).endswith("<think>")
    assert not model.text(HI, enable_thinking=False).endswith("<think>")
    model.has(habits.ECHO)
    for wanted in (True, False):
        assert model.refusal(HI, enable_thinking=wanted) == "chat.enable_thinking"


def test_thinking_switch_in_the_system_text(model: Model) -> None:
    """A word that the template takes out again."""
    model.has(habits.FLAGGED)
    assert model.text(says("system", "Be brief."), HI, enable_thinking=True) == "<system>Be brief.</><user>Hi</><think>"
    assert model.text(says("system", "Be brief."), HI, enable_thinking=False) == "<system>Be brief.</><user>Hi</>"
    assert model.text(HI, enable_thinking=False) == "<system></><user>Hi</>"


HERMES = "{# <tool_call> tool_call.name #}" + habits.ECHO
NAMED = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": HERMES}]


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"chat_template": NAMED}},
        {"chat_template.jinja": "plain", "additional_chat_templates/tool_use.jinja": HERMES},
        {"tokenizer_config.json": {"chat_template": "plain"}, "additional_chat_templates/tool_use.jinja": HERMES},
        {"chat_template.json": {"chat_template": NAMED}},
    ],
    ids=["a list", "files", "a text and a file", "a list in another file"],
)
def test_named_templates(model: Model, files: dict[str, Any]) -> None:
    """With tools the one for tools counts: for the prompt, for the notation of calls and for required calls."""
    model.write(files)
    assert model.text(HI) == "plain"
    assert model.text(HI, tools=[TOOL]) == "<user>Hi</>"
    assert model.text(HI, tools=[TOOL], tool_choice=pb.TOOL_CHOICE_NONE) == "plain"
    chat = pb.Chat(messages=[HI], tools=[TOOL], tool_choice=pb.TOOL_CHOICE_REQUIRED)
    source = Resolver([]).resolve(Wanted(str(model.path)))
    assert prepare_request(pb.GenerateRequest(chat=chat), source, model.tokenizer).form is not None


def test_changed_additional_template_is_read_anew(model: Model) -> None:
    file = "additional_chat_templates/tool_use.jinja"
    model.write({"chat_template.jinja": "plain", file: "first"})
    assert model.text(HI, tools=[TOOL]) == "first"
    assert model.write({file: "the second"}).text(HI, tools=[TOOL]) == "the second"


def test_chat_template_json(model: Model) -> None:
    """It belongs to processors, so that others come first."""
    model.write({"chat_template.json": {"chat_template": habits.ECHO}})
    assert model.text(HI) == "<user>Hi</>"
    assert model.tokenizer.has_chat_template
    model.write({"tokenizer_config.json": {"chat_template": "config"}})
    assert model.text(HI) == "config"
    model.write({"chat_template.jinja": "file"})
    assert model.text(HI) == "file"


def test_model_without_the_usual_template_names_those_it_has(model: Model) -> None:
    model.write({"tokenizer_config.json": {"chat_template": [{**NAMED[0], "name": name} for name in ("rag", "sum")]}})
    with pytest.raises(SidecarError, match="rag, sum"):
        model.render(HI)
    model.write({"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "rag"}]}})
    assert model.text(HI) == "rag", "there is no other"


# Turns.


def test_call_ids_have_the_length_that_a_template_needs(model: Model) -> None:
    """The call and its answer get the same new id, which depends on the caller's id alone."""
    text = model.has(habits.NINE).text(HI, CALLED, ANSWERED)
    call, answer = (part.split(")")[0] for part in text.split("(")[1:])
    assert call == answer
    assert (len(call), call.isalnum()) == (9, True)
    kept = says("assistant", tool_calls=[pb.ToolCall(id="a1b2c3d4e", name="look")])
    assert "(a1b2c3d4e)" in model.text(HI, kept)


def test_repeated_call_ids_lose_no_answer(model: Model) -> None:
    """Of one turn as of several: some models number the calls of each turn anew."""
    calls = [pb.ToolCall(id="0", name="look"), pb.ToolCall(id="0", name="look"), pb.ToolCall(name="look")]
    answers = [says("tool", text, tool_call_id="0") for text in ("blue", "grey")]
    talk = [HI, says("assistant", tool_calls=calls), *answers, says("tool", "red"), HI]
    talk += [says("assistant", tool_calls=calls[:1]), says("tool", "green", tool_call_id="0")]
    text = model.has(habits.SEEN_IDS).text(*talk)
    assert [text.count(f"<tool>{word}</>") for word in ("blue", "grey", "red", "green")] == [1, 1, 1, 1]
    assert model.has(habits.ECHO).text(*talk) == text


def test_text_and_calls_become_two_turns_if_need_be(model: Model) -> None:
    """Else the template would leave the text out."""
    rendered = model.has(habits.CALLS_OR_TEXT).render(HI, says("assistant", "I look.", tool_calls=[CALL]))
    assert rendered.text == '<user>Hi</><assistant>I look.</>[look {"at": "sea"}]<assistant>'
    assert not rendered.warnings


def test_reasoning_has_the_key_that_a_template_reads(model: Model) -> None:
    turn = says("assistant", "Yes", reasoning_content="Hm", tool_calls=[CALL])
    assert "Hm\nYes<assistant></>[look" in model.has(habits.ONE_PLACE).text(HI, turn)
    assert model.has(habits.REASONS).text(HI, turn).endswith("<assistant>Yes</>Hm")
    assert "<assistant>[THINK]Hm[/THINK]Yes</>[look" in model.has(habits.BLOCKS).text(HI, turn)
    begun = says("assistant", "Yes", reasoning_content="Hm")
    open_ = model.text(HI, begun, continue_final_message=True)
    assert open_ == "<user>Hi</><assistant>[THINK]Hm[/THINK]Yes"


SYSTEM, DEVELOPER = says("system", "Be brief."), says("developer", "Be kind.")
LATE = says("system", "It rains.")
YES, BYE = says("assistant", "Yes"), says("user", "Bye")
MARKED = "<system>\nIt rains.\n</system>"


@pytest.mark.parametrize(
    ("habit", "messages", "text"),
    [
        ("ECHO", [DEVELOPER, HI], "<system>Be kind.</><user>Hi</>"),
        ("ECHO", [SYSTEM, HI, DEVELOPER], "<system>Be brief.</><user>Hi</><system>Be kind.</>"),
        ("DEVELOPER", [DEVELOPER, HI], "<developer>Be kind.<user>Hi</>"),
        ("FIRST_SYSTEM", [DEVELOPER, SYSTEM, HI], "<system>Be kind.\n\nBe brief.</><user>Hi</>"),
        ("FIRST_SYSTEM", [SYSTEM, HI, LATE], f"<system>Be brief.</><user>Hi</><user>{MARKED}</>"),
        ("GATHERS_SYSTEMS", [SYSTEM, HI, LATE, BYE], f"Be brief.<user>Hi</><user>{MARKED}</><user>Bye</>"),
        ("ALTERNATES", [SYSTEM, DEVELOPER, HI], "<user>Be brief.\n\nBe kind.\n\nHi</>"),
        ("ALTERNATES", [SYSTEM], "<user>Be brief.</>"),
        ("ALTERNATES", [HI, LATE, YES, LATE, BYE], f"<user>Hi\n\n{MARKED}</><assistant>Yes</><user>{MARKED}\n\nBye</>"),
        (
            "ALTERNATES_BESIDE_TOOLS",
            [HI, CALLED, ANSWERED, LATE],
            f'<user>Hi</><assistant></>[look {{"at": "sea"}}]<tool>blue\n\n{MARKED}</>',
        ),
        ("ALTERNATES", [HI, BYE, YES], "<user>Hi\n\nBye</><assistant>Yes</>"),
        ("ALTERNATES", [HI, YES, says("assistant", "A", reasoning_content="B")], "<user>Hi</><assistant>Yes\n\nA</>"),
    ],
)  # fmt: skip
def test_roles_become_what_a_template_takes(
    model: Model, habit: str, messages: list[pb.ChatMessage], text: str
) -> None:
    """No text is lost, and each stays at its place."""
    assert model.has(getattr(habits, habit)).text(*messages) == text


def test_conversation_that_begins_with_an_answer_is_the_templates_affair(model: Model) -> None:
    assert model.has(habits.ALTERNATES).refusal(YES, HI) == "chat"
    assert model.has(habits.ECHO).text(YES, HI) == "<assistant>Yes</><user>Hi</>"


# Losses.

THOUGHT = says("assistant", reasoning_content="Hm", tool_calls=[CALL])


@pytest.mark.parametrize(
    ("habit", "messages", "lost"),
    [
        ("NO_TOOLS", [HI, CALLED, ANSWERED], ["[1].tool_calls", "[2].content"]),
        ("NO_TOOLS", [HI, YES, BYE], []),
        ("FIRST_CALL", [HI, CALLED, ANSWERED], []),
        ("FIRST_CALL", [HI, says("assistant", tool_calls=[CALL, CALL])], ["[1].tool_calls"]),
        ("ECHO", [HI, says("assistant", "Yes", reasoning_content="Hm"), BYE], ["[1].reasoning_content"]),
        ("THINKS_LAST", [HI, says("assistant", "Yes", reasoning_content="Hm"), BYE], []),
        ("SYSTEM_LAST", [SYSTEM, HI, CALLED, ANSWERED], ["[0].content"]),
        ("SYSTEM_LAST", [SYSTEM, HI], []),
        ("FORGETS_REASONING", [HI, THOUGHT, ANSWERED], []),
        ("FORGETS_REASONING", [HI, THOUGHT, ANSWERED, BYE], []),
        ("FORGETS_REASONING", [HI, THOUGHT, ANSWERED, LATE], ["[1].reasoning_content"]),
        ("FORGETS_TEXT", [HI, says("assistant", "Yes", tool_calls=[CALL]), ANSWERED], []),
        ("FORGETS_TEXT", [HI, says("assistant", "Yes", tool_calls=[CALL]), ANSWERED, YES, BYE], ["[1].content"]),
        ("PLANS", [HI, says("assistant", "A", reasoning_content="B", tool_calls=[CALL])], ["[1].reasoning_content"]),
        ("THINKS_LAST", [HI, says("assistant", "Yes", reasoning_content="Hm"), ANSWERED], ["[1].reasoning_content"]),
    ],
)
def test_what_a_template_leaves_out_is_told(
    model: Model, habit: str, messages: list[pb.ChatMessage], lost: list[str]
) -> None:
    """Reasoning before the last user turn is left out on purpose by many templates, so that is not told."""
    warnings = model.has(getattr(habits, habit)).render(*messages).warnings
    assert warnings == tuple(f"chat.messages{field}: is left out by the model's chat template" for field in lost)


def test_loss_is_logged_once_for_each_template(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.has(habits.NO_TOOLS + "{# logged once #}")
    for _ in range(3):
        assert model.render(HI, CALLED, ANSWERED).warnings
    assert capsys.readouterr().out.count("template_leaves_out") == 1


# Options.


def test_template_args_reach_the_template(model: Model) -> None:
    """Values are JSON. One that is not read, or is no JSON, is refused with its name."""
    model.has("{{ date }} {{ docs | tojson }} {{ bos_token }}")
    assert model.text(HI, template_args={"date": '"1 May"', "docs": '[{"é": null}]'}).startswith('1 May [{"é": null}]')
    assert model.refusal(HI, template_args={"other": "1"}) == "chat.template_args[other]"
    assert model.refusal(HI, template_args={"date": "{"}) == "chat.template_args[date]"
    model.has(habits.switched("thinking"))
    assert model.text(HI, template_args={"thinking": "true"}).endswith("<think>")
    both = {"template_args": {"thinking": "true"}, "enable_thinking": False}
    assert model.refusal(HI, **both) == "chat.template_args[thinking]"


def test_reasoning_effort_reaches_the_template(model: Model) -> None:
    assert model.has("{{ reasoning_effort | default('medium') }}").text(HI, reasoning_effort="low") == "low"
    assert model.text(HI) == "medium"
    assert model.has(habits.ECHO).refusal(HI, reasoning_effort="low") == "chat.reasoning_effort"


TRIMS = habits.loop(habits.TURN.replace("m.content", "m.content | trim"))
SHORTENS = habits.loop(habits.TURN.replace("m.content", "m.content[:2]"))


@pytest.mark.parametrize("content", ["Yes", "Yes\n", "Yes \n\n", "", "a </> b", "mlxsidecarcontinueshere", "é\u2028"])
@pytest.mark.parametrize("template", [habits.ECHO, TRIMS])
def test_last_message_is_continued(model: Model, template: str, content: str) -> None:
    """The prompt ends exactly with the content, white space included, whatever the template trims."""
    text = model.has(template).render(HI, says("assistant", content), continue_final_message=True).text
    assert text == f"<user>Hi</><assistant>{content}"


def test_message_that_a_template_changes_cannot_be_continued(model: Model) -> None:
    """White space at its beginning may go."""
    text = model.has(TRIMS).render(HI, says("assistant", " \nYes"), continue_final_message=True).text
    assert text == "<user>Hi</><assistant>Yes"
    field = model.has(SHORTENS).refusal(HI, says("assistant", "Yes"), continue_final_message=True)
    assert field == "chat.continue_final_message"


SIGNATURES = """
{%- for tool in tools or [] %}{{ tool.function.name }}(
{%- for name, part in tool.function.parameters.properties.items() %}
{{- name }}: {% if part.type is defined %}{{ part.type.strip() }}
{%- else %}{{ part.anyOf | map(attribute='type') | join(' | ') }}{% endif %}{{ ', ' }}
{%- endfor %}){% endfor -%}
"""
"""A template that writes signatures of tools from their schemas, as those of Seed-OSS and Hermes do."""


def test_schemas_are_spelled_as_a_template_takes_them(model: Model) -> None:
    """Other templates get them as they are."""
    parts = {"x": {"type": ["string", "null"], "default": None}, "type": {"type": "integer"}}
    given = [{}, {"type": "object"}, {"type": "object", "properties": parts}]
    tools = [pb.Tool(name=name, parameters_json=json.dumps(one)) for name, one in zip("abc", given, strict=True)]
    text = model.has(SIGNATURES + habits.ECHO).text(HI, tools=tools)
    assert text == "a()b()c(x: string | null, type: integer, )<user>Hi</>"
    text = model.has("{{ tools | map(attribute='function.parameters') | list | tojson }}" + habits.ECHO).text(
        HI, tools=tools
    )
    assert json.loads(text.removesuffix("<user>Hi</>")) == given


STRIPS = [
    {"type": "Replace", "pattern": {"String": "Ġ"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]
"""The decoder of Llama 2 and of many others: a text loses a space at its beginning."""


def test_answer_that_goes_on_keeps_its_first_space(model: Model) -> None:
    """The prompt and the answer are one text, unless the answer begins a turn."""
    files = {"tokenizer.json": {"decoder": {"type": "Sequence", "decoders": STRIPS}}}
    tokenizer = model.has(habits.ECHO).write(files).tokenizer
    source = Resolver([]).resolve(Wanted(str(model.path)))
    ids = tokenizer.encode(" the code", special=False)

    def answer(**prompt: Any) -> str:
        prepared = prepare_request(pb.GenerateRequest(**prompt), source, tokenizer)
        first, again = (
            "".join([*(output.add(Token(id_)).text for id_ in ids), output.finish().text])
            for output in (prepared.output, prepared.again().output)
        )
        assert first == again
        return first

    assert answer(text="Yes,") == " the code"
    assert answer(tokens=pb.TokenIds(ids=tokenizer.encode("Yes,", special=False))) == " the code"
    continued = pb.Chat(messages=[HI, says("assistant", "Yes,")], continue_final_message=True)
    assert answer(chat=continued) == " the code"
    assert answer(chat=pb.Chat(messages=[HI])) == "the code"


def test_stream_begins_with_the_warnings(harness: Harness, model: Model) -> None:
    """And a message that is left open is continued: the same ids as after the same text."""
    path = str(model.has(habits.NO_TOOLS).path)

    def ask(*messages: pb.ChatMessage, **fields: Any) -> Answer:
        return harness.run(pb.GenerateRequest(model=path, chat=pb.Chat(messages=messages, **fields), max_tokens=4))

    (warning,) = ask(HI, CALLED).started.warnings
    assert warning.startswith("chat.messages[1].tool_calls: ")
    assert not ask(HI).started.warnings
    continued = ask(HI, says("assistant", "Yes, the"), continue_final_message=True)
    text = "<user>Hi</><assistant>Yes, the"
    ids = model.tokenizer.encode(text, special=False)
    same = harness.run(pb.GenerateRequest(model=path, tokens=pb.TokenIds(ids=ids), max_tokens=4))
    assert continued.text == same.text
    assert continued.finished.usage.prompt_tokens == len(ids)
