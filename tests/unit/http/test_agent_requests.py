"""
Requests as agents send them that no test installs: Copilot in VS Code, LiteLLM, goose, Roo Code, Zed, Codex.

Each body is the one that the agent's own source makes. An agent keeps its history, so that one field that is refused
ends its session: each later request has it as well.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from daemon.http.access import Policy
from daemon.http.anthropic.messages import asked as asked_message
from daemon.http.anthropic.request_types import MessagesRequest
from daemon.http.app import build
from daemon.http.generation import ANSWER_TOKENS, Ask
from daemon.http.openai.chat import ask as asked_chat
from daemon.http.openai.chat_types import ChatRequest
from daemon.http.parameters import check
from daemon.http.responses.asking import ask as asked_response
from daemon.http.responses.request_types import ResponseRequest
from mlx_sidecar import AsyncClient, ContextLengthExceeded, Finished, Message, Started, Timings, ToolCall, Usage
from tests.support.asgi import Request, Response

CACHE = {"type": "ephemeral"}
FUNCTION = {"name": "see", "arguments": "{}"}
IMAGE = "[image left out: this model reads text alone]"
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}


def turns(found: Ask) -> list[Message]:
    """Return the turns of a conversation."""
    return [one for one in found.prompt if isinstance(one, Message)]


def chat(*messages: dict[str, Any], **fields: Any) -> list[Message]:
    """Return the turns that a chat completion asks for."""
    read = ChatRequest.model_validate_json(json.dumps({"model": "m", "messages": messages, **fields}))
    check(read)
    return turns(asked_chat(read))


def response(*items: dict[str, Any]) -> Ask:
    """Return what a response asks for."""
    read = ResponseRequest.model_validate_json(json.dumps({"model": "m", "input": items}))
    check(read)
    return asked_response(read, [], read.input)


def test_marks_that_copilot_puts_into_turns_are_accepted() -> None:
    """VS Code marks turns for its own server, whichever server a model is on. Its name of a reasoning is read."""
    call = {"id": "a", "type": "function", "function": FUNCTION}
    found = chat(
        {"role": "system", "content": "Help.", "copilot_cache_control": CACHE},
        {"role": "user", "content": "Look.", "copilot_references": [], "copilot_confirmations": []},
        {"role": "assistant", "content": "", "cot_id": "t", "cot_summary": "Hm.", "tool_calls": [call]},
        {"role": "tool", "content": "wet", "tool_call_id": "a", "copilot_cache_control": CACHE},
        tools=[{"type": "function", "function": {"name": "see"}, "copilot_cache_control": CACHE}],
        temperature=0.1,
        top_p=1,
        n=1,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert [turn.content for turn in found] == ["Help.", "Look.", "", "wet"]
    assert found[2].reasoning_content == "Hm."


def test_message_that_litellm_dumps_can_be_sent_back() -> None:
    """With all that its type has beside OpenAI's, and what it keeps of other servers in calls."""
    call = {
        "index": 0,
        "id": "a",
        "type": "function",
        "function": FUNCTION,
        "provider_specific_fields": {"thought_signature": "x"},
    }
    message = {
        "content": "I look.",
        "role": "assistant",
        "tool_calls": [call],
        "function_call": None,
        "reasoning_content": "Hm.",
        "thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}],
        "provider_specific_fields": {"refusal": None, "reasoning_content": "Hm."},
    }
    assert chat(message) == [Message("assistant", "I look.", "Hm.", [ToolCall("a", "see", "{}")])]


def test_turn_that_openais_agents_copy_into_its_part_is_one_turn() -> None:
    """Their SDK for JavaScript does so with each whole answer that has text; the reasoning is there alone."""
    call = {"index": 0, "id": "a", "type": "function", "function": FUNCTION}
    message = {"role": "assistant", "reasoning_content": "Hm.", "tool_calls": [call], "refusal": None}
    given = {"role": "assistant", "content": [{"type": "text", "text": "I look.", **message}], "tool_calls": [call]}
    read = Message("assistant", "I look.", "Hm.", [ToolCall("a", "see", "{}")])
    assert chat({**given, "index": 0}) == [read]
    assert chat({**given, "reasoning": "Mine."})[0].reasoning_content == "Mine."


@pytest.mark.parametrize("mark", ["extra_content", "thought_signature", "thoughtSignature"])
def test_call_that_another_server_signed_is_a_call(mark: str) -> None:
    """A session that began with Gemini goes on: goose and opencode give its marks back."""
    call = {"id": "a", "type": "function", "function": FUNCTION, mark: {"google": {"thought_signature": "x"}}}
    assert chat({"role": "assistant", "content": "", "tool_calls": [call]})[0].tool_calls == [
        ToolCall("a", "see", "{}")
    ]


def test_reasoning_that_openrouter_made_is_read() -> None:
    """Roo Code gives it back as it came; what is encrypted in it has no text, and a text with a name goes first."""
    details = [
        {"type": "reasoning.summary", "summary": "First. ", "index": 0},
        {"type": "reasoning.text", "text": "Then.", "signature": None, "format": "unknown"},
        {"type": "reasoning.encrypted", "data": "x"},
        "odd",
    ]
    given = {"role": "assistant", "content": "So.", "reasoning_details": details}
    assert chat(given)[0].reasoning_content == "First. Then."
    assert chat({**given, "reasoning": "Named."})[0].reasoning_content == "Named."
    assert chat({**given, "reasoning_text": "Copilot's.", "reasoning_opaque": "x"})[0].reasoning_content == "Copilot's."


def test_picture_that_a_tool_brought_is_told_behind_it() -> None:
    """Goose sends it as the user's, in a turn of its own. A picture that the user sends with words stays refused."""
    calls = [{"id": name, "type": "function", "function": FUNCTION} for name in ("a", "b")]
    brought: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "This tool result included an image.", "tool_call_id": "a"},
        {"role": "user", "content": [PICTURE]},
        {"role": "user", "content": [PICTURE]},
        {"role": "tool", "content": "done", "tool_call_id": "b"},
    ]
    assert [turn.content for turn in chat(*brought)] == ["", brought[1]["content"], IMAGE, IMAGE, "done"]
    for refused in ([PICTURE], [{"type": "text", "text": "See: "}, PICTURE]):
        with pytest.raises(ValueError, match=r"messages\.0\.content"):
            chat({"role": "user", "content": refused})
    with pytest.raises(ValueError, match=r"messages\.5\.content"):
        chat(*brought, {"role": "user", "content": [{"type": "text", "text": "And this? "}, PICTURE]})


@pytest.mark.parametrize(
    ("given", "read"),
    [('{"city": "Os', {"INVALID_JSON": '{"city": "Os'}), ([1], {"INVALID_JSON": "[1]"}), (None, {}), ("{}", {})],
)
def test_tool_use_whose_input_is_no_object_can_be_sent_back(given: Any, read: dict[str, Any]) -> None:
    """As a chat's call: Cline keeps the text of a call that was cut short, and sends it as the input."""
    messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "see", "input": given}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "failed"}]},
    ]
    body = {"model": "m", "max_tokens": 9, "messages": messages}
    found = asked_message(MessagesRequest.model_validate_json(json.dumps(body)))
    (call,) = turns(found)[1].tool_calls
    assert isinstance(call, ToolCall)
    assert json.loads(str(call.arguments)) == read
    assert bool(found.notes) == ("INVALID_JSON" in read)


def test_thinking_with_a_mark_keeps_the_prompt() -> None:
    """Zed marks the last block of a turn, of whichever kind it is."""
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "another server's", "cache_control": CACHE}
    messages = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": [thinking]}]
    read = MessagesRequest.model_validate_json(json.dumps({"model": "m", "max_tokens": 9, "messages": messages}))
    check(read)
    assert asked_message(read).options["keep"] == 300


# "/root" is the name of Codex's first agent.
TASK = "Message Type: NEW_TASK\nTask name: /root/look\nSender: /root\nPayload:\n"


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "input_text", "text": f"{TASK}Find it."}],
        [{"type": "input_text", "text": TASK}, {"type": "encrypted_content", "encrypted_content": "Find it."}],
    ],
    ids=["plain", "as encrypted"],
)
def test_message_of_codexs_agents_is_a_turn_of_the_user(content: list[dict[str, Any]]) -> None:
    """The whole task of a sub-agent is one. Codex takes what a model wrote as encrypted, unless told otherwise."""
    item = {"type": "agent_message", "id": "amsg_1", "author": "/root", "recipient": "/root/look", "content": content}
    found = response({"role": "developer", "content": "You are an agent."}, item)
    assert turns(found)[-1] == Message("user", f"{TASK}Find it.")
    assert not found.notes


def test_message_that_another_server_encrypted_is_told_as_such() -> None:
    """In a session that began at OpenAI; the response has a note."""
    content = [{"type": "input_text", "text": TASK}, {"type": "encrypted_content", "encrypted_content": "gAAAAABo"}]
    found = response({"type": "agent_message", "content": content})
    assert turns(found) == [Message("user", f"{TASK}[text left out: another server has encrypted it]")]
    assert found.notes == ["input[0].content[1] is left out: another server has encrypted it"]


def test_search_for_tools_of_another_server_is_told_in_words() -> None:
    """Codex looks for tools with the models that can; a session that goes on here has what was found."""
    found = response(
        {"type": "tool_search_call", "call_id": "c", "execution": "client", "arguments": {"goal": "mail"}},
        {"type": "tool_search_output", "call_id": "c", "status": "completed", "tools": [{"name": "send"}]},
    )
    step = "[Earlier step on another server: "
    assert turns(found)[0].content == (
        f'{step}tool_search; arguments: {{"goal": "mail"}}]\n{step}tool_search_output; tools: ["send"]]\n'
    )


def test_what_codex_puts_into_each_item_for_openai_is_accepted() -> None:
    """It does so for each provider that is named OpenAI, such as one whose base URL alone was changed."""
    own = {"internal_chat_message_metadata_passthrough": {"turn_id": "t", "content_item_kinds": ["x"]}}
    sound = {"type": "input_audio", "audio_url": "data:audio/wav;base64,aGk="}
    hidden = {"type": "encrypted_content", "encrypted_content": "gAAAAABo"}
    found = response(
        {"role": "user", "content": "Rain?", **own},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}], "summary": [], **own},
        {"type": "function_call", "call_id": "a", "name": "hear", "arguments": "{}", **own},
        {"type": "function_call_output", "call_id": "a", "output": [sound, hidden], **own},
        {"type": "web_search_call", "status": "completed", "action": {"query": "rain"}, **own},
    )
    told = "[audio left out: this model reads text alone][encrypted text left out: this model reads text alone]"
    assert [turn.role for turn in turns(found)] == ["user", "assistant", "tool", "assistant"]
    assert turns(found)[2].content == told


class Daemon(AsyncClient):
    """
    A daemon that refuses what does not fit, and otherwise answers nothing.

    Attributes:
        asked: Most tokens of each call.
    """

    def __init__(self, prompt: int, context: int) -> None:
        super().__init__("/nowhere/s.sock")
        self.asked: list[int | None] = []
        self._prompt, self._context = prompt, context

    def generate(self, model: str, prompt: Any, **options: Any) -> Any:
        wanted: int = options["max_tokens"]
        self.asked.append(wanted)
        return self._answer(wanted)

    @asynccontextmanager
    async def _answer(self, wanted: int) -> AsyncIterator[Any]:
        if self._prompt + wanted > self._context:
            figures = {"prompt_tokens": str(self._prompt), "context_length": str(self._context)}
            field = "max_tokens" if self._prompt < self._context else "chat"
            raise ContextLengthExceeded("it does not fit", field=field, metadata=figures)

        async def events() -> AsyncIterator[Any]:
            yield Started("r", "m", self._prompt, 0)
            yield Finished("stop", "", Usage(self._prompt, 0, 0), Timings(0.1, 0.0, 0.0, 0.0, 0.1, 0.2, 0.2))

        yield events()


HI = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "m", "messages": HI},
    "/v1/responses": {"model": "m", "input": "Hi", "store": False},
    "/api/chat": {"model": "m", "messages": HI, "stream": False},
    "/api/generate": {"model": "m", "prompt": "Hi", "stream": False},
}


async def post(client: AsyncClient, path: str, **fields: Any) -> Response:
    """Send a request to a door."""
    app = build(client, Policy(None, loopback_only=False))
    return await Request("POST", path, json.dumps({**BODIES[path], **fields}).encode()).to(app)


@pytest.mark.parametrize("path", BODIES)
async def test_answer_without_a_limit_is_as_long_as_the_model_makes_it(path: str) -> None:
    """
    Up to a bound that no file reaches, or to what the context holds.

    Codex, aider and Copilot in VS Code set no limit. Codex makes an answer that is cut short five times more.
    """
    long, short = Daemon(prompt=10, context=100_000), Daemon(prompt=10, context=4096)
    assert {(await post(client, path)).status for client in (long, short)} == {200}
    assert (long.asked, short.asked) == ([ANSWER_TOKENS], [ANSWER_TOKENS, 4086])


@pytest.mark.parametrize("path", BODIES)
async def test_prompt_that_is_too_long_is_told_in_openais_words(path: str) -> None:
    """Crush reads both numbers, LiteLLM and opencode the first, goose two of the words, Cline the code or the words."""
    found = await post(Daemon(prompt=5000, context=4096), path)
    error = found.json["error"]
    message = error if isinstance(error, str) else error["message"]
    assert found.status == 400
    assert "this model's maximum context length is 4096 tokens, but the prompt resulted in 5000 tokens" in message
    assert isinstance(error, str) or error["code"] == "context_length_exceeded"


async def test_stream_of_a_response_whose_prompt_is_too_long_fails_with_the_event() -> None:
    """Codex knows it by this event alone. SDKs raise the one before it, as they raise a status of 400."""
    found = await post(Daemon(prompt=5000, context=4096), "/v1/responses", stream=True)
    events = [json.loads(line.removeprefix(b"data: ")) for line in found.body.split(b"\n") if line[:6] == b"data: "]
    assert (found.status, found.headers["x-request-id"][:5]) == (200, "http-")
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "error",
        "response.failed",
    ]
    assert [event["sequence_number"] for event in events] == [0, 1, 2, 3]
    failed = {
        "message": events[3]["response"]["error"]["message"],
        "param": "input",
        "code": "context_length_exceeded",
    }
    assert events[2]["error"] == {**failed, "type": "invalid_request_error"}
    assert {name: events[2][name] for name in failed} == failed, "as OpenAI's reference has them"
    assert events[3]["response"]["error"]["code"] == "context_length_exceeded"
