"""What a conversation has that is no text reaches the model in words, so that a session goes on behind it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daemon.http.anthropic.messages import asked as asked_message
from daemon.http.anthropic.request_types import MessagesRequest
from daemon.http.errors import Problem
from daemon.http.generation import Ask
from daemon.http.ollama.chat import ask as asked_ollama
from daemon.http.ollama.chat_types import ChatRequest as OllamaRequest
from daemon.http.openai.chat import ask as asked_chat
from daemon.http.openai.chat_types import ChatRequest
from daemon.http.parameters import check
from daemon.http.responses.asking import ask as asked_response
from daemon.http.responses.request_types import ResponseRequest
from mlx_sidecar import Message, ToolCall

IMAGE = "[image left out: this model reads text alone]"
SOURCE = {"type": "base64", "media_type": "image/png", "data": "aGk="}
MARK = {"type": "ephemeral", "ttl": "1h"}


def turns(found: Ask) -> list[Message]:
    """Return the turns of a conversation."""
    return [one for one in found.prompt if isinstance(one, Message)]


def message(*blocks: dict[str, Any], role: str = "user") -> Ask:
    """Return what a request of Anthropic's API asks for, with blocks behind a question."""
    given = [{"role": "user", "content": "Look."}, {"role": role, "content": list(blocks)}]
    read = MessagesRequest.model_validate_json(json.dumps({"model": "m", "max_tokens": 9, "messages": given}))
    check(read)
    return asked_message(read)


def brought(*content: dict[str, Any]) -> Ask:
    """Return what a request of Anthropic's API asks for with the result of a tool."""
    return message({"type": "tool_result", "tool_use_id": "a", "content": list(content)})


def chat(arguments: str, content: Any) -> Ask:
    """Return what a chat completion asks for after a call of a tool."""
    call = {"id": "a", "type": "function", "function": {"name": "see", "arguments": arguments}}
    given = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "a", "content": content}]
    read = ChatRequest.model_validate_json(json.dumps({"model": "m", "messages": given}))
    check(read)
    return asked_chat(read)


def response(arguments: str, output: Any) -> Ask:
    """Return what a response asks for after a call of a tool."""
    items = [
        {"type": "function_call", "call_id": "a", "name": "see", "arguments": arguments},
        {"type": "function_call_output", "call_id": "a", "output": output},
    ]
    read = ResponseRequest.model_validate_json(json.dumps({"model": "m", "input": items}))
    check(read)
    return asked_response(read, [], read.input)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"type": "image", "source": SOURCE}, IMAGE),
        ({"type": "document", "title": "A", "source": SOURCE}, IMAGE.replace("image", "document")),
        ({"type": "document", "title": "A", "source": {"type": "text", "data": "b"}}, "A\nb"),
        ({"type": "document", "source": {"type": "content", "content": [{"type": "image"}]}}, IMAGE),
        (
            {"type": "search_result", "title": "A", "source": "at", "content": [{"type": "text", "text": "b"}]},
            "A\nat\nb",
        ),
        ({"type": "tool_reference", "tool_name": "weather"}, "weather"),
    ],
)
def test_result_of_a_tool_is_told_in_words(block: dict[str, Any], words: str) -> None:
    """Its text where it has some; and the mark that keeps the prompt is still one."""
    found = brought({"type": "text", "text": "Seen:"}, {**block, "cache_control": MARK})
    assert turns(found)[-1] == Message("tool", f"Seen:\n\n{words}", tool_call_id="a")
    assert found.options["keep"] == 3600


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_chat_tells_of_what_a_tool_brought(kind: str) -> None:
    """Only in turns of tools: a picture of the user's is refused."""
    parts = [{"type": "text", "text": "Seen: "}, {"type": kind, kind: {}}]
    words = {"image_url": "image", "input_audio": "audio"}.get(kind, kind)
    assert turns(chat("{}", parts))[-1].content == f"Seen: {IMAGE.replace('image', words)}"


@pytest.mark.parametrize("kind", ["image", "file"])
def test_responses_tell_of_what_a_tool_brought(kind: str) -> None:
    """As Codex sends it after `view_image`."""
    parts = [{"type": "input_text", "text": "Seen: "}, {"type": f"input_{kind}", "detail": "auto"}]
    assert turns(response("{}", parts))[-1].content == f"Seen: {IMAGE.replace('image', kind)}"


def test_ollama_tells_of_what_a_tool_brought() -> None:
    """A line for each image."""
    brought = {"role": "tool", "tool_name": "see", "content": "Seen:", "images": ["aGk=", "aGk="]}
    read = OllamaRequest.model_validate_json(json.dumps({"model": "m", "messages": [brought]}))
    check(read)
    assert turns(asked_ollama(read))[0].content == f"Seen:\n{IMAGE}\n{IMAGE}"


@pytest.mark.parametrize("ask", [chat, response])
@pytest.mark.parametrize(
    ("given", "read"),
    [
        ('{"city": "Os', {"INVALID_JSON": '{"city": "Os'}),
        ("[1]", {"INVALID_JSON": "[1]"}),
        ('{"a": NaN}', {"INVALID_JSON": '{"a": NaN}'}),
        ('{"a": 1e999}', {"INVALID_JSON": '{"a": 1e999}'}),
        ('{"a": "\\ud83d"}', {"INVALID_JSON": '{"a": "\\ud83d"}'}),
        ("null", {}),
        (" ", {}),
        (' {"city": "Oslo"}\n', {"city": "Oslo"}),
        ('\xa0{"city": "Oslo"}', {"INVALID_JSON": '\xa0{"city": "Oslo"}'}),
    ],
)
def test_call_that_was_cut_short_can_be_sent_back(ask: Any, given: str, read: dict[str, Any]) -> None:
    """With the error that came of it; the response has a note if the arguments are no object."""
    found = ask(given, "failed")
    (call,) = turns(found)[0].tool_calls
    assert isinstance(call, ToolCall)
    assert (call.id, call.name, json.loads(str(call.arguments))) == ("a", "see", read)
    assert bool(found.notes) == ("INVALID_JSON" in read)
    assert given not in str(found.notes)


def test_steps_of_anthropics_server_are_told_in_words() -> None:
    """Between the texts of the turn, without what only that server can read; calls of the client stay calls."""
    found = message(
        {"type": "text", "text": "I search.\n"},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "rain"}},
        {
            "type": "web_search_tool_result",
            "tool_use_id": "s",
            "content": [{"type": "web_search_result", "url": "at", "title": "Wet", "encrypted_content": "x"}],
        },
        {"type": "mcp_tool_use", "id": "p", "server_name": "maps", "name": "route", "input": {}},
        {"type": "mcp_tool_result", "tool_use_id": "p", "is_error": False, "content": [{"type": "document", **SOURCE}]},
        {"type": "text", "text": "It rains.", "citations": [{"type": "web_search_result_location"}]},
        role="assistant",
    )
    step = "[Earlier step on another server: "
    assert turns(found)[-1] == Message(
        "assistant",
        f'I search.\n{step}server_tool_use; tool: web_search; input: {{"query": "rain"}}]\n'
        f'{step}web_search_tool_result; content: [{{"type": "web_search_result", "url": "at", "title": "Wet"}}]]\n'
        f"{step}mcp_tool_use; server: maps; tool: route; input: {{}}]\n"
        f'{step}mcp_tool_result; content: ["left out"]]\n'
        "It rains.",
        tool_calls=[],
    )


def test_step_of_a_server_is_in_no_turn_of_the_user() -> None:
    """Its place is the turn of the model that asked for it."""
    with pytest.raises(Problem) as caught:
        message({"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}})
    assert caught.value.field == "messages[1].content[0].type"
