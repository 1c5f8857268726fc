"""The fields of requests: each one has a decision of validation, and an unknown one is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.message import Message

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.server.requests import CHECKS, chat, generate, load, prefix, refused

CHECKED = {
    "GetOrLoadRequest": {"model", "revision", "adapter", "pin", "ttl", "context_length", "update"},
    "GenerateRequest": {"model", "adapter", "text", "tokens", "chat", "max_tokens", "sampling", "stop", "top_logprobs"}
    | {"cache", "request_id", "response_format", "priority", "draft_model", "draft_tokens"}
    | {"reasoning_budget", "samples", "prompt_logprobs", "speculation"},
    "ResponseFormat": {"json_schema", "json_object", "regex", "grammar"},
    "TokenIds": {"ids"},
    "Chat": {"messages", "tools", "tool_choice", "required_tool", "allowed_tools"}
    | {"template_args", "reasoning_effort", "continue_final_message"},
    "ChatMessage": {"role"},
    "Tool": {"name", "parameters_json"},
    "Sampling": {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty"}
    | {"frequency_penalty", "logit_bias", "seed", "model_defaults"},
    "Stop": {"strings", "token_ids", "ignore_eos"},
    "CacheOptions": {"mode", "salt", "keep"},
    "InvalidateRequest": {"model", "prefix", "all"},
    "ModelTarget": {"model", "weights", "prefixes"},
    "PrefixTarget": {"model", "text", "tokens", "salt"},
    "AllTarget": {"weights", "prefixes"},
    "TokenizeRequest": {"model", "tokens", "chat"},
    "EmbedRequest": {"model", "adapter", "texts", "prompt_name", "prompt", "dimensions", "pooling", "cache"}
    | {"request_id", "priority"},
}
"""Fields that validation looks at, by message."""

FREE = {
    "GetOrLoadRequest": {"skip_warmup", "allow_download", "estimate_only"},
    "GenerateRequest": {"require_loaded"},
    "Chat": {"add_generation_prompt", "enable_thinking"},
    "ChatMessage": {"content", "reasoning_content", "tool_calls", "tool_call_id"},
    "ToolCall": {"id", "name", "arguments_json"},
    "Tool": {"description"},
    "InvalidateRequest": {"dry_run"},
    "TokenizeRequest": {"text", "count_only"},
    "EmbedRequest": {"normalize", "require_loaded"},
    "Stop": {"at_tool_call"},
}
"""Fields of which every value is allowed here: switches, seeds, texts that only templates read, JSON that the engine
parses."""


@pytest.mark.parametrize("message", [load(), generate(), chat(), prefix()], ids=["load", "generate", "chat", "prefix"])
def test_unknown_request_field_is_refused(message: Message) -> None:
    """A newer client asks for something that would be ignored; no parameter ever is."""
    request = type(message).FromString(message.SerializeToString() + b"\xf8\x07\x01")  # field 127, a varint
    assert refused(request) == "request"


def test_unknown_nested_request_field_is_refused() -> None:
    """However deep it is."""
    nested = pb.Sampling.FromString(pb.Sampling(top_k=3).SerializeToString() + b"\xf8\x07\x01")
    assert refused(generate(sampling=nested)) == "request"


def fields_of(descriptor: Any, seen: set[str]) -> Iterator[Any]:
    """Iterate over all fields of a request, however deep, but for the values of maps and well-known types."""
    if descriptor.full_name in seen or descriptor.file.package.startswith("google"):
        return
    seen.add(descriptor.full_name)
    for field in descriptor.fields:
        yield field
        inner = field.message_type
        if inner is not None and not inner.GetOptions().map_entry:
            yield from fields_of(inner, seen)


def test_every_request_field_has_a_validation_decision() -> None:
    """A new field of a request fails here until it is checked, or said to need no check."""
    seen: set[str] = set()
    fields = [field for kind in CHECKS for field in fields_of(kind.DESCRIPTOR, seen)]
    for field in fields:
        message = field.containing_type.name
        checked, free = field.name in CHECKED.get(message, ()), field.name in FREE.get(message, ())
        assert checked != free, f"{message}.{field.name} has no decision, or two"
    known = {(field.containing_type.name, field.name) for field in fields}
    decided = {(message, name) for table in (CHECKED, FREE) for message, names in table.items() for name in names}
    assert decided == known
