"""A day of an agent: the calls that it makes, in order, and what has to come back, for every client alike."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_sidecar import Delta, Finished, Message, PromptLogprobs, Started, Tool, ToolCall
from tests.support.scripted_model import scripted_model

TEMPLATE = """\
{%- for tool in tools or [] %}
{{- '<|im_start|>tool ' ~ tool.function.name ~ '<|im_end|>\n' }}
{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>' ~ {'name': call.function.name, 'arguments': call.function.arguments} | tojson ~ '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- else %}
{{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content }}
{%- endif %}
{%- endfor %}
"""
"""An answer follows its question directly, so that each prompt goes on from the whole of the one before it."""

CALLS = 4
PIECES = {number: [f" {number}.{piece}" for piece in range(10, 25)] for number in range(1, CALLS + 1)}
"""The word of each call: so many tokens that a reader that lags a little still gets its beginning before its end."""
WORDS = {number: f"No. {number}" + "".join(pieces) for number, pieces in PIECES.items()}
QUESTION, RESULTS = "Find four words.", [f"found {word}" for word in WORDS.values()]
BEGIN = '<tool_call>{"name": "find", "arguments": {"word": "No. '
ANSWERS = {
    **{
        before: [f"{BEGIN}{number}", *pieces[:-1], pieces[-1] + '"}}</tool_call>']
        for before, (number, pieces) in zip((QUESTION, *RESULTS[:-1]), PIECES.items(), strict=True)
    },
    RESULTS[-1]: ["All ", "are found."],
    "Think about it.": ["<think>", "Well", ", well", ", so", "</think>", "It is ", "done."],
    "Say it.": ["That is ", "said."],
}  # fmt: skip
THOUGHTS = 2
FIND = Tool(
    "find",
    "Finds a word",
    {
        "type": "object",
        "properties": {"word": {"type": "string"}},
        "required": ["word"],
        "additionalProperties": False,
    },
)
SYSTEM = " ".join(f"Rule {number}: words of kind {number} are found in book {number}." for number in range(12))
HOUR = 3600.0
BLOCK = 16


def model(path: Path) -> Path:
    """Write the model that the agent talks to, and return its directory."""
    return scripted_model(path, ANSWERS, TEMPLATE)


@dataclass(frozen=True, slots=True)
class Ask:
    """
    A call to make.

    Attributes:
        method: The method of the clients, such as "generate"; a stream is answered with all of its events.
        arguments: Its positional arguments.
        options: Its keyword arguments.
    """

    method: str
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


Day = Generator[Ask, Any, None]


def a_day(chat: str, vectors: str, salt: str) -> Day:
    """
    Yield the calls of a day, and check what is sent back for each.

    Args:
        chat: The model that `model` wrote.
        vectors: A model for embeddings.
        salt: Keeps this day's prefixes apart from those of others.
    """
    yield from _choice_of_a_model(chat, vectors)
    yield from _four_calls(chat, salt)
    yield from _thoughts(chat, salt)
    yield from _explained_retry(chat, salt)
    yield from _numbers(chat, vectors, salt)


def _choice_of_a_model(chat: str, vectors: str) -> Day:
    """The models of the machine tell what they can."""
    listed = yield Ask("list_models")
    can = {entry.model: entry.can for entry in listed.models}
    assert can[chat].chat
    assert can[chat].tools
    assert can[vectors].embeddings
    assert not can[chat].embeddings


def _four_calls(chat: str, salt: str) -> Day:
    """A kept system prompt, and a conversation in which each prompt goes on from the one before it."""
    talk = [Message("system", SYSTEM), Message("user", QUESTION)]
    counted = yield Ask("tokenize", (chat, talk), {"tools": [FIND], "count_only": True})
    seen, early = 0, []
    for number, result in enumerate(RESULTS, 1):
        options = {"tools": [FIND], "salt": salt, **({"keep": HOUR} if number == 1 else {})}
        events = yield Ask("generate", (chat, talk), options)
        started, finished = events[0], events[-1]
        assert isinstance(started, Started)
        assert isinstance(finished, Finished)
        if number == 1:
            assert started.prompt_tokens == counted.count
            assert (started.cached_tokens, started.miss and started.miss.reason) == (0, "never_seen")
            yield from _kept()
        assert started.cached_tokens >= seen - BLOCK, "the prompt goes on from the one before it and its answer"
        seen = started.prompt_tokens + finished.usage.completion_tokens
        call, begun = _streamed_call(list(events), number)
        early.append(begun)
        talk += [Message("assistant", "", tool_calls=[call]), Message("tool", result, tool_call_id=call.id)]
    assert "".join(early), "arguments come before the call is whole"
    events = yield Ask("generate", (chat, talk), {"tools": [FIND], "salt": salt})
    assert _text(events) == "All are found."
    assert events[0].cached_tokens >= seen - BLOCK


def _streamed_call(events: list[Any], number: int) -> tuple[ToolCall, str]:
    """Return the one call of an answer, and what came of its arguments before it; nothing, to a lagging reader."""
    deltas = [event for event in events if isinstance(event, Delta)]
    pieces = [piece for delta in deltas for piece in delta.tool_call_deltas]
    early = [piece for delta in deltas if not delta.tool_calls for piece in delta.tool_call_deltas]
    (call,) = (call for delta in deltas for call in delta.tool_calls)
    assert "".join(piece.arguments_json for piece in pieces) == call.arguments_json
    assert (pieces[0].name, pieces[0].id) == (call.name, call.id)
    assert json.loads(call.arguments_json) == {"word": WORDS[number]}
    assert events[-1].reason == "tool_calls"
    return ToolCall(call.id, call.name, call.arguments_json), "".join(piece.arguments_json for piece in early)


def _kept() -> Day:
    """The system prompt is among what the daemon keeps, for an hour."""
    stats = yield Ask("stats")
    assert any(HOUR - 300 < kept.expires_in <= HOUR for kept in stats.prefix_cache.kept)


def _thoughts(chat: str, salt: str) -> Day:
    """Reasoning is cut at its budget, and the answer follows."""
    talk = [Message("user", "Think about it.")]
    events = yield Ask("generate", (chat, talk), {"reasoning_budget": THOUGHTS, "salt": salt})
    deltas = [event for event in events if isinstance(event, Delta)]
    assert "".join(delta.reasoning for delta in deltas) == "Well, well"
    assert _text(events) == "It is done."
    assert events[-1].usage.reasoning_tokens == THOUGHTS + 2, "with both marks"


def _explained_retry(chat: str, salt: str) -> Day:
    """An edit within the system prompt costs what comes behind it, and the answer names the place."""
    edited = SYSTEM.replace("Rule 9:", "Rule nine:")
    talk = [Message("system", edited), Message("user", QUESTION)]
    events = yield Ask("generate", (chat, talk), {"tools": [FIND], "salt": salt})
    miss, place = events[0].miss, edited.index("nine")
    assert (miss.reason, miss.message) == ("diverged", 0)
    assert place - 8 < miss.character <= place
    assert miss.token - BLOCK < events[0].cached_tokens <= miss.token


def _numbers(chat: str, vectors: str, salt: str) -> Day:
    """An embedding, two samples, and the scores of a text."""
    found = yield Ask("embed", (vectors, ["a ship", "a bird"]), {"salt": salt})
    assert [len(vector) for vector in found.vectors] == [found.dimensions] * 2
    options = {"samples": 2, "temperature": 1.0, "seed": 7, "salt": salt}
    events = yield Ask("generate", (chat, [Message("user", "Say it.")]), options)
    ends = [event for event in events if isinstance(event, Finished)]
    assert {end.index: end.seed for end in ends}.keys() == {0, 1}
    assert len({end.seed for end in ends}) == 2
    assert [_text(events, index) for index in (0, 1)] == ["That is said."] * 2
    options = {"max_tokens": 0, "prompt_logprobs": 1, "salt": salt}
    events = yield Ask("generate", (chat, "The sea is wide."), options)
    scores = [score for event in events if isinstance(event, PromptLogprobs) for score in event.logprobs]
    assert len(scores) == events[-1].usage.prompt_tokens - 1
    assert all(score.logprob <= 0 and score.top and score.text for score in scores)


def _text(events: list[Any], index: int = 0) -> str:
    return "".join(_texts(events, index))


def _texts(events: list[Any], index: int) -> Iterator[str]:
    return (event.text for event in events if isinstance(event, Delta) and event.index == index)
