"""Checks of requests that need no model, except those of Generate. Each error names its field."""

from __future__ import annotations

from daemon.server.field_checks import (
    MAX_NAME_BYTES,
    MAX_SALT_BYTES,
    check_cache,
    check_choice,
    check_count,
    check_duration,
    check_length,
    check_name,
    check_range,
    check_request_id,
    check_whole,
)
from daemon.server.generate_validation import MAX_IDS, MAX_PRIORITY, check_chat
from daemon.shared.errors import invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

MAX_TEXTS = 256
MAX_INSTRUCTION_BYTES = 64 * 1024


def check_load(request: pb.GetOrLoadRequest) -> None:
    """
    Check a GetOrLoadRequest.

    Raises:
        SidecarError: INVALID_ARGUMENT with the field that is wrong.
    """
    check_whole(request)
    check_name("model", request.model)
    check_length("revision", request.revision, MAX_NAME_BYTES)
    check_length("adapter", request.adapter, MAX_NAME_BYTES)
    if request.HasField("ttl"):
        check_duration("ttl", request.ttl)
    if request.HasField("context_length"):
        check_range("context_length", request.context_length, 2, 2**31 - 1)
    if request.update and not request.allow_download:
        raise invalid("update", "needs allow_download, as it fetches what is new; set both, or neither")
    for field in ("pin", "ttl", "context_length"):
        if request.estimate_only and request.HasField(field):
            raise invalid(field, "cannot be combined with estimate_only, which loads nothing")


def check_invalidate(request: pb.InvalidateRequest) -> None:
    """
    Check an InvalidateRequest.

    Raises:
        SidecarError: INVALID_ARGUMENT with the field that is wrong.
    """
    check_count("prefix.tokens.ids", request.prefix.tokens.ids, MAX_IDS)
    check_whole(request)
    kind = request.WhichOneof("target")
    if kind is None:
        raise invalid("target", "is missing; give model, prefix or all")
    if kind == "prefix":
        check_name("prefix.model", request.prefix.model)
        check_length("prefix.salt", request.prefix.salt, MAX_SALT_BYTES)
        if not (request.prefix.text or request.prefix.tokens.ids):
            raise invalid("prefix.input", "is empty; give text or tokens")
        return
    if kind == "model":
        check_name("model.model", request.model.model)
    target = request.model if kind == "model" else request.all
    if not (target.weights or target.prefixes):
        raise invalid(kind, "drops nothing; set weights, prefixes or both")


def check_tokenize(request: pb.TokenizeRequest) -> None:
    """
    Check a TokenizeRequest as far as that is possible without its model.

    Raises:
        SidecarError: INVALID_ARGUMENT with the field that is wrong.
    """
    check_count("tokens.ids", request.tokens.ids, MAX_IDS)
    check_whole(request)
    check_name("model", request.model)
    kind = request.WhichOneof("input")
    if kind is None:
        raise invalid("input", "is missing; give text, tokens or chat")
    if kind == "chat":
        check_chat(request.chat)


def check_embed(request: pb.EmbedRequest) -> None:
    """
    Check an EmbedRequest as far as that is possible without its model.

    Raises:
        SidecarError: INVALID_ARGUMENT with the field that is wrong.
    """
    check_whole(request)
    check_name("model", request.model)
    check_length("adapter", request.adapter, MAX_NAME_BYTES)
    if not request.texts:
        raise invalid("texts", "is empty; give 1 to 256 texts")
    check_count("texts", request.texts, MAX_TEXTS)
    check_length("prompt_name", request.prompt_name, MAX_NAME_BYTES)
    check_length("prompt", request.prompt, MAX_INSTRUCTION_BYTES)
    if request.HasField("prompt") and request.HasField("prompt_name"):
        raise invalid("prompt_name", "cannot go with prompt; give one of them")
    if request.HasField("dimensions") and request.dimensions < 1:
        raise invalid("dimensions", f"is {request.dimensions}; it must be 1 or more")
    check_choice("pooling", request.pooling, pb.Pooling)
    for option, _ in request.cache.ListFields():
        if option.name not in ("mode", "salt"):
            raise invalid(f"cache.{option.name}", "cannot be used with Embed, which takes mode and salt")
    check_cache(request.cache)
    if request.cache.HasField("keep"):
        raise invalid("cache.keep", "is for Generate alone; leave it unset")
    check_request_id(request.request_id)
    if request.HasField("priority"):
        check_range("priority", request.priority, -MAX_PRIORITY, MAX_PRIORITY)


def check_list_models(request: pb.ListModelsRequest) -> None:
    """
    Check a ListModelsRequest, which has no fields.

    Raises:
        SidecarError: INVALID_ARGUMENT if it has any.
    """
    check_whole(request)
