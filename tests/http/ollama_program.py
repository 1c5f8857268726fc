"""Drives the door with Ollama's SDK: `python ollama_program.py HOST TOKEN UNIX_PATH MODEL VECTORS`; prints all."""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx
import ollama

SCHEMA: Any = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}},
    "required": ["a"],
    "additionalProperties": False,
}


def weather(city: str) -> str:
    """
    The weather of a city.

    Args:
        city: The city.
    """
    return "wet"


def ask(words: str) -> list[Any]:
    """Return a conversation of one turn."""
    return [{"role": "user", "content": words}]


def streamed(client: ollama.Client, model: str) -> dict[str, Any]:
    """Stream a reasoning, a text and a tool call."""
    pieces = list(client.chat(model, ask("Does it rain?"), tools=[weather], stream=True, options={"seed": 7}))
    messages = [piece.message for piece in pieces]
    return {
        "models": sorted({piece.model for piece in pieces}),
        "roles": sorted({message.role for message in messages}),
        "thinking": "".join(message.thinking or "" for message in messages),
        "text": "".join(message.content or "" for message in messages),
        "calls": [call.model_dump() for message in messages for call in message.tool_calls or ()],
        "done": [piece.done for piece in pieces],
        "last": pieces[-1].model_dump(exclude={"message"}),
    }


def second_turn(client: ollama.Client, model: str) -> dict[str, Any]:
    """Answer a tool call, as the SDK's own examples do: with the message that came back, and the tool's name."""
    first = client.chat(model, ask("Does it rain?"), tools=[weather])
    history = [*ask("Does it rain?"), first.message, {"role": "tool", "tool_name": "weather", "content": "wet"}]
    second = client.chat(model, history, tools=[weather])
    return {"thinking": first.message.thinking, "first": first.done_reason, "text": second.message.content}


def residence(client: ollama.Client, model: str) -> dict[str, Any]:
    """Load and unload a model by requests without words, and by answers."""

    def loaded() -> list[Any]:
        return [one.expires_at and one.expires_at.year > 2300 for one in client.ps().models if one.model == model]

    seen: dict[str, Any] = {"pinned": client.chat(model, [], keep_alive=-1).done_reason, "in_memory": loaded()}
    seen["unloaded"] = client.generate(model, keep_alive=0).done_reason
    seen["gone"] = loaded()
    seen["answered"] = client.generate(model, "Hi", keep_alive="10m", options={"num_predict": 1}).done_reason
    seen["back"] = loaded()
    list(client.chat(model, ask("Hi"), keep_alive=0, stream=True, options={"num_predict": 1}))
    seen["gone_again"] = loaded()
    return seen


def refused(call: Any) -> dict[str, Any]:
    """Return the error of a call."""
    try:
        call()
    except ollama.ResponseError as error:
        return {"status": error.status_code, "error": error.error}
    raise AssertionError("it was not refused")


def refusals(client: ollama.Client) -> dict[str, Any]:
    """Return the errors of calls that are refused."""
    few: Any = {"num_predict": 2}
    picture = [{"role": "user", "content": "x", "images": ["aGk="]}]
    return {
        "no_model": refused(lambda: client.chat("no/such", ask("Hi"))),
        "no_model_streamed": refused(lambda: list(client.chat("no/such", ask("Hi"), stream=True))),
        "too_hot": refused(lambda: client.chat("embedded", ask("Hi"), options={"temperature": 200.0})),
        "think": refused(lambda: client.chat("embedded", ask("Hi"), think=True, options=few)),
        "think_high": refused(lambda: client.generate("embedded", "Hi", think="high", options=few)),
        "mirostat": refused(lambda: client.chat("embedded", ask("Hi"), options={"mirostat": 2})),
        "image": refused(lambda: client.chat("embedded", picture)),
        "suffix": refused(lambda: client.generate("embedded", "a", suffix="b", options=few)),
        "context": refused(lambda: client.generate("embedded", "a", context=[1, 2], options=few)),
        "delete": refused(lambda: client.delete("embedded")),
        "copy": refused(lambda: client.copy("embedded", "other")),
        "create": refused(lambda: client.create("other", from_="embedded")),
        "push": refused(lambda: client.push("embedded")),
        "pull": refused(lambda: client.pull("no-such-name")),
        "show": refused(lambda: client.show("no/such")),
        "embed": refused(lambda: client.embed("embedded", "x")),
    }


def main() -> None:
    """Make all calls, and print what they brought."""
    host, token, path, model, vectors = sys.argv[1:]
    transport = httpx.HTTPTransport(uds=path) if path else None
    few: Any = {"num_predict": 4, "num_ctx": 4096}
    with ollama.Client(host, headers={"Authorization": f"Bearer {token}"}, transport=transport) as client:
        shown = client.show("embedded:latest")
        scored = client.generate("embedded", "One", logprobs=True, top_logprobs=2, options=few)
        plain = client.generate("embedded", "One", raw=True, options=few)
        pieces = list(client.generate("embedded", "One", raw=True, stream=True, options=few))
        short = client.embed(vectors, ["One", "Two"], dimensions=4)
        seen = {
            "models": [one.model for one in client.list().models],
            "digests": [len(one.digest or "") for one in client.list().models],
            "capabilities": shown.capabilities,
            "info": shown.modelinfo,
            "embeds": client.show(vectors).capabilities,
            "streamed": streamed(client, model),
            "second_turn": second_turn(client, model),
            "json": client.chat("embedded", ask("Hi"), format=SCHEMA, options={"num_predict": 40}).message.content,
            "quiet": client.chat("embedded", ask("Hi"), think=False, options=few).done_reason,
            "system": client.generate("embedded", "Hi", system="Be brief.", options=few).done_reason,
            "plain": plain.response,
            "plain_stream": "".join(piece.response or "" for piece in pieces),
            "scores": [[one.token, len(one.top_logprobs or ())] for one in scored.logprobs or ()],
            "scored": scored.response,
            "vectors": [len(vector) for vector in short.embeddings],
            "embed_count": short.prompt_eval_count,
            "cut": len(client.embed(vectors, "word " * 100).embeddings),
            "not_cut": refused(lambda: client.embed(vectors, "word " * 100, truncate=False)),
            "vector": len(client.embeddings(vectors, "One").embedding),
            "pulled": [one.status for one in client.pull("embedded", stream=True)],
            "residence": residence(client, vectors),
            **refusals(client),
        }
    json.dump(seen, sys.stdout, default=str)


if __name__ == "__main__":
    main()
