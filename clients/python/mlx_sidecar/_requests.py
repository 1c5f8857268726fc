"""Builds the request messages of both clients from Python values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration

from mlx_sidecar._exceptions import InvalidArgument
from mlx_sidecar._messages import Prompt, Tool
from mlx_sidecar._options import GenerateOptions
from mlx_sidecar._prompts import as_json, build, each, prompt_fields, text_or_tokens, tool_messages, value_as_json
from mlx_sidecar.v1 import sidecar_pb2 as pb

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
    update: bool = False,
) -> pb.GetOrLoadRequest:
    """
    Build a GetOrLoadRequest; the keywords are `LoadOptions`.

    Raises:
        InvalidArgument: If a value cannot be encoded.
    """
    return build(
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
        update=update,
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
    stop_at_tool_call: bool = False,
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
    allowed_tools: Sequence[str] = (),
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
        "tools": tool_messages(tools),
        "add_generation_prompt": add_generation_prompt,
        "enable_thinking": enable_thinking,
        "tool_choice": None if tool_choice is None else _choice("chat.tool_choice", _TOOL_CHOICES, tool_choice),
        "required_tool": required_tool,
        "allowed_tools": each(allowed_tools, "chat.allowed_tools"),
        "template_args": {name: value_as_json(value) for name, value in (template_args or {}).items()} or None,
        "reasoning_effort": reasoning_effort,
        "continue_final_message": continue_final_message or None,
    }
    sampling = build(
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
    return build(
        pb.GenerateRequest,
        model=model,
        adapter=adapter,
        **prompt_fields(prompt, chat),
        max_tokens=max_tokens,
        sampling=sampling,
        stop=build(
            pb.Stop,
            "stop.",
            strings=strings,
            token_ids=stop_token_ids,
            ignore_eos=ignore_eos,
            at_tool_call=stop_at_tool_call,
        ),
        top_logprobs=top_logprobs,
        cache=build(
            pb.CacheOptions,
            "cache.",
            mode=_choice("cache.mode", _CACHE_MODES, cache_mode or "read_write"),
            salt=salt,
            keep=None if keep is None else _duration(keep, "cache.keep"),
        ),
        request_id=request_id,
        require_loaded=require_loaded,
        response_format=_response_format(
            json_schema=None if json_schema is None else as_json(json_schema),
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
    return build(
        pb.EmbedRequest,
        model=model,
        adapter=adapter,
        texts=[texts] if isinstance(texts, str) else texts,
        prompt_name=prompt_name,
        prompt=prompt,
        dimensions=dimensions,
        normalize=normalize,
        pooling=None if pooling is None else _choice("pooling", _POOLINGS, pooling),
        cache=build(
            pb.CacheOptions, "cache.", mode=_choice("cache.mode", _CACHE_MODES, cache_mode or "read_write"), salt=salt
        ),
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
    target = build(pb.ModelTarget, "model.", model=model, weights=weights, prefixes=prefixes)
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
    target = build(pb.PrefixTarget, "prefix.", model=model, **text_or_tokens(prefix, "prefix."), salt=salt)
    return pb.InvalidateRequest(prefix=target, dry_run=dry_run)


def invalidate_all_request(*, weights: bool, prefixes: bool, dry_run: bool) -> pb.InvalidateRequest:
    """Build an InvalidateRequest for everything."""
    return pb.InvalidateRequest(all=pb.AllTarget(weights=weights, prefixes=prefixes), dry_run=dry_run)


def _duration(seconds: float, field: str) -> Duration:
    duration = Duration()
    try:
        duration.FromTimedelta(timedelta(seconds=seconds))
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"{field}: {error}", field=field) from None
    except TypeError:
        raise TypeError(f"{field} cannot have a value of type {type(seconds).__name__}") from None
    return duration


def _response_format(**kinds: Any) -> pb.ResponseFormat | None:
    given = {name: value for name, value in kinds.items() if value is not None}
    if len(given) > 1:
        names = ", ".join(given)
        raise InvalidArgument(f"response_format: only one of {names} can be given", field="response_format")
    return build(pb.ResponseFormat, "response_format.", **given) if given else None


def _choice(field: str, choices: Mapping[str, int], name: str) -> int:
    if name not in choices:
        raise InvalidArgument(f"{field}: {name!r} is none of {', '.join(choices)}", field=field)
    return choices[name]
