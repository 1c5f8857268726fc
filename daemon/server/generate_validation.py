"""Checks of a GenerateRequest that need no model. Each error names its field."""

from __future__ import annotations

from daemon.server.field_checks import (
    MAX_NAME_BYTES,
    check_cache,
    check_choice,
    check_count,
    check_length,
    check_name,
    check_range,
    check_request_id,
    check_whole,
)
from daemon.server.template_validation import check_template
from daemon.shared.errors import invalid
from daemon.shared.sampling_options import RANGES, check_effects
from mlx_sidecar.v1 import sidecar_pb2 as pb

MAX_IDS = 1_000_000
MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 256
MAX_STOP_IDS = 64
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 20
MAX_SAMPLES = 16
MAX_MESSAGES = 10_000
MAX_FORM_BYTES = {"json_schema": 64 * 1024, "regex": 8 * 1024, "grammar": 64 * 1024}
MAX_SCHEMAS_BYTES = 256 * 1024
MAX_PRIORITY = 2
MAX_DRAFT_TOKENS = 16


def check_generate(request: pb.GenerateRequest) -> None:
    """
    Check a GenerateRequest as far as that is possible without its model.

    Raises:
        SidecarError: INVALID_ARGUMENT with the field that is wrong.
    """
    check_count("tokens.ids", request.tokens.ids, MAX_IDS)
    check_whole(request)
    check_name("model", request.model)
    check_length("adapter", request.adapter, MAX_NAME_BYTES)
    _check_prompt(request)
    _check_reasoning_budget(request)
    _check_sampling(request.sampling)
    _check_samples(request)
    _check_stop(request.stop)
    if request.HasField("top_logprobs"):
        check_range("top_logprobs", request.top_logprobs, 0, MAX_TOP_LOGPROBS)
    check_cache(request.cache)
    _check_form(request)
    check_request_id(request.request_id)
    if request.HasField("priority"):
        check_range("priority", request.priority, -MAX_PRIORITY, MAX_PRIORITY)
    _check_draft(request)
    _check_scores(request)


def _check_prompt(request: pb.GenerateRequest) -> None:
    kind = request.WhichOneof("prompt")
    if kind is None:
        raise invalid("prompt", "is missing; give text, tokens or chat")
    if kind == "text" and not request.text:
        raise invalid("text", "is empty; a prompt needs at least one token")
    if kind == "tokens" and not request.tokens.ids:
        raise invalid("tokens.ids", "is empty; a prompt needs at least one token")
    if kind == "chat":
        check_chat(request.chat)


def _check_reasoning_budget(request: pb.GenerateRequest) -> None:
    if not request.HasField("reasoning_budget"):
        return
    if request.reasoning_budget < 0:
        raise invalid("reasoning_budget", f"is {request.reasoning_budget}; it must be 0 or more")
    if not request.HasField("chat"):
        raise invalid("reasoning_budget", "needs a chat prompt; the reasoning of other prompts is text")
    if request.chat.HasField("enable_thinking") and not request.chat.enable_thinking:
        raise invalid("reasoning_budget", "cannot go with chat.enable_thinking false, which leaves nothing to limit")
    if request.chat.continue_final_message:
        raise invalid("reasoning_budget", "cannot go with chat.continue_final_message: the answer goes on as text")


def check_chat(chat: pb.Chat) -> None:
    if not chat.messages:
        raise invalid("chat.messages", "is empty; a conversation needs at least one message")
    if len(chat.messages) > MAX_MESSAGES:
        raise invalid("chat.messages", f"has {len(chat.messages)} entries; at most {MAX_MESSAGES} are allowed")
    for index, message in enumerate(chat.messages):
        if not message.role:
            raise invalid(f"chat.messages[{index}].role", "is missing; give one, such as user")
    names: set[str] = set()
    for index, tool in enumerate(chat.tools):
        if not tool.name:
            raise invalid(f"chat.tools[{index}].name", "is missing; each tool needs one")
        if tool.name in names:
            raise invalid(f"chat.tools[{index}].name", "is the name of another tool as well; give each its own")
        names.add(tool.name)
    _check_tool_choice(chat, names)
    check_template(chat)


def _check_tool_choice(chat: pb.Chat, names: set[str]) -> None:
    check_choice("chat.tool_choice", chat.tool_choice, pb.ToolChoice)
    required = chat.tool_choice == pb.TOOL_CHOICE_REQUIRED
    if required and not chat.tools:
        raise invalid("chat.tool_choice", "cannot be REQUIRED without tools; send some, or leave it out")
    if chat.required_tool and not required:
        raise invalid("chat.required_tool", "needs chat.tool_choice REQUIRED; set that, or leave it out")
    if chat.required_tool and chat.required_tool not in names:
        raise invalid("chat.required_tool", "is the name of none of the tools; name one of chat.tools")
    _check_allowed(chat, names)
    if required:
        _check_schemas(chat)


def _check_allowed(chat: pb.Chat, names: set[str]) -> None:
    for index, name in enumerate(chat.allowed_tools):
        if name not in names:
            raise invalid(f"chat.allowed_tools[{index}]", "is the name of none of the tools; name one of chat.tools")
    if chat.allowed_tools and chat.required_tool:
        raise invalid("chat.allowed_tools", "cannot go with chat.required_tool, which names one; leave one of them out")
    if chat.allowed_tools and chat.tool_choice == pb.TOOL_CHOICE_NONE:
        raise invalid("chat.allowed_tools", "cannot go with chat.tool_choice NONE; leave one of them out")


def _check_schemas(chat: pb.Chat) -> None:
    """Refuse schemas that would take long to compile."""
    for index, tool in enumerate(chat.tools):
        check_length(f"chat.tools[{index}].parameters_json", tool.parameters_json, MAX_FORM_BYTES["json_schema"])
    size = sum(len(tool.parameters_json.encode()) for tool in chat.tools)
    if size > MAX_SCHEMAS_BYTES:
        raise invalid(
            "chat.tools", f"have {size} bytes of schemas; calls of at most {MAX_SCHEMAS_BYTES} can be REQUIRED"
        )


def _check_response_format(request: pb.GenerateRequest) -> None:
    form = request.response_format
    kind = form.WhichOneof("kind")
    if kind is None:
        raise invalid("response_format", "is empty; give json_schema, json_object, regex or grammar")
    if kind in MAX_FORM_BYTES:
        text = getattr(form, kind)
        if not text:
            raise invalid(f"response_format.{kind}", "is empty; an answer of any form needs no response_format")
        check_length(f"response_format.{kind}", text, MAX_FORM_BYTES[kind])
    if not request.chat.tools or request.chat.tool_choice == pb.TOOL_CHOICE_NONE:
        return
    if request.chat.tool_choice == pb.TOOL_CHOICE_REQUIRED:
        raise invalid(
            "response_format", "has no effect with chat.tool_choice REQUIRED: the answer is calls; leave it out"
        )
    if kind not in ("json_schema", "json_object"):
        raise invalid(
            "chat.tools", f"cannot go with response_format.{kind}, but with JSON alone; leave one of them out"
        )
    _check_schemas(request.chat)


def _check_form(request: pb.GenerateRequest) -> None:
    """Refuse options that cannot be combined with a form of the completion, which two fields can ask for."""
    if request.HasField("response_format"):
        _check_response_format(request)
        field = "response_format"
    elif request.chat.tool_choice == pb.TOOL_CHOICE_REQUIRED:
        field = "chat.tool_choice REQUIRED"
    else:
        return
    if request.stop.ignore_eos:
        raise invalid("stop.ignore_eos", f"cannot go with {field}, which says where the completion ends")


def _check_draft(request: pb.GenerateRequest) -> None:
    if request.draft_model:
        check_name("draft_model", request.draft_model)
    if request.HasField("draft_tokens"):
        if not request.draft_model:
            raise invalid("draft_tokens", "needs draft_model; set that, or leave it out")
        check_range("draft_tokens", request.draft_tokens, 1, MAX_DRAFT_TOKENS)
    _check_speculation(request)


def _check_speculation(request: pb.GenerateRequest) -> None:
    kind = request.speculation
    check_choice("speculation", kind, pb.Speculation)
    if kind == pb.SPECULATION_DRAFT and not request.draft_model:
        raise invalid("speculation", "cannot be DRAFT without draft_model, which names the model that guesses")
    if kind in (pb.SPECULATION_OFF, pb.SPECULATION_NGRAM, pb.SPECULATION_MTP) and request.draft_model:
        name = pb.Speculation.Name(kind).removeprefix("SPECULATION_")
        raise invalid("speculation", f"cannot be {name} with draft_model, which asks for its guesses; leave one out")
    if kind == pb.SPECULATION_MTP and request.samples > 1:
        raise invalid("speculation", "cannot be MTP for several samples; leave one of them out")


def _check_sampling(sampling: pb.Sampling) -> None:
    for name, (least, most) in RANGES.items():
        if sampling.HasField(name):
            check_range(f"sampling.{name}", getattr(sampling, name), least, most)
    check_count("sampling.logit_bias", sampling.logit_bias, MAX_LOGIT_BIAS)
    for token, bias in sampling.logit_bias.items():
        check_range(f"sampling.logit_bias[{token}]", bias, -100, 100)


def _check_samples(request: pb.GenerateRequest) -> None:
    if request.HasField("samples"):
        check_range("samples", request.samples, 1, MAX_SAMPLES)
        if request.samples > 1 and request.draft_model:
            raise invalid("draft_model", "cannot guess for several samples; leave one of them out")
    check_effects(request, None)


def _check_scores(request: pb.GenerateRequest) -> None:
    """Check `prompt_logprobs`, and `max_tokens`, which can be 0 with it alone."""
    if request.HasField("prompt_logprobs"):
        check_range("prompt_logprobs", request.prompt_logprobs, 0, MAX_TOP_LOGPROBS)
        if request.draft_model:
            raise invalid("draft_model", "cannot go with prompt_logprobs; leave one of them out")
    if not request.HasField("max_tokens"):
        return
    if request.max_tokens < (0 if request.HasField("prompt_logprobs") else 1):
        raise invalid("max_tokens", f"is {request.max_tokens}; it must be 1 or more, or 0 with prompt_logprobs")
    if request.max_tokens == 0:
        _check_no_answer(request)


def _check_no_answer(request: pb.GenerateRequest) -> None:
    """Refuse options of the answer of a request that has none."""
    for field in _ANSWER_FIELDS:
        if request.HasField(field):
            raise invalid(field, "has no effect with max_tokens 0; leave it out")
    if request.speculation == pb.SPECULATION_NGRAM:
        raise invalid("speculation", "has no effect with max_tokens 0; leave it out")
    for path, message in (("sampling", request.sampling), ("stop", request.stop)):
        for descriptor, value in message.ListFields():
            if value != _NEUTRAL.get(descriptor.name):
                raise invalid(f"{path}.{descriptor.name}", "has no effect with max_tokens 0; leave it out")
    if request.chat.tool_choice == pb.TOOL_CHOICE_REQUIRED:
        raise invalid("chat.tool_choice", "cannot be REQUIRED with max_tokens 0, which leaves no room for calls")


_ANSWER_FIELDS = ("top_logprobs", "response_format", "samples", "reasoning_budget")
"""Fields of a Generate request that are about its answer alone."""
_NEUTRAL = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1} | {
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
"""Sampling options that change nothing."""


def _check_stop(stop: pb.Stop) -> None:
    check_count("stop.strings", stop.strings, MAX_STOP_STRINGS)
    check_count("stop.token_ids", stop.token_ids, MAX_STOP_IDS)
    for index, text in enumerate(stop.strings):
        if not text:
            raise invalid(f"stop.strings[{index}]", "is empty; leave it out")
        check_length(f"stop.strings[{index}]", text, MAX_STOP_BYTES)
