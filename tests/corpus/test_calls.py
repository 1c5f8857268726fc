"""What templates write for an assistant's tool calls is read back as the same calls, as if a model had written it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from os.path import commonprefix
from pathlib import Path
from typing import Any

import pytest

from daemon.engine.output.answer_parser import Parts
from daemon.engine.output.tool_calls import ToolCall
from daemon.engine.prompt.answer_constraints import FreeConstraint
from daemon.engine.prompt.preparation import prepare_request, render
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.engine.structured_output.call_guard import CallGuard
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.corpus import families
from tests.corpus.checkpoints import SOURCE, with_template
from tests.corpus.conversations import ASKED, CALLED, FIRST, SCHEMA, TOOL, TWICE
from tests.corpus.packages import LLAMA_CPP, members
from tests.corpus.rendering import RecordedTemplates
from tests.corpus.round_trips import TURN_ENDS

ENDS = re.compile(
    r"<\|im_end\|>|<\|eot_id\|>|<\|eom_id\|>|</s>|<\|end\|>|<\|end_of_text\|>|<turn\|>|<\|END_OF_TURN_TOKEN\|>|\[e~\[|"
    r"<seed:eos>|<\uff5cend▁of▁sentence\uff5c>|<\uff5ctool▁outputs▁begin\uff5c>|<\|call\|>|<\|message_sep\|>|<\|end_of_msg\|>|"
    r"<SPECIAL_12>|<｜hy_eos:opensource｜>|<\|role_end\|>|<\|observation\|>|</assistant>|<end_of_sentence>|<\|tool_response>|<\|eot\|>"
)
"""Where a model's turn ends: the tokens that end a sequence, or the beginning of the next turn."""
HEADER = 48
"""Characters in which a turn's header ends; it may hold tokens that end a sequence elsewhere."""
DRY = {"type": "boolean", "description": "Whether it is dry."}
GIVEN = {"tags": FIRST["tags"], "dry": True, "city": FIRST["city"], "days": 3}
"""Arguments in an order that some templates do not keep to, with a value that some write as Python does."""


@pytest.mark.parametrize("file", families.SMALL, ids=lambda file: file.stem)
def test_small_templates_calls_are_read_back(folder: Path, templates: RecordedTemplates, file: Path) -> None:
    """One call, and two after a text."""
    check_calls(with_template(folder, file.read_text(), templates), templates, file.stem)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in families.TEMPLATES if name not in families.NO_CALLS])
def test_templates_calls_are_read_back(folder: Path, templates: RecordedTemplates, name: str) -> None:
    """One call, and two after a text where a template takes two."""
    template = (members(LLAMA_CPP, "models/templates") / f"{name}.jinja").read_text()
    check_calls(with_template(folder, template, templates), templates, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", families.REASONS)
def test_templates_reasoning_is_read_back(folder: Path, templates: RecordedTemplates, name: str) -> None:
    """Before a call, with a mark of another kind in it."""
    tokenizer = with_template(folder, (members(LLAMA_CPP, "models/templates") / f"{name}.jinja").read_text(), templates)
    turn = pb.ChatMessage(role="assistant", reasoning_content="A </b> THOUGHT", tool_calls=CALLED.tool_calls)
    parts = parts_of(answer_of(turn, tokenizer, templates), tokenizer)
    assert parts.reasoning.strip() == "A </b> THOUGHT"
    assert named(parts.calls) == arguments(CALLED)


@pytest.mark.parametrize("file", families.SMALL, ids=lambda file: file.stem)
def test_small_templates_calls_have_their_grammar(folder: Path, templates: RecordedTemplates, file: Path) -> None:
    """What a template writes for a call is what a mask of calls allows."""
    check_grammar(with_template(folder, file.read_text(), templates), templates, file.stem)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in families.TEMPLATES if name not in families.NO_CALLS])
def test_templates_calls_have_their_grammar(folder: Path, templates: RecordedTemplates, name: str) -> None:
    """Else a model would be kept from what it was trained to write, and its next prompt would be computed anew."""
    template = (members(LLAMA_CPP, "models/templates") / f"{name}.jinja").read_text()
    check_grammar(with_template(folder, template, templates), templates, name)


def check_grammar(tokenizer: Tokenizer, templates: RecordedTemplates, name: str) -> None:
    """Check that calls of a tool, with arguments in the order of its schema, are in the grammar of calls."""
    known: Any = SCHEMA["properties"]
    schema = {"type": "object", "properties": {key: known.get(key, DRY) for key in GIVEN}}
    tool = pb.Tool(name="get_weather", description="Tells the weather.", parameters_json=json.dumps(schema))
    turn = pb.ChatMessage(role="assistant", tool_calls=TWICE.tool_calls[: 1 if name in families.ONE_CALL else 2])
    turn.tool_calls[0].arguments_json = json.dumps(GIVEN, ensure_ascii=False)
    request = pb.GenerateRequest(chat=pb.Chat(messages=[ASKED], tools=[tool]))
    constraint = prepare_request(request, SOURCE, tokenizer).constraint
    answer = TURN_ENDS.split(answer_of(turn, tokenizer, templates, tool))[0]
    guard = constraint.guard if isinstance(constraint, FreeConstraint) else None
    allowed = guard is not None and in_grammar(guard, answer)
    assert allowed != (name in families.OTHER_GRAMMAR), f"in the grammar: {allowed}: {answer}"


def in_grammar(guard: CallGuard, answer: str) -> bool:
    """Return whether an answer has blocks of calls, and each of them is in its grammar."""
    begun = sorted({at.start() for mark in guard.starts for at in re.finditer(re.escape(mark), answer)})
    found = bool(begun)
    while begun:
        for end in (*begun[1:], len(answer)):
            matcher = guard.entered(answer[begun[0] : end].rstrip())
            if matcher is not None and matcher.complete:
                break
        else:
            return False
        begun = [at for at in begun if at >= end]
    return found


def check_calls(tokenizer: Tokenizer, templates: RecordedTemplates, name: str) -> None:
    """Check that the calls of a turn are read from what the template writes for it."""
    assert named(parts_of(answer_of(CALLED, tokenizer, templates), tokenizer).calls) == arguments(CALLED)
    if name not in families.ONE_CALL:
        twice = pb.ChatMessage(role="assistant", tool_calls=TWICE.tool_calls) if name in families.NO_TEXT else TWICE
        assert named(parts_of(answer_of(twice, tokenizer, templates), tokenizer).calls) == arguments(TWICE)


def answer_of(turn: pb.ChatMessage, tokenizer: Tokenizer, templates: RecordedTemplates, tool: pb.Tool = TOOL) -> str:
    """Return a template's own text of a turn, as a model would write it as its answer."""
    asked = pb.Chat(messages=[ASKED], tools=[tool])
    prompt = text_of(asked, tokenizer, templates)
    asked.add_generation_prompt = False
    before = text_of(asked, tokenizer, templates)
    asked.messages.append(turn)
    asked.messages.append(pb.ChatMessage(role="tool", content="RESULT1", tool_call_id="call00001"))
    text = text_of(asked, tokenizer, templates)
    begun = text.startswith(prompt)
    answer, header = (text[len(prompt) :], 0) if begun else (text[len(commonprefix([before, text])) :], HEADER)  # noqa: RUF071 - of characters
    end = ENDS.search(answer, header)
    return answer[: end.start()] if end else answer


def text_of(chat: pb.Chat, tokenizer: Tokenizer, templates: RecordedTemplates) -> str:
    """Return the text of a conversation."""
    render(pb.GenerateRequest(chat=chat), tokenizer)
    assert templates.answered is not None
    return templates.answered


def parts_of(answer: str, tokenizer: Tokenizer) -> Parts:
    """Return the text, the reasoning and the calls of an answer."""
    request = pb.GenerateRequest(chat=pb.Chat(messages=[ASKED], tools=[TOOL]))
    parser = prepare_request(request, SOURCE, tokenizer).parser
    assert parser is not None, "no notation is known for it"
    parts, rest = parser.add(answer), parser.finish(ended=True)
    return Parts(parts.text + rest.text, parts.reasoning + rest.reasoning, [*parts.calls, *rest.calls])


def named(calls: Iterable[ToolCall]) -> list[tuple[str, Any]]:
    """Return the names and arguments of calls."""
    return [(call.name, json.loads(call.arguments_json)) for call in calls]


def arguments(turn: pb.ChatMessage) -> list[tuple[str, Any]]:
    """Return the names and arguments of a turn's calls."""
    return [(call.name, json.loads(call.arguments_json)) for call in turn.tool_calls]
