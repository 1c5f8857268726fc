"""Options of a conversation reach its template, or are refused; an answer goes on right behind what is continued."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daemon.engine.output.detokenizer import Token
from daemon.engine.prompt.preparation import prepare_request
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support import chat_templates as habits
from tests.unit.engine.written_templates import HI, Model, _model, says

__all__ = ["_model"]


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


def test_argument_named_as_a_keyword_is_spelled(model: Model) -> None:
    """`default` is a value in a schema, and an argument in a list of arguments."""
    parts = {name: {"type": ["string", "null"], "default": {"type": []}} for name in ("default", "enum", "x")}
    tool = pb.Tool(name="f", parameters_json=json.dumps({"type": "object", "properties": parts}))
    text = model.has(SIGNATURES + habits.ECHO).text(HI, tools=[tool])
    assert text == "f(default: string | null, enum: string | null, x: string | null, )<user>Hi</>"


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
    ids = tokenizer.encode(" the code", special=False)

    def answer(**prompt: Any) -> str:
        prepared = prepare_request(pb.GenerateRequest(**prompt), model.source, tokenizer)
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
