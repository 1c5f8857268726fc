"""Anthropic's messages: the types of requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from daemon.http.anthropic.blocks import CacheControl, Content, Texts, refusal
from daemon.http.parameters import Items, Parameters, Refusal

MOST_TOKENS = 2**31 - 1
"""Largest number of tokens of the gRPC API."""


class Message(Parameters):
    """A turn of the conversation."""

    role: Literal["user", "assistant", "system"] = Field(description="`system` also after other turns")
    content: Content = Field(description="text, or a list of blocks")


class CustomTool(Parameters):
    """A tool of the client's."""

    type: Literal["custom"] | None = Field(
        None, description="`custom`; a tool of another type is left out, which `x-mlx-sidecar-note` tells"
    )
    name: str = Field(description="name of the tool")
    description: str | None = Field(None, description="what it does, for the model to read")
    input_schema: dict[str, Any] = Field(description="JSON schema of its arguments")
    input_examples: Items[dict[str, Any]] | None = Field(None, description="the end of the description")
    cache_control: CacheControl | None = Field(None, description="keeps the prompt")

    harmless: ClassVar[Mapping[str, str]] = {
        "strict": "calls keep to the schema in any case, as far as a grammar can",
        "defer_loading": "the model knows all tools from the beginning",
        "eager_input_streaming": "arguments are streamed while they are written in any case",
        "allowed_callers": "the model is the only caller",
    }


class ServerTool(BaseModel):
    """A tool of Anthropic's, which is left out with all its parameters."""

    model_config = ConfigDict(strict=True, frozen=True, hide_input_in_errors=True)

    type: str


def _tool(value: Any) -> Any:
    """Return a tool as the type of its kind, see `blocks._block`."""
    if not isinstance(value, dict):
        raise ValueError("must be a tool: an object with a name")
    kind = value.get("type")
    if kind is not None and not isinstance(kind, str):
        raise refusal("type", "must be text")
    return (CustomTool if kind in (None, "custom") else ServerTool).model_validate(value)


class ToolChoice(Parameters):
    """Whether tools are called, and which."""

    type: Literal["auto", "any", "tool", "none"] = Field(
        description="as the model likes, nothing else, the one in `name`, or none"
    )
    name: str | None = Field(None, description="the tool to call, with `tool`")
    disable_parallel_tool_use: bool | None = Field(None, description="true ends the answer with its first call")


class Thinking(Parameters):
    """Whether the model thinks before it answers."""

    type: Literal["adaptive", "enabled", "disabled"] = Field(
        description="as the model's template has it, or on or off where the template can be told"
    )
    budget_tokens: int | None = Field(
        None, ge=1, le=MOST_TOKENS, description="most tokens of the thinking, with `enabled`; without effect on others"
    )
    display: Literal["summarized", "omitted", "updates", "highlights"] | None = Field(
        None, description="`omitted`: the text comes in the signature alone; with all others it is whole"
    )

    harmless: ClassVar[Mapping[str, str]] = {
        "block_binding": "thinking is bound to its own text, and to no conversation"
    }


class JsonFormat(Parameters):
    """A schema for the answer."""

    type: Literal["json_schema"] = Field(description="`json_schema`")
    schema_: dict[str, Any] = Field(alias="schema", description="JSON schema of the answer; the model cannot leave it")


class OutputConfig(Parameters):
    """What the answer is like."""

    effort: str | None = Field(
        None, min_length=1, max_length=64, description="as the model's template knows it; left out where it reads none"
    )
    format: JsonFormat | None = Field(None, description="JSON of a schema")

    refused: ClassVar[Mapping[str, Refusal]] = {"task_budget": Refusal("use `max_tokens`")}


class Conversation(Parameters):
    """The parameters that make a prompt: those of an answer and of a count."""

    model: str = Field(min_length=1, description='Hub id, alias, absolute directory, or "embedded"')
    messages: Items[Message] = Field(
        min_length=1, description="the conversation; an assistant's turn at its end is continued"
    )
    system: Texts | None = Field(None, description="text, or text blocks, which become paragraphs")
    tools: Items[Annotated[CustomTool | ServerTool, BeforeValidator(_tool)]] | None = Field(
        None, description="tools that the model may call"
    )
    tool_choice: ToolChoice | None = Field(None, description="whether tools are called")
    thinking: Thinking | None = Field(None, description="whether the model thinks")
    output_config: OutputConfig | None = Field(None, description="effort and form of the answer")

    harmless: ClassVar[Mapping[str, str]] = {
        "metadata": "requests of one user are not kept apart",
        "context_management": "the conversation is read whole; what was read before is in the cache",
        "service_tier": "there is one tier",
        "speed": "there is one speed",
        "inference_geo": "the answer is made on this machine",
        "diagnostics": "`mlx-sidecar stats` tells why a prefix was missed",
        "betas": "what a beta adds has parameters of its own; the header `anthropic-beta` has no effect either",
        "anthropic_beta": "as `betas`",
        "anthropic_version": "there is one version, also for the header",
        "billing_policy": "nothing is billed",
        "fallback_credit_token": "nothing is billed",
        "user_profile_id": "there is one user",
        "workspace_id": "there is one workspace",
    }
    refused: ClassVar[Mapping[str, Refusal]] = {
        "container": Refusal("nothing is run here"),
        "mcp_servers": Refusal("the client calls them", ([],)),
        "fallbacks": Refusal("ask the other model", ([], "default")),
        "thread": Refusal("send the whole conversation; what was read before is in the cache"),
        "compaction": Refusal("the client compacts"),
        "output_format": Refusal("use `output_config.format`"),
    }


class MessagesRequest(Conversation):
    """The body of `POST /v1/messages`."""

    max_tokens: int = Field(
        ge=1, le=MOST_TOKENS, description="most tokens of the answer, thinking included; lowered to the context's rest"
    )
    stream: bool | None = Field(None, description="the answer comes piece by piece, as server-sent events")
    temperature: float | None = Field(None, description="0 (greedy) to 100; unset is the model's own")
    top_p: float | None = Field(None, gt=0, le=1, description="unset is the model's own; no effect on greedy answers")
    top_k: int | None = Field(None, ge=0, le=MOST_TOKENS, description="as `top_p`; 0 keeps all tokens")
    stop_sequences: Items[str] | None = Field(None, description="texts before which the answer stops")
    cache_control: CacheControl | None = Field(None, description="keeps the prompt")


class CountRequest(Conversation):
    """The body of `POST /v1/messages/count_tokens`."""

    harmless: ClassVar[Mapping[str, str]] = {
        **Conversation.harmless,
        "cache_control": "nothing is computed",
        "max_tokens": "the prompt is counted",
        "stream": "the answer is a number",
    }
