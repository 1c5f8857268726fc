"""OpenAI's chat completions: what the events of an answer become."""

from __future__ import annotations

import json
from typing import Any

from daemon.http.generation import collect_samples
from daemon.http.openai.chat_answers import ChatStream, completion
from mlx_sidecar import (
    Delta,
    Finished,
    GeneratedToolCall,
    GenerateEvent,
    Started,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)

TIMINGS = Timings(0.1, 0.0, 0.0, 0.0, 0.1, 0.2, 0.2)
BERGEN = GeneratedToolCall(0, "a1", "weather", '{"city": "Bergen"}')
OSLO = GeneratedToolCall(1, "a2", "weather", '{"city": "Oslo"}')
EVENTS: list[GenerateEvent] = [
    Started("req-7", "org/model", 12, 8),
    Delta("", (1,), (), "Where? "),
    Delta("I look.", (2,), ()),
    Delta("", (3,), (), tool_call_deltas=(ToolCallDelta(0, "a1", "weather", '{"city": ', False),)),
    Delta("", (4,), (), "", (BERGEN,), tool_call_deltas=(ToolCallDelta(0, "", "", '"Bergen"}', False),)),
    Delta("", (5,), (), "", (OSLO,), tool_call_deltas=(ToolCallDelta(1, "a2", "weather", '{"city": "Oslo"}', False),)),
    Finished("tool_calls", "", Usage(12, 8, 6, reasoning_tokens=1), TIMINGS),
]
"""A recorded generation with all that an answer can have."""


def chunks(*, include_usage: bool = False) -> list[dict[str, Any]]:
    """Return the recorded generation as a client gets it."""
    stream = ChatStream(include_usage=include_usage, now=1000.0)
    return [json.loads(one.model_dump_json(exclude_unset=True)) for event in EVENTS for one in stream.chunks(event)]


def test_whole_answer_has_all_parts() -> None:
    """Reasoning, text, calls, reason and usage."""
    found = json.loads(completion(collect_samples(EVENTS), now=1000.0).model_dump_json(exclude_unset=True))
    assert (found["id"], found["created"], found["model"]) == ("chatcmpl-req-7", 1000, "org/model")
    (choice,) = found["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert (message["role"], message["content"], message["reasoning_content"]) == ("assistant", "I look.", "Where? ")
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == [
        '{"city": "Bergen"}',
        '{"city": "Oslo"}',
    ]
    assert found["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 6,
        "total_tokens": 18,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }


def test_answer_of_calls_alone_has_null_content() -> None:
    """And an answer without anything has empty content, as OpenAI's."""
    calls = [EVENTS[0], EVENTS[4], EVENTS[6]]
    assert completion(collect_samples(calls)).choices[0].message.content is None
    nothing = [EVENTS[0], Finished("stop", "", Usage(1, 0, 1), TIMINGS)]
    assert completion(collect_samples(nothing)).choices[0].message.content == ""


def test_streamed_chunks_make_the_same_answer() -> None:
    """The role first, each part in its own field, the reason in a chunk of its own."""
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks()]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[1] == {"reasoning_content": "Where? "}
    assert deltas[2] == {"content": "I look."}
    function = {"name": "weather", "arguments": '{"city": '}
    assert deltas[3] == {"tool_calls": [{"index": 0, "id": "a1", "type": "function", "function": function}]}
    assert deltas[4] == {"tool_calls": [{"index": 0, "function": {"arguments": '"Bergen"}'}}]}
    assert deltas[5]["tool_calls"][0]["index"] == 1
    assert deltas[6] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks()] == [None] * 6 + ["tool_calls"]


def test_call_that_turned_out_to_be_none_keeps_its_index() -> None:
    """The next one gets another, so that no client joins the two."""
    stream = ChatStream(include_usage=False, now=1000.0)
    seen = [
        EVENTS[0],
        Delta("", (3,), (), tool_call_deltas=(ToolCallDelta(0, "a1", "weather", '{"city', False),)),
        Delta("<call>", (3,), (), tool_call_deltas=(ToolCallDelta(0, "", "", "", True),)),
        Delta("", (3,), (), "", (BERGEN,), tool_call_deltas=(ToolCallDelta(0, "a2", "weather", "{}", False),)),
    ]
    deltas = [chunk.choices[0].delta for event in seen for chunk in stream.chunks(event)]
    assert [call.index for delta in deltas for call in delta.tool_calls or ()] == [0, 1]
    assert [delta.content for delta in deltas if delta.content] == ["<call>"]


def test_streamed_usage_comes_last_if_asked_for() -> None:
    """In a chunk without choices; the others have null."""
    found = chunks(include_usage=True)
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["total_tokens"] == 18
    assert [chunk["usage"] for chunk in found[:-1]] == [None] * 7
    assert all("usage" not in chunk for chunk in chunks())


SCORE = TokenLogprob(7, -0.5, (TopLogprob(7, -0.5, " é"), TopLogprob(8, float("-inf"), "b")), " é")
SAMPLES: list[GenerateEvent] = [
    EVENTS[0],
    Delta("b", (7,), (SCORE,), index=1),
    Delta("a", (7,), (SCORE,)),
    Delta("", (7,), (SCORE,), index=1),
    Finished("stop", "", Usage(12, 8, 2), TIMINGS, index=1),
    Finished("length", "", Usage(12, 8, 3), TIMINGS),
]
"""A recorded generation of two samples with scores."""


def test_samples_are_choices_of_one_answer() -> None:
    """In the order of their indexes; the prompt counts once."""
    found = completion(collect_samples(SAMPLES))
    assert [(choice.index, choice.message.content) for choice in found.choices] == [(0, "a"), (1, "b")]
    assert [choice.finish_reason for choice in found.choices] == ["length", "stop"]
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (12, 5)


def test_scores_have_text_bytes_and_the_likeliest() -> None:
    """JSON has no infinity."""
    (first, *_) = completion(collect_samples(SAMPLES)).choices
    assert first.logprobs is not None
    (score,) = json.loads(first.logprobs.model_dump_json())["content"]
    assert (score["token"], score["logprob"], score["bytes"]) == (" é", -0.5, [32, 195, 169])
    assert [one["logprob"] for one in score["top_logprobs"]] == [-0.5, -9999.0]


def test_streamed_samples_have_their_index() -> None:
    """A token without text yet has its score; the usage comes after the last end."""
    stream = ChatStream(samples=2, include_usage=True, now=1000.0)
    found = [chunk for event in SAMPLES for chunk in stream.chunks(event)]
    choices = [chunk.choices[0] for chunk in found if chunk.choices]
    assert [choice.index for choice in choices] == [0, 1, 1, 0, 1, 1, 0]
    scores = [choice.logprobs for choice in choices]
    assert [score is not None for score in scores] == [False, False, True, True, True, False, False]
    assert found[-1].usage is not None
    assert found[-1].usage.completion_tokens == 5
