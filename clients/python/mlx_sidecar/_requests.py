"""Builds the request messages of both clients from Python values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as Proto

from mlx_sidecar._exceptions import InvalidArgument
from mlx_sidecar._messages import Message, Prompt, Tool, ToolCall
from mlx_sidecar._options import GenerateOptions
from mlx_sidecar.v1 import sidecar_pb2 as pb

ProtoT = TypeVar("ProtoT", bound=Proto)
DataT = TypeVar("DataT")

_CACHE_MODES = {
    "read_write": pb.CACHE_MODE_READ_WRITE,
    "read_only": pb.CACHE_MODE_READ_ONLY,
    "bypass": pb.CACHE_MODE_BYPASS,
}
_POOLINGS = {"last_token": pb.POOLING_LAST_TOKEN, "mean": pb.POOLING_MEAN, "cls": pb.POOLING_CLS}
_SPECULATIONS = {
    "auto": pb.SPECULATION_AUTO,
    "off": pb.SPECULATION_OFF,
    "ngram": pb.SPECULATION_NGRAM,
    "draft": pb.SPECULATION_DRAFT,
    "mtp": pb.SPECULATION_MTP,
}
_TOOL_CHOICES = {
    "auto": pb.TOOL_CHOICE_AUTO,
    "none": pb.TOOL_CHOICE_NONE,
    "required": pb.TOOL_CHOICE_REQUIRED,
}


def load_request(
    model: str,
    *,
    revision: str = "",
    adapter: str = "",
    pin: bool | None = None,
    ttl: float | None = None,
    skip_warmup: bool = False,
    allow_download: bool = False,
    estimate_only: bool = False,
    context_length: int | None = None,
) -> pb.GetOrLoadRequest:
    """
    Build a GetOrLoadRequest; the keywords are `LoadOptions`.

    Raises:
        InvalidArgument: If a value cannot be encoded.
    """
    return _build(
        pb.GetOrLoadRequest,
        model=model,
        revision=revision,
        adapter=adapter,
        pin=pin,
        ttl=None if ttl is None else _duration(ttl, "ttl"),
        skip_warmup=skip_warmup,
        allow_download=allow_download,
        estimate_only=estimate_only,
        context_length=context_length,
    )


def generate_request(
    model: str,
    prompt: Prompt,
    *,
    adapter: str = "",
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    repetition_penalty: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    logit_bias: Mapping[int, float] | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] = (),
    ignore_eos: bool = False,
    top_logprobs: int | None = None,
    cache_mode: str = "read_write",
    salt: str = "",
    keep: float | None = None,
    request_id: str = "",
    require_loaded: bool = False,
    json_schema: Mapping[str, Any] | str | None = None,
    json_object: bool = False,
    regex: str | None = None,
    grammar: str | None = None,
    priority: int | None = None,
    draft_model: str = "",
    draft_tokens: int | None = None,
    speculation: str | None = None,
    model_defaults: bool = False,
    samples: int | None = None,
    prompt_logprobs: int | None = None,
    tools: Sequence[Tool | Mapping[str, Any]] = (),
    add_generation_prompt: bool | None = None,
    enable_thinking: bool | None = None,
    tool_choice: str | None = None,
    required_tool: str = "",
    template_args: Mapping[str, Any] | None = None,
    reasoning_effort: str = "",
    continue_final_message: bool = False,
    reasoning_budget: int | None = None,
) -> pb.GenerateRequest:
    """
    Build a GenerateRequest; the keywords are `GenerateOptions`.

    Raises:
        InvalidArgument: If a value cannot be encoded, an option for chat prompts is given without messages, or several
            response formats are given.
        TypeError: If a value has the wrong type.
    """
    chat = {
        "tools": [_tool(tool) for tool in tools],
        "add_generation_prompt": add_generation_prompt,
        "enable_thinking": enable_thinking,
        "tool_choice": None if tool_choice is None else _choice("chat.tool_choice", _TOOL_CHOICES, tool_choice),
        "required_tool": required_tool,
        "template_args": {name: _value(value) for name, value in (template_args or {}).items()} or None,
        "reasoning_effort": reasoning_effort,
        "continue_final_message": continue_final_message or None,
    }
    sampling = _build(
        pb.Sampling,
        "sampling.",
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=logit_bias,
        model_defaults=model_defaults,
    )
    strings = [stop] if isinstance(stop, str) else stop
    return _build(
        pb.GenerateRequest,
        model=model,
        adapter=adapter,
        **_prompt(prompt, chat),
        max_tokens=max_tokens,
        sampling=sampling,
        stop=_build(pb.Stop, "stop.", strings=strings, token_ids=stop_token_ids, ignore_eos=ignore_eos),
        top_logprobs=top_logprobs,
        cache=_build(
            pb.CacheOptions,
            "cache.",
            mode=_choice("cache.mode", _CACHE_MODES, cache_mode),
            salt=salt,
            keep=None if keep is None else _duration(keep, "cache.keep"),
        ),
        request_id=request_id,
        require_loaded=require_loaded,
        response_format=_response_format(
            json_schema=None if json_schema is None else _json(json_schema),
            json_object=pb.JsonObject() if json_object else None,
            regex=regex,
            grammar=grammar,
        ),
        priority=priority,
        draft_model=draft_model,
        draft_tokens=draft_tokens,
        speculation=None if speculation is None else _choice("speculation", _SPECULATIONS, speculation),
        reasoning_budget=reasoning_budget,
        samples=samples,
        prompt_logprobs=prompt_logprobs,
    )


def refuse_samples(options: GenerateOptions) -> None:
    """
    Refuse options of a call that returns one completion, if they ask for several.

    Raises:
        InvalidArgument: At `samples`.
    """
    if (options.get("samples") or 1) > 1:
        raise InvalidArgument("samples: this call returns one completion; use complete_samples", field="samples")


def tokenize_request(model: str, prompt: Prompt, *, count_only: bool = False, **chat: Any) -> pb.TokenizeRequest:
    """
    Build a TokenizeRequest; the keywords are `TokenizeOptions`.

    Raises:
        InvalidArgument: As for `generate_request`.
        TypeError: If a value has the wrong type.
    """
    generate = generate_request(model, prompt, **chat)
    kind = str(generate.WhichOneof("prompt"))
    return pb.TokenizeRequest(model=model, count_only=count_only, **{kind: getattr(generate, kind)})


def embed_request(
    model: str,
    texts: str | Sequence[str],
    *,
    adapter: str = "",
    prompt_name: str | None = None,
    prompt: str | None = None,
    dimensions: int | None = None,
    normalize: bool | None = None,
    pooling: str | None = None,
    cache_mode: str = "read_write",
    salt: str = "",
    request_id: str = "",
    require_loaded: bool = False,
    priority: int | None = None,
) -> pb.EmbedRequest:
    """
    Build an EmbedRequest; the keywords are `EmbedOptions`.

    Raises:
        InvalidArgument: If a value cannot be encoded.
        TypeError: If a value has the wrong type.
    """
    return _build(
        pb.EmbedRequest,
        model=model,
        adapter=adapter,
        texts=[texts] if isinstance(texts, str) else texts,
        prompt_name=prompt_name,
        prompt=prompt,
        dimensions=dimensions,
        normalize=normalize,
        pooling=None if pooling is None else _choice("pooling", _POOLINGS, pooling),
        cache=_build(pb.CacheOptions, "cache.", mode=_choice("cache.mode", _CACHE_MODES, cache_mode), salt=salt),
        request_id=request_id,
        require_loaded=require_loaded,
        priority=priority,
    )


def invalidate_model_request(model: str, *, weights: bool, prefixes: bool, dry_run: bool) -> pb.InvalidateRequest:
    """
    Build an InvalidateRequest for one model.

    Raises:
        InvalidArgument: If the name cannot be encoded.
    """
    target = _build(pb.ModelTarget, "model.", model=model, weights=weights, prefixes=prefixes)
    return pb.InvalidateRequest(model=target, dry_run=dry_run)


def invalidate_prefix_request(
    model: str, prefix: str | Sequence[int], *, salt: str, dry_run: bool
) -> pb.InvalidateRequest:
    """
    Build an InvalidateRequest for the prompts that begin with a text or with token ids.

    Raises:
        InvalidArgument: If a value cannot be encoded.
        TypeError: If the prefix is neither.
    """
    target = _build(pb.PrefixTarget, "prefix.", model=model, **_text_or_tokens(prefix, "prefix."), salt=salt)
    return pb.InvalidateRequest(prefix=target, dry_run=dry_run)


def invalidate_all_request(*, weights: bool, prefixes: bool, dry_run: bool) -> pb.InvalidateRequest:
    """Build an InvalidateRequest for everything."""
    return pb.InvalidateRequest(all=pb.AllTarget(weights=weights, prefixes=prefixes), dry_run=dry_run)


def _build(kind: type[ProtoT], path: str = "", /, **fields: Any) -> ProtoT:
    # One field at a time, because protobuf does not name the field that it refuses.
    message = kind()
    for name, value in fields.items():
        try:
            message.MergeFrom(kind(**{name: value}))
        except ValueError as error:
            raise InvalidArgument(f"{path}{name}: {error}", field=path + name) from None
    return message


def _duration(seconds: float, field: str) -> Duration:
    duration = Duration()
    try:
        duration.FromTimedelta(timedelta(seconds=seconds))
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"{field}: {error}", field=field) from None
    return duration


def _response_format(**kinds: Any) -> pb.ResponseFormat | None:
    given = {name: value for name, value in kinds.items() if value is not None}
    if len(given) > 1:
        names = ", ".join(given)
        raise InvalidArgument(f"response_format: only one of {names} can be given", field="response_format")
    return _build(pb.ResponseFormat, "response_format.", **given) if given else None


def _choice(field: str, choices: Mapping[str, int], name: str) -> int:
    if name not in choices:
        raise InvalidArgument(f"{field}: {name!r} is none of {', '.join(choices)}", field=field)
    return choices[name]


def _prompt(prompt: Prompt, chat: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(prompt, str | bytes) and len(prompt) and isinstance(prompt[0], Message | Mapping):
        return {"chat": _build(pb.Chat, "chat.", messages=[_message(turn) for turn in prompt], **chat)}
    for name, value in chat.items():
        if value not in (None, [], ""):
            raise InvalidArgument(f"chat.{name}: only for prompts that are messages", field=f"chat.{name}")
    return _text_or_tokens(prompt, "")


def _text_or_tokens(prompt: Any, path: str) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"text": prompt}
    # Bytes are a sequence of ints too, and would silently become token ids.
    if isinstance(prompt, bytes | bytearray | memoryview):
        raise TypeError("a prompt is text, token ids or messages, not bytes")
    return {"tokens": _build(pb.TokenIds, f"{path}tokens.", ids=prompt)}


def _message(turn: Any) -> pb.ChatMessage:
    turn = _data(Message, turn)
    return _build(
        pb.ChatMessage,
        "chat.messages.",
        role=turn.role,
        content=turn.content,
        reasoning_content=turn.reasoning_content,
        tool_calls=[_tool_call(call) for call in turn.tool_calls],
        tool_call_id=turn.tool_call_id,
    )


def _tool_call(call: Any) -> pb.ToolCall:
    call = _data(ToolCall, call)
    arguments = _json(call.arguments)
    return _build(pb.ToolCall, "chat.messages.tool_calls.", id=call.id, name=call.name, arguments_json=arguments)


def _tool(tool: Any) -> pb.Tool:
    tool = _data(Tool, tool)
    schema = _json(tool.parameters)
    return _build(pb.Tool, "chat.tools.", name=tool.name, description=tool.description, parameters_json=schema)


def _data(kind: type[DataT], value: Any) -> DataT:
    return value if isinstance(value, kind) else kind(**value)


def _value(value: Any) -> str:
    """Return any value as JSON; a text is a value as well."""
    return json.dumps(value, ensure_ascii=False)


def _json(value: Mapping[str, Any] | str) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
