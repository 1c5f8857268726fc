"""Renders and tokenises the prompt of a request, and checks it against the model's vocabulary and context length."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.cache.identity import ModelSource
from daemon.engine.output.tool_calls import Tool
from daemon.engine.prompt.tokenizers import Tokenizer
from daemon.shared.errors import Reason, SidecarError, invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

DEFAULT_MAX_TOKENS = 2048
"""Most tokens of a completion if the request names no maximum."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """
    A prompt that fits its model.

    Attributes:
        tokens: Its ids.
        max_tokens: Most tokens to generate after it.
    """

    tokens: list[int]
    max_tokens: int


def prepare_prompt(
    request: pb.GenerateRequest, source: ModelSource, tokenizer: Tokenizer, rendered: str | None = None
) -> Prompt:
    """
    Return the prompt of a request, rendered, tokenised and checked. Runs on the engine's pools of threads.

    Args:
        request: The request.
        source: Its model.
        tokenizer: The model's tokenizer.
        rendered: The text of its conversation; None renders it here.

    Raises:
        SidecarError: INVALID_ARGUMENT if the prompt is empty, cannot be rendered or has ids that the model has not;
            CONTEXT_LENGTH_EXCEEDED if prompt and completion do not fit the model's context.
    """
    tokens = tokenise(request, tokenizer, rendered)
    if not tokens:
        raise invalid(request.WhichOneof("prompt") or "prompt", "is empty; a prompt needs at least one token")
    vocab = source.vocab_size or tokenizer.size
    kind = request.WhichOneof("prompt")
    _check_ids(lambda index, _: f"tokens.ids[{index}]" if kind == "tokens" else f"{kind}", tokens, vocab)
    _check_ids(lambda index, _: f"stop.token_ids[{index}]", request.stop.token_ids, vocab)
    _check_ids(lambda _, token: f"sampling.logit_bias[{token}]", list(request.sampling.logit_bias), vocab)
    return Prompt(tokens, _max_tokens(request, len(tokens), source.context_length))


def tokenise(request: pb.GenerateRequest, tokenizer: Tokenizer, rendered: str | None = None) -> list[int]:
    """
    Return the ids of a request's prompt, which is ids, text or a conversation.

    Args:
        request: The request.
        tokenizer: The model's tokenizer.
        rendered: The text of its conversation; None renders it here.

    Raises:
        SidecarError: INVALID_ARGUMENT if the conversation cannot be rendered, as for `render`.
    """
    kind = request.WhichOneof("prompt")
    if kind == "tokens":
        return list(request.tokens.ids)
    if kind == "text":
        return tokenizer.encode_prompt(request.text) if request.text else []
    return tokenizer.encode(render(request.chat, tokenizer) if rendered is None else rendered, special=False)


def render(chat: pb.Chat, tokenizer: Tokenizer) -> str:
    """
    Return the text of a conversation, by its model's own template. Blocks until another process has rendered it.

    Raises:
        SidecarError: INVALID_ARGUMENT if the template is missing, refuses the conversation, or takes too much time or
            memory.
    """
    if not tokenizer.has_chat_template:
        raise invalid("chat", "needs a chat template and this model has none; send text instead")
    options: dict[str, Any] = {"add_generation_prompt": True}
    if chat.HasField("add_generation_prompt"):
        options["add_generation_prompt"] = chat.add_generation_prompt
    if chat.HasField("enable_thinking"):
        options["enable_thinking"] = chat.enable_thinking
    if tools := offered_tools(chat):
        options["tools"] = [tool.declaration() for tool in tools]
    messages = [_message(index, message) for index, message in enumerate(chat.messages)]
    return tokenizer.render(messages, **options)


def _message(index: int, message: pb.ChatMessage) -> dict[str, Any]:
    """Return a message as templates expect it, without the keys that would be empty."""
    rendered: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning_content:
        rendered["reasoning_content"] = message.reasoning_content
    if message.tool_call_id:
        rendered["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        rendered["tool_calls"] = [
            _tool_call(f"chat.messages[{index}].tool_calls[{position}].arguments_json", call)
            for position, call in enumerate(message.tool_calls)
        ]
    return rendered


def _tool_call(field: str, call: pb.ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": _json_object(field, call.arguments_json)}
    return {"id": call.id, "type": "function", "function": function}


def offered_tools(chat: pb.Chat) -> list[Tool]:
    """
    Return the tools that the model may call: those of the conversation, or none if `tool_choice` is NONE.

    Raises:
        SidecarError: INVALID_ARGUMENT if a schema is no JSON object.
    """
    tools = [
        Tool(tool.name, tool.description, _json_object(f"chat.tools[{index}].parameters_json", tool.parameters_json))
        for index, tool in enumerate(chat.tools)
    ]
    return [] if chat.tool_choice == pb.TOOL_CHOICE_NONE else tools


def _json_object(field: str, text: str) -> dict[str, Any]:
    """
    Return a JSON object; no text is an empty object.

    Raises:
        SidecarError: INVALID_ARGUMENT if the text is no JSON object, or cannot be written as UTF-8 again.
    """
    try:
        value = json.loads(text or "{}")
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # templates write it, tokenizers read it
    except (ValueError, RecursionError) as error:
        raise invalid(field, "is not valid JSON") from error
    if not isinstance(value, dict):
        raise invalid(field, "must be a JSON object")
    return value


def _check_ids(field: Callable[[int, int], str], ids: Sequence[int], vocab: int) -> None:
    """
    Refuse ids that the model has not.

    Args:
        field: Returns the field of the request that has the id, given its position and the id.
        ids: The ids.
        vocab: Number of ids that the model has.
    """
    if ids and max(ids) >= vocab:
        index, token = next((index, token) for index, token in enumerate(ids) if token >= vocab)
        raise invalid(field(index, token), f"is token {token}, but this model has {vocab} token ids")


def _max_tokens(request: pb.GenerateRequest, prompt: int, context: int) -> int:
    """
    Return the most tokens to generate.

    Args:
        request: The request.
        prompt: Tokens of its prompt.
        context: The model's context length in tokens; 0 if it states none.

    Raises:
        SidecarError: CONTEXT_LENGTH_EXCEEDED if prompt and completion do not fit the context.
    """
    wanted = request.max_tokens if request.HasField("max_tokens") else None
    if not context:
        return wanted or DEFAULT_MAX_TOKENS
    if prompt + (wanted or 1) > context:
        asked = f" plus max_tokens {wanted}" if wanted else ""
        raise SidecarError(
            Reason.CONTEXT_LENGTH_EXCEEDED,
            f"the prompt has {prompt} tokens{asked}, but the model's context holds {context}",
            metadata={
                "prompt_tokens": str(prompt),
                "max_tokens": str(wanted or 1),
                "context_length": str(context),
            },
            field="max_tokens" if wanted else request.WhichOneof("prompt") or "prompt",
        )
    return wanted or min(DEFAULT_MAX_TOKENS, context - prompt)
