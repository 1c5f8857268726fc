"""Checks of what a conversation gives to its chat template; which variables a template reads, only the engine tells."""

from __future__ import annotations

from daemon.shared.errors import invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

MAX_TEMPLATE_ARGS = 64
MAX_TEMPLATE_BYTES = 64 * 1024
MAX_EFFORT_BYTES = 64

_OWN_VARIABLES = {
    "messages": "chat.messages",
    "tools": "chat.tools",
    "add_generation_prompt": "chat.add_generation_prompt",
    "continue_final_message": "chat.continue_final_message",
    "enable_thinking": "chat.enable_thinking",
    "reasoning_effort": "chat.reasoning_effort",
}
"""Variables of a template that have a field of their own."""

_RENDERER_WORDS = {"conversations", "chat_template", "return_assistant_tokens_mask"}
"""Words of transformers' renderer that are no variables of a template."""


def check_template(chat: pb.Chat) -> None:
    """
    Check the template's variables, the effort, and whether the last message can be continued.

    Raises:
        SidecarError: INVALID_ARGUMENT with the field that is wrong.
    """
    _check_args(chat)
    effort = len(chat.reasoning_effort.encode())
    if effort > MAX_EFFORT_BYTES:
        raise invalid("chat.reasoning_effort", f"has {effort} bytes; at most {MAX_EFFORT_BYTES} are allowed")
    if chat.continue_final_message:
        _check_continued(chat)


def _check_args(chat: pb.Chat) -> None:
    args, field = chat.template_args, "chat.template_args"
    if len(args) > MAX_TEMPLATE_ARGS:
        raise invalid(field, f"has {len(args)} entries; at most {MAX_TEMPLATE_ARGS} are allowed")
    size = sum(len(name.encode()) + len(value.encode()) for name, value in args.items())
    if size > MAX_TEMPLATE_BYTES:
        raise invalid(field, f"has {size} bytes; at most {MAX_TEMPLATE_BYTES} are allowed")
    for name in args:
        if name in _OWN_VARIABLES:
            raise invalid(f"{field}[{name}]", f"has a field of its own; set {_OWN_VARIABLES[name]}")
        if not name.isidentifier() or name in _RENDERER_WORDS or name.endswith("_token"):
            raise invalid(f"{field}[{name}]", "cannot be set by a request; leave it out")


def _check_continued(chat: pb.Chat) -> None:
    last, field = chat.messages[-1], "chat.continue_final_message"
    if chat.add_generation_prompt:
        raise invalid(field, "cannot go with add_generation_prompt, which begins another message")
    if last.role != "assistant":
        raise invalid(field, "needs an assistant's message at the end of the conversation")
    if last.tool_calls:
        raise invalid(field, "cannot continue a message with tool calls")
