"""The names in errors of OpenAI's responses. Their shape is that of OpenAI's other endpoints."""

NAMES = {
    "chat": "input",
    "chat.messages": "input",
    "chat.tools": "tools",
    "chat.tools[].parameters_json": "tools[].parameters",
    "chat.tools[].tools[].parameters_json": "tools[].tools[].parameters",
    "input[].arguments_json": "input[].arguments",
    "chat.required_tool": "tool_choice.name",
    "chat.reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "response_format.json_schema": "text.format.schema",
    "max_tokens": "max_output_tokens",
    "cache.keep": "prompt_cache_retention",
    "REQUIRED": "required",
    "AUTO": "auto",
}
"""The parameter for each field of the gRPC API that has another name here, and values of that kind."""
