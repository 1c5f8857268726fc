"""Anthropic's answers: what the events of a generation become, whole and as a stream."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from daemon.http.anthropic.answers import MessageStream, message
from daemon.http.anthropic.signatures import signature
from mlx_sidecar import Delta, Finished, GeneratedToolCall, GenerateEvent, Started, Timings, ToolCallDelta, Usage

TIMINGS = Timings(0.1, 0.0, 0.0, 0.0, 0.1, 0.2, 0.2)
BERGEN = GeneratedToolCall(0, "a1", "weather", '{"city": "Bergen"}')
OSLO = GeneratedToolCall(1, "a2", "weather", '{"city": "Oslo"}')
END = Finished("tool_calls", "", Usage(12, 8, 6, reasoning_tokens=2), TIMINGS)
EVENTS: list[GenerateEvent] = [
    Started("req-7", "org/model", 12, 8),
    Delta("", (1,), (), "Where"),
    Delta("", (1,), (), "? "),
    Delta("I look.", (2,), ()),
    Delta("", (3,), (), tool_call_deltas=(ToolCallDelta(0, "a1", "weather", '{"city": ', False),)),
    Delta("", (4,), (), "", (BERGEN,), tool_call_deltas=(ToolCallDelta(0, "", "", '"Bergen"}', False),)),
    Delta("", (5,), (), "", (OSLO,), tool_call_deltas=(ToolCallDelta(1, "a2", "weather", '{"city": "Oslo"}', False),)),
    END,
]
"""A recorded generation with all that an answer can have."""


def streamed(seen: Sequence[GenerateEvent] = EVENTS, **options: Any) -> list[dict[str, Any]]:
    """Return a generation as a client gets it."""
    stream = MessageStream(**options)
    return [json.loads(one.model_dump_json()) for event in seen for one in stream.events(event)]


def whole(seen: Sequence[GenerateEvent] = EVENTS, **options: Any) -> dict[str, Any]:
    """Return a generation as one message."""
    found: dict[str, Any] = json.loads(message(seen, **options).model_dump_json())
    return found


def joined(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that a client makes of a stream, checking the order of its events."""
    assert [events[0]["type"], events[-2]["type"], events[-1]["type"]] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]
    content: list[dict[str, Any]] = []
    opened = None
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert opened is None
            assert event["index"] == len(content)
            opened = {
                **event["content_block"],
                **({"input": ""} if event["content_block"]["type"] == "tool_use" else {}),
            }
            continue
        assert opened is not None
        assert event["index"] == len(content)
        if event["type"] == "content_block_stop":
            content.append(opened)
            opened = None
            continue
        names = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
        kind = event["delta"].pop("type")
        (piece,) = event["delta"].values()
        opened[names.get(kind, "input")] += piece
    assert opened is None
    for block in content:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block["input"] or "{}")
    end = events[-2]
    return {**events[0]["message"], **end["delta"], "usage": end["usage"], "content": content}


def test_whole_answer_has_all_parts() -> None:
    """Thinking with its signature, text, calls, reason and usage."""
    found = whole()
    assert (found["id"], found["model"], found["role"]) == ("msg_req-7", "org/model", "assistant")
    assert found["content"] == [
        {"type": "thinking", "thinking": "Where? ", "signature": signature("Where? ", omitted=False)},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "a1", "name": "weather", "input": {"city": "Bergen"}},
        {"type": "tool_use", "id": "a2", "name": "weather", "input": {"city": "Oslo"}},
    ]
    assert (found["stop_reason"], found["stop_sequence"]) == ("tool_use", None)


def test_streamed_events_make_the_same_answer() -> None:
    """Block by block, in the order that SDKs rely on."""
    assert joined(streamed()) == whole()
    assert joined(streamed(kept=300.0, omitted=True)) == whole(kept=300.0, omitted=True)


def test_stream_begins_with_the_tokens_of_the_prompt() -> None:
    """Before the first token: clients show them."""
    (start, *_) = streamed()
    assert start["message"]["content"] == []
    assert start["message"]["stop_reason"] is None
    assert (start["message"]["usage"]["input_tokens"], start["message"]["usage"]["cache_read_input_tokens"]) == (4, 8)


def test_arguments_are_streamed_as_they_are_written() -> None:
    """Piece by piece, in a block for each call."""
    deltas = [event["delta"] for event in streamed() if event["type"] == "content_block_delta"]
    assert [one["partial_json"] for one in deltas if one["type"] == "input_json_delta"] == [
        '{"city": ',
        '"Bergen"}',
        '{"city": "Oslo"}',
    ]


def test_call_that_turned_out_to_be_none_becomes_text() -> None:
    """A stream cannot take back the block, but its answer does not end with a call."""
    seen = [
        EVENTS[0],
        EVENTS[4],
        Delta("<call> that.", (3,), (), tool_call_deltas=(ToolCallDelta(0, "", "", "", True),)),
        replace(END, reason="stop"),
    ]
    events = streamed(seen)
    blocks = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert blocks == ["tool_use", "text"]
    assert [event["type"] for event in events].count("content_block_stop") == 2
    assert events[-2]["delta"]["stop_reason"] == "end_turn"
    assert whole(seen)["content"] == [{"type": "text", "text": "<call> that."}]


def test_pieces_of_a_lagging_client_keep_their_order() -> None:
    """The rest of a call, the text after it and the next call come in one delta."""
    rest = ToolCallDelta(0, "", "", '"Bergen"}', False)
    begun = ToolCallDelta(1, "a2", "weather", '{"city": "Oslo"}', False)
    lagging = Delta(" And ", (3,), (), "", (BERGEN, OSLO), tool_call_deltas=(rest, begun))
    found = joined(streamed([EVENTS[0], EVENTS[4], lagging, END]))
    assert found == whole([EVENTS[0], EVENTS[4], lagging, END])
    assert [(block["type"], block.get("input") or block.get("text")) for block in found["content"]] == [
        ("tool_use", {"city": "Bergen"}),
        ("text", " And "),
        ("tool_use", {"city": "Oslo"}),
    ]


def test_omitted_thinking_is_in_its_signature() -> None:
    """So that it comes back with the next request."""
    found = whole(omitted=True)
    assert found["content"][0] == {
        "type": "thinking",
        "thinking": "",
        "signature": signature("Where? ", omitted=True),
    }
    assert not [event for event in streamed(omitted=True) if event.get("delta", {}).get("type") == "thinking_delta"]


def test_each_thinking_has_a_signature_of_its_own() -> None:
    """A model may think again after it has written."""
    seen = [EVENTS[0], Delta("", (1,), (), "One"), Delta("A", (1,), ()), Delta("", (1,), (), "Two"), END]
    found = joined(streamed(seen))
    assert found == whole(seen)
    assert [block["signature"] for block in found["content"] if block["type"] == "thinking"] == [
        signature("One", omitted=False),
        signature("Two", omitted=False),
    ]


def test_answers_end_as_the_api_calls_it() -> None:
    """Four ways, and the text that stopped it."""
    reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
    for given, told in reasons.items():
        assert whole([EVENTS[0], replace(END, reason=given)])["stop_reason"] == told
    stopped = whole([EVENTS[0], replace(END, reason="stop", stop_match="x")])
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "x")
    assert stopped["content"] == []


def test_usage_tells_what_was_read_and_what_is_kept() -> None:
    """The three are the tokens of the prompt. Without a mark nothing counts as kept."""
    for kept, expected in ((None, (4, 0, 8, 0, 0)), (300.0, (0, 4, 8, 4, 0)), (3600.0, (0, 4, 8, 0, 4))):
        found = whole(kept=kept)["usage"]
        creation = found["cache_creation"]
        assert (
            found["input_tokens"],
            found["cache_creation_input_tokens"],
            found["cache_read_input_tokens"],
            creation["ephemeral_5m_input_tokens"],
            creation["ephemeral_1h_input_tokens"],
        ) == expected
        assert (found["output_tokens"], found["output_tokens_details"]["thinking_tokens"]) == (6, 2)
