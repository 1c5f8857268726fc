"""OpenAI's completions of plain prompts: what a request asks of the daemon, and what its events become."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import ValidationError

from daemon.http.access import Policy
from daemon.http.app import build
from daemon.http.errors import Problem
from daemon.http.generation import collect_samples
from daemon.http.openai import API
from daemon.http.openai.completion_types import MOST_PROMPTS, CompletionRequest
from daemon.http.openai.completions import CompletionStream, Echo, asks, completion
from daemon.http.parameters import check
from daemon.shared.config import Config
from mlx_sidecar import (
    AsyncClient,
    Delta,
    Finished,
    GenerateEvent,
    PromptLogprobs,
    Started,
    Timings,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from tests.support.asgi import Request

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
    found = completion(
        request(["one ", "One "], echo=True), [collect_samples(EVENTS)] * 2, [Echo("one "), Echo("One ")], now=5.0
    )
    assert [(choice.index, choice.text) for choice in found.choices] == [(0, "one two three"), (1, "One two three")]
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (6, 6)
    assert found.choices[0].finish_reason == "length"


def test_plain_stream_makes_the_same_text() -> None:
    """A delta without text makes no chunk."""
    asked = request("one ", echo=True, stream=True, stream_options={"include_usage": True})
    stream = CompletionStream(asked, Echo("one "), now=5.0)
    found = [chunk for event in EVENTS for chunk in stream.chunks(event)]
    texts = [chunk.choices[0].text for chunk in found if chunk.choices]
    assert texts == ["one ", "two ", "three", ""]
    assert found[-2].choices[0].finish_reason == "length"
    assert found[-1].usage is not None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": ["a", "b"], "stream": True}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "echo": True, "logprobs": 0, "max_tokens": 0, "n": 2}, "n"),
        ({"prompt": "a", "logprobs": 1, "echo": True, "stream": True}, "echo"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "stream_options": {}}, "stream_options"),
    ],
)
def test_plain_parameters_without_effect_are_refused(fields: dict[str, Any], field: str) -> None:
    """By name."""
    with pytest.raises(Problem) as caught:
        asks(request(**fields))
    assert caught.value.field == field


def test_limit_that_is_null_is_that_of_none() -> None:
    """It is OpenAI's default, and not as much as the context holds."""
    for fields in ({}, {"max_tokens": None}):
        assert asks(request("a", **fields))[0].options["max_tokens"] == 16
    assert asks(request("a", max_tokens=5))[0].options["max_tokens"] == 5


def test_scores_of_an_echoed_prompt_come_first() -> None:
    """As lm-eval reads them: an entry for each token, without a score for the prompt's first one."""
    asked = request([1, 2, 3], echo=True, logprobs=1)
    options = asks(asked)[0].options
    assert (options["prompt_logprobs"], options["top_logprobs"]) == (1, 1)

    def score(text: str, logprob: float) -> TokenLogprob:
        return TokenLogprob(1, logprob, (TopLogprob(1, logprob, text),), text)

    seen = [
        EVENTS[0],
        PromptLogprobs(1, (score("b", -1), score("c", -2))),
        Delta("d", (4,), (score("d", -3),)),
        EVENTS[4],
    ]
    (choice,) = completion(asked, [collect_samples(seen)], [Echo("abc", "a")]).choices
    assert choice.text == "abcd"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["a", "b", "c", "d"]
    assert choice.logprobs.token_logprobs == [None, -1, -2, -3]
    assert choice.logprobs.top_logprobs == [None, {"b": -1}, {"c": -2}, {"d": -3}]
    assert choice.logprobs.text_offset == [0, 1, 2, 3]


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_are_places_in_the_text(stream: bool) -> None:
    """Whatever a token tells of itself: a part of a character, a mark that is no text, a space that the text lost."""
    asked = request("Say", logprobs=0, stream=stream)
    told = [
        (" a", "a"),
        ("\ufffd", ""),
        ("\ufffd", ""),
        ("\ufffd", "🙂"),
        (" b", " b"),
        ("<|end|>", ""),
        ("b c", "b c"),
        ("d\ufffd", ""),
        ("\ufffde", "dée"),
        (".", "."),
    ]
    seen = [EVENTS[0], *(Delta(text, (1,), (TokenLogprob(1, -1, (), token),)) for token, text in told), EVENTS[4]]
    if stream:
        made = CompletionStream(asked)
        chunks = [chunk.choices[0].logprobs for event in seen for chunk in made.chunks(event)]
        offsets = [offset for scores in chunks if scores is not None for offset in scores.text_offset]
    else:
        (choice,) = completion(asked, [collect_samples(seen)], [Echo()]).choices
        assert choice.text == "a🙂 bb cdée."
        assert choice.logprobs is not None
        offsets = choice.logprobs.text_offset
    at = "a🙂 bb cdée.".index
    # Of a character in parts, only the place before it is known.
    assert [offsets[number] for number in (0, 1, 4, 6, 7, 9)] == [0, offsets[1], at(" b"), at("b c"), at("d"), at(".")]
    assert offsets == sorted(offsets)


def test_likeliest_of_tokens_with_one_text_counts() -> None:
    """Tokens that are parts of characters have the same text."""
    top = (TopLogprob(1, -1, "\ufffd"), TopLogprob(2, -2, "a"), TopLogprob(3, -3, "\ufffd"))
    seen = [EVENTS[0], Delta("é", (1,), (TokenLogprob(1, -1, top, "\ufffd"),)), EVENTS[4]]
    (choice,) = completion(request("b", logprobs=3), [collect_samples(seen)], [Echo()]).choices
    assert choice.logprobs is not None
    assert choice.logprobs.top_logprobs == [{"\ufffd": -1, "a": -2}]


def test_echoed_text_is_the_text_of_its_tokens() -> None:
    """The first one too, whose text the daemon does not tell."""
    asked = request("ab", echo=True, logprobs=0)
    seen = [EVENTS[0], PromptLogprobs(1, (TokenLogprob(1, -1, (), "b"),)), Delta("c", (4,), ()), EVENTS[4]]
    (choice,) = completion(asked, [collect_samples(seen)], [Echo("ab")]).choices
    assert choice.logprobs is not None
    assert (choice.logprobs.tokens, choice.logprobs.text_offset) == (["a", "b"], [0, 1])


def test_offsets_of_a_stream_go_on_in_each_answer() -> None:
    """Each chunk begins where the one before it ended, as in a whole answer."""
    stream = CompletionStream(request("a", n=2, logprobs=0))
    scored = [(0, "ab"), (1, "x"), (0, "c"), (1, "y")]
    deltas = [Delta(text, (1,), (TokenLogprob(1, -1, (), text),), index=index) for index, text in scored]
    choices = [chunk.choices[0] for event in [EVENTS[0], *deltas] for chunk in stream.chunks(event)]
    assert [(one.index, one.logprobs and one.logprobs.text_offset) for one in choices] == [
        (0, [0]), (1, [0]), (0, [2]), (1, [1]),
    ]  # fmt: skip


def test_prompt_can_be_scored_without_an_answer() -> None:
    """The daemon refuses options of an answer then."""
    options = asks(request("a b", echo=True, logprobs=0, max_tokens=0, temperature=0, seed=1))[0].options
    assert {name: value for name, value in options.items() if value != ""} == {"max_tokens": 0, "prompt_logprobs": 0}


class Counting(AsyncClient):
    """
    A client that answers each prompt with itself.

    Attributes:
        open: Answers that are being made.
        most: The most of them at a time.
    """

    def __init__(self) -> None:
        super().__init__("/nowhere/s.sock")
        self.open = self.most = 0

    def generate(self, model: str, prompt: Any, **options: Any) -> Any:
        return self._answer(prompt)

    @asynccontextmanager
    async def _answer(self, prompt: str) -> AsyncIterator[Any]:
        self.open += 1
        self.most = max(self.most, self.open)

        async def events() -> AsyncIterator[GenerateEvent]:
            for event in (EVENTS[0], Delta(prompt, (5,), ()), EVENTS[-1]):
                await asyncio.sleep(0)
                yield event

        yield events()
        self.open -= 1


async def test_prompts_of_a_request_do_not_fill_the_queue() -> None:
    """The daemon refuses a request beyond `max_queue`, and with it all prompts of this one."""
    prompts = [f"p{number}" for number in range(MOST_PROMPTS)]
    client = Counting()
    app = build(client, Policy(None, loopback_only=False), [API])
    body = json.dumps({"model": "m", "prompt": prompts}).encode()
    response = await Request("POST", "/v1/completions", body).to(app)
    assert [choice["text"] for choice in response.json["choices"]] == prompts
    assert client.most <= Config().max_batch < Config().max_queue
