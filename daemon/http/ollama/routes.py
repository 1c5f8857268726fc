"""Ollama's paths, each with its handler and the types of its body."""

from daemon.http.api import Endpoint, Routes
from daemon.http.ollama import chat_types, embed_types, endpoints, generate_types, model_endpoints, model_types
from daemon.http.ollama.errors import NAMES, shape
from daemon.http.ollama.shared_types import Options

ROUTES = Routes(
    endpoints=(
        Endpoint("GET", "/", model_endpoints.root),
        Endpoint("GET", "/api/version", model_endpoints.version),
        Endpoint("GET", "/api/tags", model_endpoints.tags),
        Endpoint("GET", "/api/ps", model_endpoints.ps),
        Endpoint("POST", "/api/show", model_endpoints.show, {"the body": model_types.ShowRequest}),
        Endpoint(
            "POST",
            "/api/chat",
            endpoints.chat_answer,
            {
                "the body": chat_types.ChatRequest,
                "`messages[]`": chat_types.Message,
                "`messages[].tool_calls[]`": chat_types.Call,
                "`messages[].tool_calls[].function`": chat_types.CalledFunction,
                "`tools[]`": chat_types.Tool,
                "`tools[].function`": chat_types.Function,
                "`options`": Options,
            },
        ),
        Endpoint("POST", "/api/generate", endpoints.generate_answer, {"the body": generate_types.GenerateRequest}),
        Endpoint("POST", "/api/embed", endpoints.embed_texts, {"the body": embed_types.EmbedRequest}),
        Endpoint("POST", "/api/embeddings", endpoints.embed_prompt, {"the body": embed_types.EmbeddingsRequest}),
        Endpoint("POST", "/api/pull", model_endpoints.pull, {"the body": model_types.PullRequest}),
        Endpoint("POST", "/api/create", model_endpoints.create),
        Endpoint("POST", "/api/blobs/{digest}", model_endpoints.create),
        Endpoint("POST", "/api/copy", model_endpoints.copy),
        Endpoint("POST", "/api/push", model_endpoints.push),
        Endpoint("DELETE", "/api/delete", model_endpoints.delete),
    ),
    shape=shape,
    names=NAMES,
)
