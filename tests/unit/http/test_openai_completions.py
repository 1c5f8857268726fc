"""OpenAI's completions of plain prompts: what a request asks of the daemon, and what its events become."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from daemon.http.errors import Problem
from daemon.http.generation import collect
from daemon.http.openai.completion_types import CompletionRequest
from daemon.http.openai.completions import CompletionStream, asks, completion
from daemon.http.parameters import check
from mlx_sidecar import Delta, Finished, GenerateEvent, Started, Timings, Usage

EVENTS: list[GenerateEvent] = [
    Started("req-7", "m", 3, 1),
    Delta("two ", (5,), ()),
    Delta("", (6,), ()),
    Delta("three", (7,), ()),
    Finished("length", "", Usage(3, 1, 3), Timings(0.1, 0.0, 0.0, 0.0, 0.1, 0.2, 0.2)),
]


def request(prompt: Any, **fields: Any) -> CompletionRequest:
    """Return a request that was read from JSON."""
    read = CompletionRequest.model_validate_json(json.dumps({"model": "m", "prompt": prompt, **fields}))
    check(read)
    return read


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["one", [3]], ["one", [3]]),
    ],
)
def test_prompts_have_four_forms(prompt: Any, prompts: list[Any]) -> None:
    """Text, token ids, and lists of either."""
    assert [one.prompt for one in asks(request(prompt))] == prompts


@pytest.mark.parametrize("prompt", [None, 1, {}, [None], [[True]], [1, "x"], {"text": "x"}, [["x"]]])
def test_prompt_of_another_form_is_refused(prompt: Any) -> None:
    """With the name of the field."""
    with pytest.raises(ValidationError) as caught:
        request(prompt)
    assert caught.value.errors()[0]["loc"][0] == "prompt"


def test_plain_answers_come_in_order_with_their_sum() -> None:
    """The usage is that of all."""
    found = completion(request(["one ", "One "], echo=True), [collect(EVENTS), collect(EVENTS)], now=5.0)
    assert [(choice.index, choice.text) for choice in found.choices] == [(0, "one two three"), (1, "One two three")]
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (6, 6)
    assert found.choices[0].finish_reason == "length"


def test_plain_stream_makes_the_same_text() -> None:
    """A delta without text makes no chunk."""
    stream = CompletionStream(echo="one ", include_usage=True, now=5.0)
    found = [chunk for event in EVENTS for chunk in stream.chunks(event)]
    texts = [chunk.choices[0].text for chunk in found if chunk.choices]
    assert texts == ["one ", "two ", "three", ""]
    assert found[-2].choices[0].finish_reason == "length"
    assert found[-1].usage is not None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": ["a", "b"], "stream": True}, "prompt"),
        ({"prompt": [1], "echo": True}, "echo"),
        ({"prompt": "a", "logprobs": 1}, "logprobs"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "stream_options": {}}, "stream_options"),
    ],
)
def test_plain_parameters_without_effect_are_refused(fields: dict[str, Any], field: str) -> None:
    """By name."""
    with pytest.raises(Problem) as caught:
        asks(request(**fields))
    assert caught.value.field == field
