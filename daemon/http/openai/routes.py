"""OpenAI's paths, each with its handler and the types of its body."""

from daemon.http.api import Endpoint, Routes
from daemon.http.openai import chat_types, completion_types, embedding_types, endpoints
from daemon.http.openai.errors import NAMES, shape

ROUTES = Routes(
    endpoints=(
        Endpoint("GET", "/v1/models", endpoints.list_models),
        Endpoint("GET", "/v1/models/{name:path}", endpoints.retrieve_model),
        Endpoint(
            "POST",
            "/v1/chat/completions",
            endpoints.chat_completions,
            {
                "the body": chat_types.ChatRequest,
                "`messages[]`": chat_types.Message,
                "`messages[].content[]`": chat_types.Part,
                "`messages[].tool_calls[]`": chat_types.Call,
                "`tools[]`: a function": chat_types.Tool,
                "`tools[]`: others": chat_types.OtherTool,
                "`tools[].function`": chat_types.Function,
                "`tool_choice`": chat_types.ToolChoice,
                "`tool_choice.allowed_tools`": chat_types.AllowedTools,
                "`tool_choice.allowed_tools.tools[]`": chat_types.AllowedTool,
                "`response_format`": chat_types.ResponseFormat,
                "`response_format.json_schema`": chat_types.JsonSchema,
                "`stream_options`": chat_types.StreamOptions,
            },
        ),
        Endpoint("POST", "/v1/completions", endpoints.completions, {"the body": completion_types.CompletionRequest}),
        Endpoint("POST", "/v1/embeddings", endpoints.embed, {"the body": embedding_types.EmbeddingRequest}),
    ),
    shape=shape,
    names=NAMES,
)
