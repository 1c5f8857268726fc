"""Turns of a conversation reach a template in the shape that it takes, and what it leaves out is told."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support import chat_templates as habits
from tests.unit.engine.harness import Answer, Harness
from tests.unit.engine.written_templates import ANSWERED, CALL, CALLED, HI, Model, _model, says

__all__ = ["_model"]


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
