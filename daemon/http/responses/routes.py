"""The paths of OpenAI's responses, each with its handler and the types of its body."""

from daemon.http.api import Endpoint, Routes
from daemon.http.openai.errors import shape
from daemon.http.responses import endpoints, item_types, request_types
from daemon.http.responses.errors import NAMES

ROUTES = Routes(
    endpoints=(
        Endpoint(
            "POST",
            "/v1/responses",
            endpoints.create,
            {
                "the body": request_types.ResponseRequest,
                "`input[]`: a message": item_types.MessageItem,
                "`input[]`: a function call": item_types.FunctionCallItem,
                "`input[]`: what a function brought": item_types.FunctionOutputItem,
                "`input[]`: a call of a custom tool": item_types.CustomCallItem,
                "`input[]`: what a custom tool brought": item_types.CustomOutputItem,
                "`input[]`: a reasoning": item_types.ReasoningItem,
                "`input[]`: a message of another agent": item_types.AgentMessageItem,
                "`input[]`: a step of another server": item_types.ServerStepItem,
                "`input[]`: a call of a tool of OpenAI's": item_types.ClientCallItem,
                "`input[]`: what such a call brought": item_types.ClientOutputItem,
                "`input[]`: a reference": item_types.ReferenceItem,
                "`input[]`: others": item_types.OtherItem,
                "`input[].content[]`, `input[].output[]`": item_types.Part,
                "`input[]`: parts of a reasoning": item_types.ReasoningPart,
                "`input[]`: parts of a message of another agent": item_types.AgentPart,
                "`tools[]`: a function": request_types.FunctionTool,
                "`tools[]`: a custom tool": request_types.CustomTool,
                "`tools[].format`": request_types.CustomFormat,
                "`tools[]`: a namespace": request_types.Namespace,
                "`tools[]`: others": request_types.OtherTool,
                "`tool_choice`": request_types.ToolChoice,
                "`tool_choice.tools[]`": request_types.AllowedTool,
                "`text`": request_types.TextOptions,
                "`text.format`": request_types.TextFormat,
                "`reasoning`": request_types.ReasoningOptions,
                "`stream_options`": request_types.StreamOptions,
            },
        ),
        Endpoint(
            "POST", "/v1/responses/input_tokens", endpoints.count_tokens, {"the body": request_types.CountRequest}
        ),
        Endpoint("GET", "/v1/responses/{name}", endpoints.retrieve),
        Endpoint("DELETE", "/v1/responses/{name}", endpoints.delete),
        Endpoint("POST", "/v1/responses/{name}/cancel", endpoints.cancel),
        Endpoint("GET", "/v1/responses/{name}/input_items", endpoints.input_items),
    ),
    shape=shape,
    names=NAMES,
)
