"""Tool calls over the real socket: a model that calls a tool, and its caller's answer to it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from transformers import AutoTokenizer

from mlx_sidecar import AsyncClient, Client, Delta, Finished, InvalidArgument, Message, Tool
from tests.support.daemons import RunningDaemon
from tests.support.scripted_model import scripted_model
from tests.support.tool_conversation import ANSWERS, TEMPLATE

WEATHER = Tool(
    "weather",
    "The weather of a city",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a model that calls tools."""
    return str(scripted_model(tmp_path_factory.mktemp("models") / "calls", ANSWERS, TEMPLATE))


def test_streamed_tool_call_and_its_result_round_trip(client: Client, model: str) -> None:
    """Marks are found wherever tokens cut them; what a template makes of the second turn shows in the answer."""
    history = [Message("user", "Does it rain?")]
    with client.generate(model, history, tools=[WEATHER]) as stream:
        events = list(stream)
    deltas = [event for event in events if isinstance(event, Delta)]
    assert "".join(delta.reasoning for delta in deltas) == "Where? In Bergen."
    assert "".join(delta.text for delta in deltas) == "I look.\n"
    (call,) = [call for delta in deltas for call in delta.tool_calls]
    assert (call.index, call.name, json.loads(call.arguments_json)) == (0, "weather", {"city": "Bergen"})
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "tool_calls"
    asked = stream.result()
    assert (asked.text, asked.reasoning, asked.reason) == ("I look.\n", "Where? In Bergen.", "tool_calls")
    assert [called.id for called in asked.tool_calls] == [call.id]
    assert len(asked.token_ids) == len(ANSWERS["Does it rain?"])

    history.append(asked.message)
    history.append(Message("tool", "wet", tool_call_id=call.id))
    told = client.complete(model, history, tools=[WEATHER])
    assert (told.text, told.reasoning, told.tool_calls, told.reason) == ("It rains.", "", (), "stop")


async def test_parallel_tool_calls_have_own_indexes(daemon: RunningDaemon, model: str) -> None:
    """The asynchronous client gives tool calls the same indexes and names."""
    async with AsyncClient(daemon.socket) as client:
        answer = await client.complete(model, [Message("user", "Oslo too?")], tools=[WEATHER])
    assert [json.loads(str(call.arguments)) for call in answer.tool_calls] == [{"city": "Bergen"}, {"city": "Oslo"}]
    assert len({call.id for call in answer.tool_calls}) == 2
    assert (answer.text, answer.reason) == ("", "tool_calls")


def test_answer_that_stops_at_a_tool_call_is_counted_whole(client: Client, model: str) -> None:
    """Its counts and times are those of what was generated, and the rest is not generated."""
    asked = [Message("user", "Does it rain?")]
    rest = client.complete(model, asked, tools=[WEATHER])
    first = client.complete(model, asked, tools=[WEATHER], stop_at_tool_call=True)
    assert [call.arguments for call in first.tool_calls] == [call.arguments for call in rest.tool_calls]
    assert (first.reason, first.usage.reasoning_tokens) == ("tool_calls", rest.usage.reasoning_tokens)
    assert first.usage.completion_tokens == rest.usage.completion_tokens - 1 == len(ANSWERS["Does it rain?"])
    assert first.timings.first_token is not None
    two = client.complete(model, [Message("user", "Oslo too?")], tools=[WEATHER], stop_at_tool_call=True)
    assert [json.loads(str(call.arguments)) for call in two.tool_calls] == [{"city": "Bergen"}]


def test_text_that_is_no_tool_call_reaches_the_caller(client: Client, model: str) -> None:
    """Every character arrives, and the completion does not wait for a call to end."""
    answer = client.complete(model, [Message("user", "Break it")], tools=[WEATHER])
    assert (answer.text, answer.tool_calls, answer.reason) == ("".join(ANSWERS["Break it"]), (), "stop")


def test_unknown_tool_cannot_be_called(client: Client, model: str) -> None:
    """The scripted model would call a hammer; a call that has begun keeps to the tools that there are."""
    answer = client.complete(model, [Message("user", "Another")], tools=[WEATHER], max_tokens=300)
    assert (answer.text.startswith("So: "), "hammer" in answer.text) == (True, False)
    assert {call.name for call in answer.tool_calls} <= {"weather"}


def test_truncated_tool_call_arrives_as_text(client: Client, model: str) -> None:
    """max_tokens cuts the tool call two tokens before its end."""
    whole = ANSWERS["Does it rain?"]
    answer = client.complete(model, [Message("user", "Does it rain?")], tools=[WEATHER], max_tokens=len(whole) - 2)
    assert (answer.text, answer.tool_calls, answer.reason) == ("".join(whole[4:-2]), (), "length")


def test_call_that_ends_where_it_begins_is_never_announced(client: Client, model: str) -> None:
    """The token that begins the call is the last one: its delta has the text, and no pieces of a call that is none."""
    whole = ANSWERS["Does it rain?"]
    with client.generate(model, [Message("user", "Does it rain?")], tools=[WEATHER], max_tokens=10) as stream:
        last = [event for event in stream if isinstance(event, Delta)][-1]
    assert last.text.endswith(whole[9])
    assert last.tool_call_deltas == ()


def test_pieces_of_a_withdrawn_call_are_not_sent_with_it(client: Client, model: str) -> None:
    """The last token ends the arguments, and not the call: with them the call would look whole."""
    with client.generate(model, [Message("user", "Does it rain?")], tools=[WEATHER], max_tokens=11) as stream:
        *_, first, last = [event for event in stream if isinstance(event, Delta)]
    assert [piece.arguments_json for piece in first.tool_call_deltas] == ['{"city"']
    assert [(piece.arguments_json, piece.withdrawn) for piece in last.tool_call_deltas] == [("", True)]


def test_without_tools_call_markup_is_text(client: Client, model: str) -> None:
    """Without tools, call markup is text, because the caller can call nothing."""
    answer = client.complete(model, [Message("user", "Does it rain?")])
    assert (answer.text, answer.tool_calls, answer.reason) == ("".join(ANSWERS["no tools"]), (), "stop")


@pytest.mark.parametrize("required", ["", "weather"])
@pytest.mark.parametrize(
    ("question", "thinks", "reasoning"), [("Does it rain?", None, "Where? In Bergen."), ("Break it", False, "")]
)
def test_required_tool_call_follows_the_reasoning(
    client: Client, model: str, question: str, thinks: bool | None, reasoning: str, required: str
) -> None:
    """The scripted model would write text or a broken call; the token mask forces a valid call."""
    chat = [Message("user", question)]
    options = {"temperature": 1.0, "seed": 7, "logit_bias": {2: 50.0}, "enable_thinking": thinks, "max_tokens": 200}
    answer = client.complete(
        model, chat, tools=[WEATHER], tool_choice="required", required_tool=required, **options  # type: ignore[arg-type]
    )  # fmt: skip
    assert (answer.text.strip(), answer.reasoning, answer.reason) == ("", reasoning, "tool_calls")
    for call in answer.tool_calls:
        assert call.name == "weather"
        jsonschema.validate(json.loads(str(call.arguments)), WEATHER.parameters)


def test_tool_choice_none_hides_tools_from_the_model(client: Client, model: str) -> None:
    """Call markup is text if the tool choice is "none"."""
    answer = client.complete(model, [Message("user", "Does it rain?")], tools=[WEATHER], tool_choice="none")
    assert (answer.text, answer.tool_calls, answer.reason) == ("".join(ANSWERS["no tools"]), (), "stop")


def test_required_call_needs_a_known_call_notation(client: Client) -> None:
    """The error names the field, and the daemon still serves."""
    with pytest.raises(InvalidArgument) as caught:
        client.complete("embedded", [Message("user", "Hi")], tools=[WEATHER], tool_choice="required")
    assert caught.value.field == "chat.tool_choice"
    assert client.complete("embedded", "Hello", max_tokens=1).usage.completion_tokens == 1


HARMONY = {
    "Does it rain?": [
        "<|channel|>analysis", "<|message|>", "Where?", "<|end|><|start|>assistant<|channel|>commentary",
        " to=functions.weather <|constrain|>json<|message|>", '{"city": "Bergen"}', "<|call|>", "never",
    ],
    "Bergen is wet": ["<|channel|>final<|message|>", "It ", "rains.", "<|return|>", "nor that"],
    "other marks": ["<|start|>", "<|channel|>", "<|end|>", "<|constrain|>"],
}  # fmt: skip


HARMONY_TEMPLATE = """\
{%- for message in messages if message.tool_calls and (not message.thinking or message.content) %}
{{- raise_exception("where is what it thought before its call?") }}
{%- endfor %}
""" + TEMPLATE  # fmt: skip
"""Like that of gpt-oss it has one place for what came before a call."""


THINKS = {
    "no tools": ["<|channel|>analysis", "<|message|>", "Hm", "<|end|>", "<|channel|>", "commentary", "<|return|>"],
    "other marks": ["<|start|>", "<|constrain|>", "<|call|>"],
}


@pytest.mark.parametrize(("thinks", "reasoning"), [(None, "Hm"), (False, "")])
def test_gpt_oss_structured_answer_has_its_header(
    client: Client, tmp_path: Path, thinks: bool | None, reasoning: str
) -> None:
    """
    The header is forced after reasoning or without reasoning, whatever the model would write.

    The template reads no switch, but an answer in a form can begin with the form.
    """
    model = str(scripted_model(tmp_path / "harmony", THINKS, TEMPLATE))
    answer = client.complete(model, [Message("user", "Well?")], regex="(Yes|No)", enable_thinking=thinks)
    assert (answer.text in ("Yes", "No"), answer.reasoning, answer.reason) == (True, reasoning, "stop")
    tokenizer = AutoTokenizer.from_pretrained(model)
    written = tokenizer.decode(list(answer.token_ids))
    assert f"<|channel|>final<|message|>{answer.text}" in written


def test_gpt_oss_messages_are_parsed(client: Client, tmp_path: Path) -> None:
    """A tool call ends the answer, even if the model's configuration does not say so."""
    model = str(scripted_model(tmp_path / "harmony", HARMONY, HARMONY_TEMPLATE))
    asked = client.complete(model, [Message("user", "Does it rain?")], tools=[WEATHER])
    assert (asked.text, asked.reasoning, asked.reason) == ("", "Where?", "tool_calls")
    (call,) = asked.tool_calls
    assert (call.name, call.arguments) == ("weather", '{"city": "Bergen"}')
    turn = Message("assistant", "", reasoning_content=asked.reasoning, tool_calls=asked.tool_calls)
    history = [Message("user", "Does it rain?"), turn]
    told = client.complete(model, [*history, Message("tool", "wet", tool_call_id=call.id)], tools=[WEATHER])
    assert (told.text, told.reasoning, told.reason) == ("It rains.", "", "stop")
