"""Good requests with some fields changed, and what validation says to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from daemon.server.generate_validation import check_generate
from daemon.server.validation import check_embed, check_invalidate, check_list_models, check_load, check_tokenize
from daemon.shared.errors import Reason, SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb

CHECKS: dict[type[Message], Callable[[Any], None]] = {
    pb.GetOrLoadRequest: check_load,
    pb.GenerateRequest: check_generate,
    pb.InvalidateRequest: check_invalidate,
    pb.TokenizeRequest: check_tokenize,
    pb.EmbedRequest: check_embed,
    pb.ListModelsRequest: check_list_models,
}


def load(**fields: Any) -> pb.GetOrLoadRequest:
    """Return a good GetOrLoadRequest with some fields changed."""
    return pb.GetOrLoadRequest(**{"model": "embedded", **fields})


def generate(**fields: Any) -> pb.GenerateRequest:
    """Return a good GenerateRequest with some fields changed."""
    return pb.GenerateRequest(**{"model": "embedded", "text": "hello", **fields})


def sampling(**fields: Any) -> pb.GenerateRequest:
    """Return a request with sampling options."""
    return generate(sampling=pb.Sampling(**fields))


def chat(**fields: Any) -> pb.GenerateRequest:
    """Return a request with a conversation."""
    return pb.GenerateRequest(model="embedded", chat=pb.Chat(**{"messages": [pb.ChatMessage(role="user")], **fields}))


def form(**fields: Any) -> pb.GenerateRequest:
    """Return a request with a response format."""
    return generate(response_format=pb.ResponseFormat(**fields))


def chat_in_a_form(**fields: Any) -> pb.GenerateRequest:
    """Return a request with a conversation and a response format."""
    request = chat(**fields)
    request.response_format.regex = "a"
    return request


def must_call(**fields: Any) -> pb.GenerateRequest:
    """Return a request that must be answered with tool calls, with some fields changed."""
    request = chat(tools=[pb.Tool(name="t")], tool_choice=pb.TOOL_CHOICE_REQUIRED)
    request.MergeFrom(pb.GenerateRequest(**fields))
    return request


def prefix(**fields: Any) -> pb.InvalidateRequest:
    """Return a request to drop a prefix."""
    return pb.InvalidateRequest(prefix=pb.PrefixTarget(**{"model": "embedded", "text": "hello", **fields}))


def embed(**fields: Any) -> pb.EmbedRequest:
    """Return a good EmbedRequest with some fields changed."""
    return pb.EmbedRequest(**{"model": "m", "texts": ["a"], **fields})


def refused(request: Message) -> str | None:
    """Return the field that a request is refused for."""
    error = error_of(request)
    if error is None:
        return None
    assert error.reason is Reason.INVALID_ARGUMENT
    assert error.field
    assert error.message.startswith(error.field)
    return error.field


def error_of(request: Message) -> SidecarError | None:
    """Return the error of a request, if it has one."""
    try:
        CHECKS[type(request)](request)
    except SidecarError as error:
        return error
    return None
