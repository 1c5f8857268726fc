"""Drives the door with instructor and LlamaIndex: `python structured_program.py BASE_URL TOKEN MODEL`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import instructor
import ollama
import openai
import pydantic
from llama_index.core.agent.workflow import FunctionAgent, ToolCall
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.ollama import Ollama
from llama_index.llms.openai_like import OpenAILike

QUESTION = "Does it rain?"
MISSING = "nothing/there"


class Report(pydantic.BaseModel):
    """What an answer is parsed as."""

    city: str
    degrees: int


class Hot(pydantic.BaseModel):
    """A report that no answer fits."""

    city: str
    degrees: int = pydantic.Field(ge=100)


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"wet {city}"


def refusal(call: Callable[[], Any]) -> list[str]:
    """Return the class and the words of the error that a call raises."""
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return []


MODES = {
    instructor.Mode.TOOLS: "I want a Report.",
    instructor.Mode.JSON_SCHEMA: "I want a form.",
    instructor.Mode.JSON: "I want a form.",
    instructor.Mode.MD_JSON: "I want a fence.",
}


def with_instructor(client: openai.OpenAI, model: str) -> dict[str, Any]:
    """Run each mode of instructor, whole and in parts, and what it raises."""
    found: dict[str, Any] = {}
    for mode, asked in MODES.items():
        patched = instructor.from_openai(client, mode=mode)
        options: Any = {"messages": [{"role": "user", "content": asked}], "max_retries": 0}
        whole, raw = patched.chat.completions.create_with_completion(model=model, response_model=Report, **options)
        parts = list(patched.chat.completions.create_partial(model=model, response_model=Report, **options))
        found[mode.name] = {
            "whole": whole.model_dump(),
            "last": parts[-1].model_dump(),
            "tokens": raw.usage.total_tokens,
        }
    patched = instructor.from_openai(client, mode=instructor.Mode.MD_JSON)
    options = {"messages": [{"role": "user", "content": MODES[instructor.Mode.MD_JSON]}], "max_retries": 0}
    create = patched.chat.completions.create
    found["refused"] = refusal(lambda: create(model=MISSING, response_model=Report, **options))
    found["unfit"] = refusal(lambda: create(model=model, response_model=Hot, **options))
    return found


async def with_llama(model: Any, asked: str) -> dict[str, Any]:
    """Run LlamaIndex: an agent, whole and streamed, and a form."""
    texts, called = [], []
    for streams in (False, True):
        agent = FunctionAgent(tools=[weather], llm=model, system_prompt="Be brief.", streaming=streams)
        run = agent.run(QUESTION)
        called += [event.tool_kwargs async for event in run.stream_events() if isinstance(event, ToolCall)]
        texts.append(str(await run))
    form = model.as_structured_llm(Report)
    question = [ChatMessage(role="user", content=asked)]
    last = list(form.stream_chat(question))[-1]
    return {"texts": texts, "called": called, "forms": [one.raw.model_dump() for one in (form.chat(question), last)]}


def with_llamas(base_url: str, token: str, model: str) -> dict[str, Any]:
    """Run LlamaIndex on the APIs of OpenAI and of Ollama, and its embeddings."""
    root, headers = base_url.removesuffix("/v1"), {"Authorization": f"Bearer {token}"}

    def like(name: str) -> Any:
        return OpenAILike(
            model=name, api_base=base_url, api_key=token, max_retries=0,
            is_chat_model=True, is_function_calling_model=True,
        )  # fmt: skip

    def served(name: str) -> Any:
        clients: Any = {"client": ollama.Client(root, headers=headers)}
        return Ollama(
            model=name, base_url=root, context_window=8000,
            async_client=ollama.AsyncClient(root, headers=headers), **clients,
        )  # fmt: skip

    pooled = {"extra_body": {"pooling": "mean"}}
    vectors = OpenAILikeEmbedding(
        model_name="embedded", api_base=base_url, api_key=token, additional_kwargs=pooled, max_retries=0
    )
    unpooled = OllamaEmbedding(model_name="embedded", base_url=root, client_kwargs={"headers": headers})
    asked = [ChatMessage(role="user", content=QUESTION)]
    return {
        "like": asyncio.run(with_llama(like(model), "I want a Report.")),
        "ollama": asyncio.run(with_llama(served(model), "I want a form.")),
        "vectors": [len(one) for one in vectors.get_text_embedding_batch(["a", "b"])],
        "refused": {
            "like": refusal(lambda: like(MISSING).chat(asked)),
            "ollama": refusal(lambda: served(MISSING).chat(asked)),
            "embedding": refusal(lambda: unpooled.get_text_embedding("a")),
        },
    }


def main() -> None:
    """Make all calls, and print what they brought."""
    base_url, token, model = sys.argv[1:]
    client = openai.OpenAI(base_url=base_url, api_key=token, max_retries=0)
    seen = {"instructor": with_instructor(client, model), "llama": with_llamas(base_url, token, model)}
    client.close()
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
