"""Ollama's chat and generate: what a request asks of the daemon, and what recorded events become. No daemon runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from daemon.http.errors import Problem
from daemon.http.generation import collect
from daemon.http.ollama import chat, generate
from daemon.http.ollama.chat import ChatAnswer
from daemon.http.ollama.chat_types import ChatRequest
from daemon.http.ollama.figures import Figures, scores
from daemon.http.ollama.generate import GenerateAnswer
from daemon.http.ollama.generate_types import GenerateRequest
from daemon.http.ollama.names import daemon_name
from daemon.http.ollama.shared_types import FOREVER, seconds
from daemon.http.parameters import check
from mlx_sidecar import (
    Delta,
    Finished,
    GeneratedToolCall,
    GenerateEvent,
    Message,
    Started,
    Timings,
    TokenLogprob,
    Tool,
    ToolCall,
    TopLogprob,
    Usage,
)

SCORE = TokenLogprob(1, -0.5, (TopLogprob(7, -0.75, "é"),), "Wh")
EVENTS: list[GenerateEvent] = [
    Started("req-7", "org/model", 12, 8, warnings=("a note",)),
    Delta("", (1,), (SCORE,), "Where? "),
    Delta("I look.", (2,), ()),
    Delta("", (3, 4), (), "", (GeneratedToolCall(0, "a1", "weather", '{"city": "Bergen"}'),)),
    Finished(
        "tool_calls",
        "",
        Usage(12, 8, 6),
        Timings(queue=0.1, load=0.5, lookup=0.001, restore=0.002, prefill=0.25, decode=1.5, first_token=0.9),
    ),
]
"""A recorded generation with all that an answer can have."""
LAST = {
    "done": True,
    "done_reason": "stop",
    "total_duration": 3_000_000_000,
    "load_duration": 2_500_000_000,
    "prompt_eval_count": 12,
    "prompt_eval_duration": 253_000_000,
    "eval_count": 6,
    "eval_duration": 1_500_000_000,
    "warnings": ["a note"],
}
"""The figures of its end, three seconds after the request came, two of which went into a load."""
SCORES = [
    {
        "token": "Wh",
        "logprob": -0.5,
        "bytes": [87, 104],
        "top_logprobs": [{"token": "é", "logprob": -0.75, "bytes": [195, 169]}],
    }
]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "of a city", "parameters": {"type": "object"}},
}


def chat_request(**fields: Any) -> ChatRequest:
    """Return a chat request that was read from JSON."""
    given = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    read = ChatRequest.model_validate_json(json.dumps(given))
    check(read)
    return read


def generate_request(**fields: Any) -> GenerateRequest:
    """Return a generate request that was read from JSON."""
    read = GenerateRequest.model_validate_json(json.dumps({"model": "m", "prompt": "Hi", **fields}))
    check(read)
    return read


def options(**fields: Any) -> dict[str, Any]:
    """Return the options that a chat request asks for, without those that are unset or always there."""
    asked = {name: value for name, value in chat.ask(chat_request(**fields)).options.items() if value is not None}
    assert asked.pop("model_defaults") is True
    return asked


def figures(model: str = "m:latest") -> Figures:
    """Return the figures of a request that came three seconds ago."""
    times: Iterator[float] = iter([1000.0])
    return Figures(model, lambda: next(times, 1003.0), loading=2.0)


def pieces(answer: ChatAnswer | GenerateAnswer) -> list[dict[str, Any]]:
    """Return the recorded generation as a client gets it."""
    found = [json.loads(one.model_dump_json(exclude_unset=True)) for event in EVENTS for one in answer.pieces(event)]
    for piece in found:
        assert (piece.pop("model"), piece.pop("created_at")) == ("m:latest", "1970-01-01T00:16:43.000000Z")
    return found


def test_results_answer_calls_by_name_and_order() -> None:
    """Calls without ids get lasting ones; a result takes the first open call of its tool."""
    calls = [{"function": {"name": name, "arguments": {"n": n}}} for n, name in enumerate(["a", "b", "a"])]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_name": "b", "content": "of b"},
        {"role": "tool", "content": "of a"},
        {"role": "tool", "tool_name": "a", "content": "of a again"},
        {"role": "tool", "tool_name": "c", "content": "of none"},
        {"role": "assistant", "tool_calls": [{"id": "own", "function": {"name": "a"}}]},
        {"role": "tool", "tool_call_id": "own", "content": "of own"},
    ]
    assert chat.ask(chat_request(messages=messages)).prompt == [
        Message("system", "Be brief.", tool_calls=[]),
        Message(
            "assistant",
            "",
            "Hm.",
            [
                ToolCall("call00000", "a", {"n": 0}),
                ToolCall("call00001", "b", {"n": 1}),
                ToolCall("call00002", "a", {"n": 2}),
            ],
        ),
        Message("tool", "of b", tool_calls=[], tool_call_id="call00001"),
        Message("tool", "of a", tool_calls=[], tool_call_id="call00000"),
        Message("tool", "of a again", tool_calls=[], tool_call_id="call00002"),
        Message("tool", "of none", tool_calls=[]),
        Message("assistant", "", tool_calls=[ToolCall("own", "a", {})]),
        Message("tool", "of own", tool_calls=[], tool_call_id="own"),
    ]


def test_text_of_the_assistant_is_continued() -> None:
    """A turn that says nothing, or calls a tool, is none to go on with."""
    asked = {"role": "user", "content": "Hi"}
    call = {"function": {"name": "look", "arguments": {}}}
    assert options(messages=[asked, {"role": "assistant", "content": "Well,"}])["continue_final_message"]
    for last in (asked, {"role": "assistant", "content": ""}, {"role": "assistant", "tool_calls": [call]}):
        assert "continue_final_message" not in options(messages=[asked, last])


def test_options_are_passed_on() -> None:
    """Under the daemon's names; those about llama.cpp change nothing."""
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.1,
        "seed": -2,
        "num_predict": 9,
        "stop": "x",
        "repeat_penalty": 1.1,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "num_ctx": 8192,
        "num_gpu": 1,
    }
    assert options(options=given) == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 0,
        "min_p": 0.1,
        "seed": 2**64 - 2,
        "max_tokens": 9,
        "stop": ["x"],
        "repetition_penalty": 1.1,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
    }


def test_options_without_effect_are_left_out() -> None:
    """The daemon refuses them; and a choice among tokens has Ollama's temperature, if the request has none."""
    assert options(options={"temperature": 0, "top_p": 0.9, "top_k": 5, "seed": 7}) == {"temperature": 0.0}
    assert options(options={"seed": -1}) == {}
    assert options(options={"seed": 7}) == {"seed": 7}
    assert options(options={"top_p": 0.9}) == {"temperature": 0.8, "top_p": 0.9}
    assert options(options={"num_predict": -2}) == {"max_tokens": 2**31 - 1}


def test_format_thinking_and_tools_are_passed_on() -> None:
    """In all their forms."""
    assert options(format="json") == {"json_schema": {"type": "object"}}
    assert options(format={"type": "array"}) == {"json_schema": {"type": "array"}}
    assert options(format="") == options() == {}
    assert options(think=True) == {"enable_thinking": True}
    assert options(think="low") == {"reasoning_effort": "low"}
    assert options(think=False) == {"enable_thinking": False}
    assert options(logprobs=True) == {"top_logprobs": 0}
    assert options(logprobs=True, top_logprobs=3) == {"top_logprobs": 3}
    assert options(tools=[TOOL]) == {"tools": [Tool("weather", "of a city", {"type": "object"})]}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"frobnicate": 1}, "frobnicate"),
        ({"truncate": True}, "truncate"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"options": {"num_predict": 0}}, "options.num_predict"),
        ({"options": {"mirostat": 1}}, "options.mirostat"),
        ({"options": {"repeat_last_n": 64}}, "options.repeat_last_n"),
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages[0].images"),
    ],
)
def test_chat_refuses_by_name(fields: dict[str, Any], field: str) -> None:
    """A parameter is never silently ignored."""
    with pytest.raises(Problem) as caught:
        chat.ask(chat_request(**fields))
    assert (caught.value.status, caught.value.field) == (400, field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1]}, "context"),
        ({"images": ["aGk="]}, "images"),
        ({"raw": True, "system": "Be brief."}, "system"),
        ({"raw": True, "think": True}, "think"),
        ({"raw": True, "think": "low"}, "think"),
    ],
)
def test_generate_refuses_by_name(fields: dict[str, Any], field: str) -> None:
    """What asks for nothing is accepted."""
    generate.ask(generate_request(suffix="", context=[], template="", images=[], raw=False))
    with pytest.raises(Problem) as caught:
        generate.ask(generate_request(**fields))
    assert (caught.value.status, caught.value.field) == (400, field)


def test_prompt_is_a_conversation_unless_it_is_raw() -> None:
    """With the system's turn before it."""
    assert generate.ask(generate_request(raw=True, think=False)).prompt == "Hi"
    assert generate.ask(generate_request()).prompt == [Message("user", "Hi")]
    system = generate.ask(generate_request(system="Be brief.")).prompt
    assert system == [Message("system", "Be brief."), Message("user", "Hi")]


def test_chat_pieces_have_all_parts() -> None:
    """Each in its own piece, with the figures in the last."""
    call = {"id": "a1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Bergen"}}}
    start = {"role": "assistant", "content": ""}
    assert pieces(ChatAnswer(figures())) == [
        {"message": {**start, "thinking": "Where? "}, "done": False, "logprobs": SCORES},
        {"message": {"role": "assistant", "content": "I look."}, "done": False},
        {"message": {**start, "tool_calls": [call]}, "done": False},
        {"message": start, **LAST},
    ]
    whole = json.loads(ChatAnswer(figures("m")).whole(collect(EVENTS)).model_dump_json(exclude_unset=True))
    message = {"role": "assistant", "content": "I look.", "thinking": "Where? ", "tool_calls": [call]}
    assert whole == {
        "model": "m",
        "created_at": "1970-01-01T00:16:43.000000Z",
        "message": message,
        **LAST,
        "logprobs": SCORES,
    }


def test_score_of_an_impossible_token_is_a_number() -> None:
    """JSON has no infinity, and clients refuse null."""
    (score,) = scores([TokenLogprob(1, -math.inf, (TopLogprob(7, -math.inf, "a"),), "b")])["logprobs"]
    written = json.loads(score.model_dump_json())
    assert (written["logprob"], written["top_logprobs"][0]["logprob"]) == (-9999.0, -9999.0)


def test_generate_pieces_have_text_and_thinking() -> None:
    """Calls do not come: it takes no tools."""
    assert pieces(GenerateAnswer(figures())) == [
        {"response": "", "thinking": "Where? ", "done": False, "logprobs": SCORES},
        {"response": "I look.", "done": False},
        {"response": "", **LAST},
    ]
    whole = GenerateAnswer(figures("m")).whole(collect(EVENTS))
    assert (whole.response, whole.thinking, whole.eval_count) == ("I look.", "Where? ", 6)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        ("-1s", FOREVER),
        ("-1", FOREVER),
        ("90", 90.0),
        (0, 0.0),
        ("0", 0.0),
        (-1, FOREVER),
        (2.5, 2.5),
    ],
)
def test_durations_are_read_as_ollama_reads_them(value: Any, found: float) -> None:
    """Text of Go, and numbers of seconds."""
    assert seconds(value) == pytest.approx(found)


@pytest.mark.parametrize("value", ["", "5 m", "m", "1d", "nan", "1e9s", "9" * 20 + "h", 1e300, True, [], {}])
def test_no_durations_are_refused(value: Any) -> None:
    """With the parameter's name."""
    with pytest.raises((ValidationError, Problem)) as caught:
        chat_request(keep_alive=value)
    assert "keep_alive" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("qwen3:latest", "qwen3"),
        ("qwen3:8b", "qwen3:8b"),
        ("hf.co/org/name", "org/name"),
        ("HuggingFace.co/org/name:latest", "org/name"),
        ("/models/name", "/models/name"),
        ("embedded", "embedded"),
    ],
)
def test_names_lose_what_ollama_adds(given: str, name: str) -> None:
    """The tag that says nothing, and the Hub's address."""
    assert daemon_name(given) == name
