"""Prints the names of all parameters that the SDKs of OpenAI and Anthropic know, for each object of a request."""

from __future__ import annotations

import json
import sys
from importlib import import_module

CHAT, RESPONSES, ANTHROPIC = "openai.types.chat.", "openai.types.responses.", "anthropic.types."
TYPES = {
    "chat_types.ChatRequest": [CHAT + "completion_create_params.CompletionCreateParamsStreaming"],
    "chat_types.Message": [
        CHAT + f"ChatCompletion{role}MessageParam" for role in ("User", "Assistant", "System", "Developer", "Tool")
    ],
    "chat_types.Part": [CHAT + f"ChatCompletionContentPart{kind}Param" for kind in ("Text", "Refusal")],
    "chat_types.Call": [CHAT + "ChatCompletionMessageFunctionToolCallParam"],
    "chat_types.Function": ["openai.types.shared_params.FunctionDefinition"],
    "chat_types.ToolChoice": [CHAT + f"ChatCompletion{kind}ToolChoiceParam" for kind in ("Named", "Allowed")],
    "chat_types.AllowedTools": [CHAT + "ChatCompletionAllowedToolsParam"],
    "chat_types.StreamOptions": [CHAT + "ChatCompletionStreamOptionsParam"],
    "completion_types.CompletionRequest": ["openai.types.completion_create_params.CompletionCreateParamsStreaming"],
    "embedding_types.EmbeddingRequest": ["openai.types.embedding_create_params.EmbeddingCreateParams"],
    "responses.ResponseRequest": [RESPONSES + "response_create_params.ResponseCreateParamsStreaming"],
    "responses.FunctionTool": [RESPONSES + "FunctionToolParam", RESPONSES + "namespace_tool_param.ToolFunction"],
    "responses.CustomTool": [RESPONSES + "CustomToolParam"],
    "responses.Namespace": [RESPONSES + "NamespaceToolParam"],
    "responses.ToolChoice": [RESPONSES + f"ToolChoice{kind}Param" for kind in ("Function", "Custom", "Allowed")],
    "responses.TextOptions": [RESPONSES + "ResponseTextConfigParam"],
    "responses.ReasoningOptions": ["openai.types.shared_params.Reasoning"],
    "items.MessageItem": [RESPONSES + "EasyInputMessageParam", RESPONSES + "ResponseOutputMessageParam"],
    "items.FunctionCallItem": [RESPONSES + "ResponseFunctionToolCallParam"],
    "items.FunctionOutputItem": [RESPONSES + "response_input_item_param.FunctionCallOutput"],
    "items.CustomCallItem": [RESPONSES + "ResponseCustomToolCallParam"],
    "items.CustomOutputItem": [RESPONSES + "ResponseCustomToolCallOutputParam"],
    "items.ReasoningItem": [RESPONSES + "ResponseReasoningItemParam"],
    "items.Part": [RESPONSES + f"Response{kind}Param" for kind in ("InputText", "OutputText", "OutputRefusal")],
    "messages.MessagesRequest": [ANTHROPIC + "message_create_params.MessageCreateParamsStreaming"],
    "messages.CountRequest": [ANTHROPIC + "message_count_tokens_params.MessageCountTokensParams"],
    "messages.CustomTool": [ANTHROPIC + "ToolParam"],
    "messages.ToolChoice": [ANTHROPIC + f"ToolChoice{kind}Param" for kind in ("Tool", "Auto", "Any", "None")],
    "messages.Thinking": [ANTHROPIC + f"ThinkingConfig{kind}Param" for kind in ("Enabled", "Adaptive", "Disabled")],
    "messages.OutputConfig": [ANTHROPIC + "OutputConfigParam"],
    "blocks.CacheControl": [ANTHROPIC + "CacheControlEphemeralParam"],
    "blocks.TextBlock": [ANTHROPIC + "TextBlockParam"],
    "blocks.ThinkingBlock": [ANTHROPIC + "ThinkingBlockParam"],
    "blocks.ToolUseBlock": [ANTHROPIC + "ToolUseBlockParam"],
    "blocks.ToolResultBlock": [ANTHROPIC + "ToolResultBlockParam"],
}
"""The SDKs' types of each type of the door."""


def names(path: str) -> set[str]:
    """Return the parameters of a type of an SDK."""
    module, _, name = path.rpartition(".")
    return set(getattr(import_module(module), name).__annotations__)


if __name__ == "__main__":
    found = {own: sorted(set().union(*map(names, types))) for own, types in TYPES.items()}
    sys.stdout.write(json.dumps(found))
