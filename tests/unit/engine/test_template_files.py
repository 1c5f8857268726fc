"""Chat templates are found in all files that checkpoints keep them in, and read anew when these change."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.engine.prompt.answer_constraints import FormConstraint
from daemon.engine.prompt.preparation import prepare_request
from daemon.shared.errors import SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support import chat_templates as habits
from tests.unit.engine.written_templates import HI, TOOL, Model, _model

__all__ = ["_model"]

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
    prepared = prepare_request(pb.GenerateRequest(chat=chat), model.source, model.tokenizer)
    assert isinstance(prepared.constraint, FormConstraint)


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
