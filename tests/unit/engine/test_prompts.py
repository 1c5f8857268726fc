"""Prompts: text, tokens and conversations become ids that fit the model, or an error that names the field."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.cache.identity import ModelSource
from daemon.cache.resolver import EMBEDDED_PATH, Resolver, Wanted
from daemon.engine.prompt.chat_templates import Templates
from daemon.engine.prompt.preparation import DEFAULT_MAX_TOKENS, prepare_prompt
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.engine.prompt.tokenizers import Tokenizers
from daemon.shared.errors import Reason, SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb

UNUSED = Templates(time.monotonic)
"""Starts its worker with the first template, and these tests have none."""
USER = pb.ChatMessage(role="user", content="What is the code?")


@pytest.fixture(name="source", scope="module")
def _source() -> ModelSource:
    """Return the embedded model."""
    return Resolver([]).resolve(Wanted("embedded"))


class Wrapper:
    """A tokenizer of characters, with a BOS and a template that the test gives."""

    bos_token = "<s>"
    eos_token_ids = frozenset({2})
    has_chat_template = True
    _chat_template = None

    _thinking_kwarg = "enable_thinking"

    def __init__(self, template: Any = None) -> None:
        self._tokenizer = self
        self._template = template

    def __len__(self) -> int:
        return 500

    def encode(self, text: str, *, add_special_tokens: bool, verbose: bool) -> list[int]:
        """Return a BOS if it is asked for, and a token for each character; a written BOS is one token."""
        ids = [1 if one == "\0" else ord(one) % 500 for one in text.replace(self.bos_token, "\0")]
        return [1, *ids] if add_special_tokens else ids

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        """Render."""
        return self._template(messages, options)


def error_of(request: pb.GenerateRequest, source: ModelSource, tokenizer: Tokenizer) -> SidecarError:
    """Return the error of a request that cannot be prepared."""
    with pytest.raises(SidecarError) as caught:
        prepare_prompt(request, source, tokenizer)
    return caught.value


def chat(*messages: pb.ChatMessage, **fields: Any) -> pb.GenerateRequest:
    """Return a request with a conversation."""
    return pb.GenerateRequest(chat=pb.Chat(messages=messages or [USER], **fields))


def test_prompt_text_ids_and_messages_give_token_ids(source: ModelSource, tokenizer: Tokenizer) -> None:
    """The model's tokenizer encodes text and conversations; ids are used as they are."""
    ids = tokenizer.encode("The code", special=True)
    assert prepare_prompt(pb.GenerateRequest(text="The code"), source, tokenizer).tokens == ids
    assert prepare_prompt(pb.GenerateRequest(tokens=pb.TokenIds(ids=[7, 0, 736])), source, tokenizer).tokens == [
        7,
        0,
        736,
    ]
    rendered = prepare_prompt(chat(), source, tokenizer).tokens
    open_ended = prepare_prompt(chat(add_generation_prompt=False), source, tokenizer).tokens
    assert rendered[: len(open_ended)] == open_ended
    assert len(rendered) > len(open_ended)


def test_a_bos_is_not_doubled(source: ModelSource) -> None:
    """A text or a template may write the BOS itself."""
    tokenizer = Tokenizer(Wrapper(lambda messages, options: "<s>hi"), UNUSED)
    for request in (pb.GenerateRequest(text="hi"), pb.GenerateRequest(text="<s>hi"), chat()):
        assert prepare_prompt(request, source, tokenizer).tokens == [1, ord("h"), ord("i")]


def test_chat_template_gets_the_request_options(source: ModelSource) -> None:
    """Options that are not set have the template's own defaults."""
    seen: list[Any] = []

    def template(messages: Any, options: Any) -> str:
        seen.append((messages, options))
        return "x"

    tokenizer = Tokenizer(Wrapper(template), UNUSED)
    call = pb.ToolCall(id="c1", name="look", arguments_json='{"at": 1}')
    prepare_prompt(chat(USER, pb.ChatMessage(role="assistant", tool_calls=[call])), source, tokenizer)
    messages, options = seen[-1]  # after those that try what the code takes
    assert messages[0] == {"role": "user", "content": "What is the code?"}
    function = {"name": "look", "arguments": {"at": 1}}
    assert messages[1]["tool_calls"] == [{"id": "c1", "type": "function", "function": function}]
    assert options == {"add_generation_prompt": True, "tokenize": False, "return_dict": False}
    tool = pb.Tool(name="look", description="looks", parameters_json='{"type": "object"}')
    prepare_prompt(chat(enable_thinking=False, tools=[tool]), source, tokenizer)
    assert seen[-1][1]["enable_thinking"] is False
    assert seen[-1][1]["tools"][0]["function"]["parameters"] == {"type": "object"}


def test_code_in_place_of_a_template_is_tried_too(source: ModelSource) -> None:
    """That of mlx-lm for DeepSeek V3.2 reads the arguments of a call as JSON text."""

    def code(messages: Any, _options: Any) -> str:
        calls = [call["function"]["arguments"] for message in messages for call in message.get("tool_calls", ())]
        return " ".join([*(json.dumps(json.loads(call)) for call in calls), *(m["content"] for m in messages)])

    call = pb.ToolCall(id="c1", name="look", arguments_json='{"at":1}')
    request = chat(USER, pb.ChatMessage(role="assistant", content="x", tool_calls=[call]))
    tokens = prepare_prompt(request, source, Tokenizer(Wrapper(code), UNUSED)).tokens
    assert tokens == [ord(one) for one in '{"at": 1} What is the code? x']
    refused = error_of(chat(template_args={"a": "1"}), source, Tokenizer(Wrapper(code), UNUSED))
    assert refused.field == "chat.template_args[a]"


@pytest.mark.parametrize("text", ["{", "[]", "3", "null", '{"a": NaN}', '{"a": "\\ud800"}', '{"a":' * 100_000])
def test_invalid_json_argument_is_named_by_its_path(source: ModelSource, tokenizer: Tokenizer, text: str) -> None:
    """NaN and half a surrogate pair are no JSON either."""
    call = pb.ToolCall(name="f", arguments_json=text)
    error = error_of(chat(USER, pb.ChatMessage(role="assistant", tool_calls=[call])), source, tokenizer)
    assert (error.reason, error.field) == (
        Reason.INVALID_ARGUMENT,
        "chat.messages[1].tool_calls[0].arguments_json",
    )
    tools = [pb.Tool(name="a"), pb.Tool(name="b", parameters_json=text)]
    assert error_of(chat(tools=tools), source, tokenizer).field == "chat.tools[1].parameters_json"


@pytest.mark.parametrize("error", [ZeroDivisionError(), RecursionError(), IndexError(), OverflowError(), KeyError()])
def test_failing_chat_template_is_a_request_error(source: ModelSource, error: Exception) -> None:
    """Templates are programs and may raise anything."""

    def broken(_messages: Any, _options: Any) -> str:
        raise error

    refused = error_of(chat(), source, Tokenizer(Wrapper(broken), UNUSED))
    assert (refused.reason, refused.field) == (Reason.INVALID_ARGUMENT, "chat")


def test_model_without_chat_template_refuses_messages(source: ModelSource) -> None:
    """The error names the alternative."""
    wrapper = Wrapper()
    wrapper.has_chat_template = False
    assert "send text" in error_of(chat(), source, Tokenizer(wrapper, UNUSED)).message


def test_an_empty_prompt_is_refused(source: ModelSource) -> None:
    """A text without tokens is empty as well."""
    tokenizer = Tokenizer(Wrapper(lambda messages, options: ""), UNUSED)
    assert error_of(chat(), source, tokenizer).field == "chat"
    assert error_of(pb.GenerateRequest(text=""), source, tokenizer).field == "text"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.GenerateRequest(tokens=pb.TokenIds(ids=[1, 737])), "tokens.ids[1]"),
        (pb.GenerateRequest(text="The", stop=pb.Stop(token_ids=[736, 737])), "stop.token_ids[1]"),
        (pb.GenerateRequest(text="The", sampling=pb.Sampling(logit_bias={737: 1})), "sampling.logit_bias[737]"),
    ],
)
def test_unknown_token_id_is_named(
    source: ModelSource, tokenizer: Tokenizer, request_: pb.GenerateRequest, field: str
) -> None:
    """The error has the position of the id."""
    source = replace(source, config={**source.config, "vocab_size": 737})
    error = error_of(request_, source, tokenizer)
    assert (error.field, "737" in error.message) == (field, True)


def test_prompt_length_is_limited_by_the_context(source: ModelSource, tokenizer: Tokenizer) -> None:
    """The limit is exact. The default of max_tokens is the rest of the context."""

    def ids(count: int, **fields: Any) -> pb.GenerateRequest:
        return pb.GenerateRequest(tokens=pb.TokenIds(ids=[5] * count), **fields)

    context = source.context_length
    assert prepare_prompt(ids(1), source, tokenizer).max_tokens == DEFAULT_MAX_TOKENS
    assert prepare_prompt(ids(context - 1), source, tokenizer).max_tokens == 1
    assert prepare_prompt(ids(context - 5, max_tokens=5), source, tokenizer).max_tokens == 5
    too_long = error_of(ids(context), source, tokenizer)
    assert (too_long.reason, too_long.field) == (Reason.CONTEXT_LENGTH_EXCEEDED, "tokens")
    too_many = error_of(ids(context - 5, max_tokens=6), source, tokenizer)
    assert (too_many.field, too_many.metadata["context_length"]) == ("max_tokens", str(context))
    boundless = replace(source, config={"model_type": "x"})
    assert prepare_prompt(ids(3 * context, max_tokens=10**6), boundless, tokenizer).max_tokens == 10**6


def test_changed_chat_template_is_reloaded(tmp_path: Path, templates: Templates) -> None:
    """The weights are the same."""
    copy = tmp_path / "model"
    shutil.copytree(EMBEDDED_PATH, copy)
    tokenizers, source = Tokenizers(templates), Resolver([]).resolve(Wanted(str(copy)))
    first = tokenizers.get(source)
    assert tokenizers.get(source) is first
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert tokenizers.get(source).render([{"role": "user", "content": "hi"}]) == "hi!"


def test_decoding_does_not_wait_for_tokenizing(tokenizer: Tokenizer) -> None:
    """Streams continue while the text of another request is encoded."""
    with tokenizer._lock:
        decoded: list[str] = []
        thread = threading.Thread(target=lambda: decoded.append(tokenizer.decode([40, 41])))
        thread.start()
        thread.join(5)
        assert decoded
