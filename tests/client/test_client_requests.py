"""Every parameter reaches the daemon as the field it is meant for, and nothing is dropped on the way."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent import futures
from typing import Any, get_type_hints

import grpc
import pytest
from google.protobuf.json_format import ParseDict

from mlx_sidecar import EmbedOptions, GenerateOptions, InvalidArgument, LoadOptions, Message, Tool, ToolCall
from mlx_sidecar import _requests as requests
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.client.scripted import FakeDaemon, finish

HELLO = Message("user", "Hello")


def sent(fake: FakeDaemon, prompt: Any, **options: Any) -> pb.GenerateRequest:
    """Return the request that a `generate` sends."""
    stream = fake.client.generate("m", prompt, **options)
    request, rpc = fake.take_stream("Generate")
    finish(rpc)
    stream.close()
    assert isinstance(request, pb.GenerateRequest)
    return request


def expected(**fields: Any) -> pb.GenerateRequest:
    """Return a request with the fields that are always there, and these."""
    base = {"model": "m", "sampling": {}, "stop": {}, "cache": {"mode": "CACHE_MODE_READ_WRITE"}}
    return ParseDict({**base, **fields}, pb.GenerateRequest())


OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"adapter": "/a"}, {"adapter": "/a"}),
    ({"max_tokens": 0}, {"maxTokens": 0}),
    ({"max_tokens": 7}, {"maxTokens": 7}),
    ({"temperature": 0.0}, {"sampling": {"temperature": 0}}),
    ({"temperature": 0.5}, {"sampling": {"temperature": 0.5}}),
    ({"top_p": 0.25}, {"sampling": {"topP": 0.25}}),
    ({"top_k": 0}, {"sampling": {"topK": 0}}),
    ({"min_p": 0.125}, {"sampling": {"minP": 0.125}}),
    ({"seed": 2**64 - 1}, {"sampling": {"seed": 2**64 - 1}}),
    ({"repetition_penalty": 1.5}, {"sampling": {"repetitionPenalty": 1.5}}),
    ({"presence_penalty": -1}, {"sampling": {"presencePenalty": -1}}),
    ({"frequency_penalty": 2}, {"sampling": {"frequencyPenalty": 2}}),
    ({"logit_bias": {5: -100.0}}, {"sampling": {"logitBias": {5: -100.0}}}),
    ({"stop": "\n"}, {"stop": {"strings": ["\n"]}}),
    ({"stop": ["a", "b"]}, {"stop": {"strings": ["a", "b"]}}),
    ({"stop_token_ids": [1, 2]}, {"stop": {"tokenIds": [1, 2]}}),
    ({"ignore_eos": True}, {"stop": {"ignoreEos": True}}),
    ({"top_logprobs": 0}, {"topLogprobs": 0}),
    ({"cache_mode": "read_only"}, {"cache": {"mode": "CACHE_MODE_READ_ONLY"}}),
    ({"cache_mode": "bypass"}, {"cache": {"mode": "CACHE_MODE_BYPASS"}}),
    ({"salt": "s"}, {"cache": {"mode": "CACHE_MODE_READ_WRITE", "salt": "s"}}),
    ({"keep": 90.5}, {"cache": {"mode": "CACHE_MODE_READ_WRITE", "keep": "90.500s"}}),
    ({"request_id": "r"}, {"requestId": "r"}),
    ({"require_loaded": True}, {"requireLoaded": True}),
    ({"json_schema": {"const": "é"}}, {"responseFormat": {"jsonSchema": '{"const": "é"}'}}),
    ({"json_schema": "{}"}, {"responseFormat": {"jsonSchema": "{}"}}),
    ({"json_object": True}, {"responseFormat": {"jsonObject": {}}}),
    ({"regex": ""}, {"responseFormat": {"regex": ""}}),
    ({"grammar": "start: A"}, {"responseFormat": {"grammar": "start: A"}}),
    ({"priority": -1}, {"priority": -1}),
    ({"speculation": "ngram"}, {"speculation": "SPECULATION_NGRAM"}),
    ({"draft_model": "small", "draft_tokens": 3}, {"draft_model": "small", "draft_tokens": 3}),
]


@pytest.mark.parametrize(("options", "fields"), OPTIONS, ids=[str(options) for options, _ in OPTIONS])
def test_each_option_is_sent_as_its_field(fake: FakeDaemon, options: dict[str, Any], fields: dict[str, Any]) -> None:
    """An option sets its own field and no other; a zero is sent like any value."""
    assert sent(fake, "Hi", **options) == expected(text="Hi", **fields)


def test_unset_options_are_not_sent(fake: FakeDaemon) -> None:
    """The daemon's defaults apply to everything that the caller left out."""
    assert sent(fake, "Hi") == expected(text="Hi")


@pytest.mark.parametrize("prompt", ["Hi", [{"role": "user", "content": "Hi"}]])
def test_option_of_none_is_not_given(prompt: Any) -> None:
    """As the options' documentation says of all of them: programs hand on what their own callers left out."""
    options: Any = dict.fromkeys(GenerateOptions.__annotations__)
    assert requests.generate_request("m", prompt, **options) == requests.generate_request("m", prompt)
    embedding: Any = dict.fromkeys(EmbedOptions.__annotations__)
    assert requests.embed_request("m", "Hi", **embedding) == requests.embed_request("m", "Hi")


def test_message_part_of_none_is_not_given() -> None:
    """Libraries write out each key of an answer that goes back into the conversation."""
    whole: Any = {"role": "assistant", "content": None, "tool_calls": None, "tool_call_id": None}
    assert requests.generate_request("m", [whole]) == requests.generate_request("m", [{"role": "assistant"}])


def test_int_sequence_is_a_prompt_of_token_ids(fake: FakeDaemon) -> None:
    """Token ids are sent as they are."""
    assert sent(fake, (1, 2, 3)) == expected(tokens={"ids": [1, 2, 3]})


def test_empty_token_sequence_is_sent_to_the_daemon(fake: FakeDaemon) -> None:
    """The client does not guess what an empty prompt is meant to be."""
    assert sent(fake, []) == expected(tokens={})


def test_messages_are_a_chat_prompt(fake: FakeDaemon) -> None:
    """Messages, tools and the options of templates are sent with all their parts."""
    turns = [
        Message("system", "Be brief."),
        {"role": "user", "content": "What is the time?"},
        Message(
            "assistant",
            reasoning_content="A clock would help.",
            tool_calls=[
                ToolCall("c1", "clock", {"zone": "é"}),
                {"id": "c2", "name": "now", "arguments": "{}"},
            ],
        ),
        {"role": "tool", "content": "12:00", "tool_call_id": "c1"},
    ]
    request = sent(
        fake,
        turns,
        tools=[Tool("clock", "Tells the time", {"type": "object"}), {"name": "now"}],
        add_generation_prompt=False,
        enable_thinking=True,
        tool_choice="required",
        required_tool="now",
        allowed_tools=("now", "clock"),
        template_args={"date": "1 May", "documents": [{"text": "é"}], "strict": True},
        reasoning_effort="low",
        continue_final_message=True,
    )
    calls = [
        {"id": "c1", "name": "clock", "argumentsJson": '{"zone": "é"}'},
        {"id": "c2", "name": "now", "argumentsJson": "{}"},
    ]
    chat = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is the time?"},
            {"role": "assistant", "reasoningContent": "A clock would help.", "toolCalls": calls},
            {"role": "tool", "content": "12:00", "toolCallId": "c1"},
        ],
        "tools": [
            {"name": "clock", "description": "Tells the time", "parametersJson": '{"type": "object"}'},
            {"name": "now"},
        ],
        "addGenerationPrompt": False,
        "enableThinking": True,
        "toolChoice": "TOOL_CHOICE_REQUIRED",
        "requiredTool": "now",
        "allowedTools": ["now", "clock"],
        "templateArgs": {"date": '"1 May"', "documents": '[{"text": "é"}]', "strict": "true"},
        "reasoningEffort": "low",
        "continueFinalMessage": True,
    }
    assert request == expected(chat=chat)


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        ("Hi", {"tools": [Tool("t")]}, "chat.tools"),
        ("Hi", {"add_generation_prompt": True}, "chat.add_generation_prompt"),
        ([1], {"enable_thinking": False}, "chat.enable_thinking"),
        ("Hi", {"tool_choice": "none"}, "chat.tool_choice"),
        ("Hi", {"required_tool": "t"}, "chat.required_tool"),
        ("Hi", {"allowed_tools": ["t"]}, "chat.allowed_tools"),
        ("Hi", {"template_args": {"a": 1}}, "chat.template_args"),
        ("Hi", {"reasoning_effort": "low"}, "chat.reasoning_effort"),
        ("Hi", {"continue_final_message": True}, "chat.continue_final_message"),
        ([{"role": "user"}], {"tool_choice": "t"}, "chat.tool_choice"),
        ("Hi", {"cache_mode": "sometimes"}, "cache.mode"),
        ("Hi", {"regex": "a", "json_object": True}, "response_format"),
        ("Hi", {"regex": "\ud800"}, "response_format.regex"),
        ("Hi", {"max_tokens": 2**40}, "max_tokens"),
        ("Hi", {"seed": -1}, "sampling.seed"),
        ("Hi", {"stop_token_ids": [-1]}, "stop.token_ids"),
        ([1, -1], {}, "tokens.ids"),
        ("\ud800", {}, "text"),
    ],
)
def test_unsendable_option_is_refused_by_name(
    fake: FakeDaemon, prompt: Any, options: dict[str, Any], field: str
) -> None:
    """A value that the message has no room for never turns into another value, or into none."""
    with pytest.raises(InvalidArgument) as caught:
        fake.client.generate("m", prompt, **options)
    assert (caught.value.field, caught.value.reason) == (field, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        (b"Hi", {}),
        (["Hi"], {}),
        ([{"role": "user", "text": "Hi"}], {}),
        ([HELLO, "Hi"], {}),
        ("Hi", {"temprature": 1}),
        ("Hi", {"max_tokens": "many"}),
    ],
    ids=repr,
)
def test_wrong_types_and_names_are_type_errors(fake: FakeDaemon, prompt: Any, options: dict[str, Any]) -> None:
    """A misspelt option is never ignored, and bytes are never taken for token ids."""
    with pytest.raises(TypeError):
        fake.client.generate("m", prompt, **options)


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        (
            [HELLO, {"role": "user", "text": "Hi"}],
            {},
            "chat.messages[1] has the key 'text'; its keys are role, content",
        ),
        ([HELLO, {"content": "Hi"}], {}, "chat.messages[1].role is missing"),
        ([HELLO, "Hi"], {}, "chat.messages[1] is of type str"),
        ([{"role": "user", "content": [{"text": "Hi"}]}], {}, "chat.messages[0].content cannot have a value of type"),
        ([{"role": "user", "tool_calls": [{"id": 1, "name": "t"}]}], {}, "chat.messages[0].tool_calls[0].id"),
        (HELLO, {}, "a prompt is text, token ids or a list of messages, not Message"),
        ({"role": "user", "content": "Hi"}, {}, "a prompt is text, token ids or a list of messages, not dict"),
        (None, {}, "a prompt is text, token ids or a list of messages, not NoneType"),
        (b"Hi", {}, "a prompt is text, token ids or a list of messages, not bytes"),
        ([HELLO], {"tools": [{"name": "t", "strict": True}]}, "chat.tools[0] has the key 'strict'"),
        ("Hi", {"max_tokens": "many"}, "max_tokens cannot have a value of type str"),
        ([{"role": "user", "tool_calls": 1}], {}, "chat.messages[0].tool_calls cannot have a value of type int"),
        ([HELLO], {"tools": {"name": "t"}}, "chat.tools cannot have a value of type dict"),
        ([HELLO], {"allowed_tools": "now"}, "chat.allowed_tools cannot have a value of type str"),
        ("Hi", {"keep": "1h"}, "cache.keep cannot have a value of type str"),
    ],
)
def test_type_error_names_the_place(fake: FakeDaemon, prompt: Any, options: dict[str, Any], words: str) -> None:
    """As the daemon does: with the path of the field."""
    with pytest.raises(TypeError) as caught:
        fake.client.generate("m", prompt, **options)
    assert words in str(caught.value)


def test_a_load_sends_all_its_options(fake: FakeDaemon) -> None:
    """False and zero are values: `pin=False` unpins, `ttl=0` expires at once."""
    options: dict[str, Any] = {
        "revision": "main",
        "adapter": "/a",
        "pin": False,
        "ttl": 0,
        "skip_warmup": True,
        "allow_download": True,
        "estimate_only": True,
        "context_length": 4096,
        "update": True,
    }
    stream = fake.client.get_or_load("org/name", **options)
    request, rpc = fake.take_stream("GetOrLoad")
    finish(rpc)
    stream.close()
    assert request == ParseDict(
        {
            "model": "org/name",
            "revision": "main",
            "adapter": "/a",
            "pin": False,
            "ttl": "0s",
            "skipWarmup": True,
            "allowDownload": True,
            "estimateOnly": True,
            "contextLength": 4096,
            "update": True,
        },
        pb.GetOrLoadRequest(),
    )


def test_load_leaves_pin_and_ttl_unset() -> None:
    """Unset is not the same as False or zero."""
    request = requests.load_request("m")
    assert not request.HasField("pin")
    assert not request.HasField("ttl")
    assert not request.HasField("context_length")


def test_a_ttl_keeps_its_fraction() -> None:
    """Times are seconds, and need not be whole."""
    ttl = requests.load_request("m", ttl=90.5).ttl
    assert (ttl.seconds, ttl.nanos) == (90, 500_000_000)


@pytest.mark.parametrize("ttl", [float("nan"), float("inf"), 1e30])
def test_a_ttl_that_is_no_duration_is_refused(ttl: float) -> None:
    """Infinity is spelt `pin=True`."""
    with pytest.raises(InvalidArgument) as caught:
        requests.load_request("m", ttl=ttl)
    assert caught.value.field == "ttl"


INVALIDATIONS: list[tuple[Callable[[FakeDaemon], Any], dict[str, Any]]] = [
    (
        lambda fake: fake.client.invalidate_model("m"),
        {"model": {"model": "m", "weights": True, "prefixes": True}},
    ),
    (
        lambda fake: fake.client.invalidate_model("m", weights=False, dry_run=True),
        {"model": {"model": "m", "prefixes": True}, "dryRun": True},
    ),
    (
        lambda fake: fake.client.invalidate_prefix("m", "Once", salt="s"),
        {"prefix": {"model": "m", "text": "Once", "salt": "s"}},
    ),
    (
        lambda fake: fake.client.invalidate_prefix("m", [1, 2], dry_run=True),
        {"prefix": {"model": "m", "tokens": {"ids": [1, 2]}}, "dryRun": True},
    ),
    (lambda fake: fake.client.invalidate_all(prefixes=False), {"all": {"weights": True}}),
]


@pytest.mark.parametrize(("call", "fields"), INVALIDATIONS)
def test_each_invalidation_names_its_target(
    fake: FakeDaemon, call: Callable[[FakeDaemon], Any], fields: dict[str, Any]
) -> None:
    """The three methods are the three targets, and the answer comes back as one result."""
    with futures.ThreadPoolExecutor(1) as pool:
        result = pool.submit(call, fake)
        request, rpc = fake.take_unary("Invalidate")
        response = pb.InvalidateResponse(models=["m"], blocks=3, bytes_freed=2**40, bytes_in_use=1)
        rpc.terminate(response, (), grpc.StatusCode.OK, "")
    assert request == ParseDict(fields, pb.InvalidateRequest())
    invalidated = result.result()
    assert (invalidated.models, invalidated.blocks) == (("m",), 3)
    assert (invalidated.bytes_freed, invalidated.bytes_in_use) == (2**40, 1)


@pytest.mark.parametrize(
    ("options", "build"),
    [(LoadOptions, requests.load_request), (GenerateOptions, requests.generate_request)],
)
def test_documented_options_are_those_that_are_built(options: type, build: Callable[..., Any]) -> None:
    """What callers see and the builder behind it name the same options, and each one is documented."""
    parameters = inspect.signature(build).parameters.values()
    keywords = {each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}
    assert keywords == set(get_type_hints(options))
    assert all(f"{name}: " in str(options.__doc__) for name in keywords)
