"""
A tool loop by OpenAI's SDK: `python tool_loop_program.py BASE_URL TOKEN MODEL PROMPT RESULT`; prints a line of JSON.

It runs in the environment of the SDKs. The model is asked until it calls no tool any more; each call is answered.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import openai

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "read",
        "description": "Returns the text of a file",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    },
}


def main() -> None:
    """Run the loop."""
    url, token, model, prompt, result = sys.argv[1:]
    messages: list[Any] = [{"role": "system", "content": prompt}, {"role": "user", "content": "Read all files."}]
    with openai.OpenAI(base_url=url, api_key=token, max_retries=0, timeout=600) as client:
        turns = []
        while not turns or turns[-1]["calls"]:
            turns.append(turn(client, model, messages, f" turn {len(turns)} {result}"))
    print(json.dumps(turns))


def turn(client: openai.OpenAI, model: str, messages: list[Any], result: str) -> dict[str, Any]:
    """Ask once, add the answer and the results of its calls to the conversation, and return what was seen."""
    sent = time.perf_counter()
    first = None
    text, calls, usage = "", {}, None
    for chunk in client.chat.completions.create(
        model=model,
        messages=messages,
        tools=[TOOL],
        temperature=0,
        max_tokens=512,
        stream=True,
        stream_options={"include_usage": True},
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            for piece in choice.delta.tool_calls or ():
                call = calls.setdefault(piece.index, {"id": piece.id, "name": piece.function.name, "arguments": ""})
                call["arguments"] += piece.function.arguments or ""
            if text or calls:
                first = first or time.perf_counter()
    ended = time.perf_counter()
    messages.append(
        {
            "role": "assistant",
            "content": text or None,
            **({"tool_calls": [_call(one) for one in calls.values()]} if calls else {}),
        }
    )
    messages.extend({"role": "tool", "tool_call_id": one["id"], "content": result} for one in calls.values())
    return {
        "calls": [json.loads(one["arguments"]) for one in calls.values()],
        "text": text,
        "seconds": ended - sent,
        "first": first - sent,
        "prompt": usage.prompt_tokens,
        "cached": (usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0) or 0,
        "completion": usage.completion_tokens,
    }


def _call(call: dict[str, str]) -> dict[str, Any]:
    return {
        "id": call["id"],
        "type": "function",
        "function": {"name": call["name"], "arguments": call["arguments"]},
    }


if __name__ == "__main__":
    main()
