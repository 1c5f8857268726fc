"""Drives the door with litellm and langchain-openai: `python frameworks_program.py BASE_URL TOKEN UNIX_PATH MODEL`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # prices of models, from the package instead of the net

import httpx2
import litellm
import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

litellm.telemetry = False
litellm.suppress_debug_info = True  # it would be printed between the results
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
QUESTION = "Does it rain?"


@tool
def weather(city: str) -> str:
    """The weather of a city"""
    return f"wet {city}"


def with_litellm(complete: Callable[..., Any]) -> dict[str, Any]:
    """A tool loop of litellm, its first answer as a stream that it puts together."""
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    options = {"include_usage": True}
    chunks = list(complete(messages=messages, tools=[TOOL], stream=True, stream_options=options))
    first = litellm.stream_chunk_builder(chunks, messages=messages)
    message = first.choices[0].message
    (call,) = message.tool_calls
    messages += [message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "wet"}]
    second = complete(messages=messages, tools=[TOOL])
    return {
        "content": message.content,
        "reasoning": getattr(message, "reasoning_content", None),
        "call": json.loads(call.function.arguments),
        "reason": first.choices[0].finish_reason,
        "tokens": first.usage.total_tokens,
        "text": second.choices[0].message.content,
    }


def with_langchain(chat: ChatOpenAI) -> dict[str, Any]:
    """A tool loop of LangChain, its first answer as a stream that it puts together."""
    bound = chat.bind_tools([weather])
    history: list[Any] = [HumanMessage(QUESTION)]
    first: Any = None
    for piece in bound.stream(history):
        first = piece if first is None else first + piece
    (call,) = first.tool_calls
    history += [first, ToolMessage("wet", tool_call_id=call["id"])]
    second = bound.invoke(history)
    return {"call": call["args"], "text": second.text, "tokens": (first.usage_metadata or {}).get("total_tokens")}


def main() -> None:
    """Make all calls, and print what they brought."""
    base_url, token, path, model = sys.argv[1:]
    http = httpx2.Client(transport=httpx2.HTTPTransport(uds=path) if path else None)
    client = openai.OpenAI(base_url=base_url, api_key=token, http_client=http, max_retries=0)

    def complete(**more: Any) -> Any:
        return litellm.completion(model=f"openai/{model}", client=client, api_base=base_url, api_key=token, **more)

    def chat(**more: Any) -> ChatOpenAI:
        return ChatOpenAI(
            model=model, base_url=base_url, api_key=token, http_client=http, max_retries=0, stream_usage=True, **more
        )

    seen = {
        "litellm": with_litellm(complete),
        "langchain": with_langchain(chat()),
        "langchain_responses": with_langchain(chat(use_responses_api=True)),
        "langchain_previous": with_langchain(chat(use_responses_api=True, use_previous_response_id=True)),
    }
    client.close()
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
