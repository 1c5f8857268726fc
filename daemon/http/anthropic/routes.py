"""Anthropic's paths, each with its handler and the types of its body."""

from daemon.http.anthropic import blocks, endpoints, request_types
from daemon.http.anthropic.errors import NAMES, shape
from daemon.http.api import Endpoint, Routes
from daemon.http.parameters import Parameters

_PARTS: dict[str, type[Parameters]] = {
    "`messages[]`": request_types.Message,
    "`messages[].content[]`, `text`, also of `system` and of results": blocks.TextBlock,
    "`messages[].content[]`, `thinking`": blocks.ThinkingBlock,
    "`messages[].content[]`, `redacted_thinking`": blocks.RedactedThinkingBlock,
    "`messages[].content[]`, `tool_use`": blocks.ToolUseBlock,
    "`messages[].content[]`, `tool_result`": blocks.ToolResultBlock,
    "`messages[].content[]`, a step of another server": blocks.ServerStepBlock,
    "`cache_control`": blocks.CacheControl,
    "`tools[]`": request_types.CustomTool,
    "`tool_choice`": request_types.ToolChoice,
    "`thinking`": request_types.Thinking,
    "`output_config`": request_types.OutputConfig,
    "`output_config.format`": request_types.JsonFormat,
}

ROUTES = Routes(
    endpoints=(
        Endpoint("GET", "/v1/models", endpoints.list_models),
        Endpoint("GET", "/v1/models/{name:path}", endpoints.retrieve_model),
        Endpoint(
            "POST", "/v1/messages", endpoints.create_message, {"the body": request_types.MessagesRequest, **_PARTS}
        ),
        Endpoint("POST", "/v1/messages/count_tokens", endpoints.count_tokens, {"the body": request_types.CountRequest}),
    ),
    shape=shape,
    names=NAMES,
)
