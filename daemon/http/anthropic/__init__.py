"""Anthropic's API: messages, the count of their tokens, models."""

from starlette.requests import HTTPConnection

from daemon.http.anthropic import blocks, endpoints, request_types
from daemon.http.anthropic.errors import NAMES, shape
from daemon.http.api import Api, Endpoint
from daemon.http.parameters import Parameters

_PARTS: dict[str, type[Parameters]] = {
    "`messages[]`": request_types.Message,
    "`messages[].content[]`, `text`, also of `system` and of results": blocks.TextBlock,
    "`messages[].content[]`, `thinking`": blocks.ThinkingBlock,
    "`messages[].content[]`, `redacted_thinking`": blocks.RedactedThinkingBlock,
    "`messages[].content[]`, `tool_use`": blocks.ToolUseBlock,
    "`messages[].content[]`, `tool_result`": blocks.ToolResultBlock,
    "`cache_control`": blocks.CacheControl,
    "`tools[]`": request_types.CustomTool,
    "`tool_choice`": request_types.ToolChoice,
    "`thinking`": request_types.Thinking,
    "`output_config`": request_types.OutputConfig,
    "`output_config.format`": request_types.JsonFormat,
}


def _claims(connection: HTTPConnection) -> bool:
    """Tell the API's requests. Models have the same path as OpenAI's; SDKs send their version."""
    path = str(connection.scope["path"])
    models = path == "/v1/models" or path.startswith("/v1/models/")
    return path.startswith("/v1/messages") or (models and "anthropic-version" in connection.headers)


API = Api(
    name="Anthropic",
    endpoints=(
        Endpoint("GET", "/v1/models", endpoints.list_models),
        Endpoint("GET", "/v1/models/{name:path}", endpoints.retrieve_model),
        Endpoint(
            "POST", "/v1/messages", endpoints.create_message, {"the body": request_types.MessagesRequest, **_PARTS}
        ),
        Endpoint("POST", "/v1/messages/count_tokens", endpoints.count_tokens, {"the body": request_types.CountRequest}),
    ),
    claims=_claims,
    shape=shape,
    names=NAMES,
)
"""It is told from OpenAI's by its paths, and by the version that its SDKs send."""
