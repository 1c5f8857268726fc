"""Drives the door with frameworks of agents: `python agents_program.py BASE_URL TOKEN MODEL`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # prices of models, from the package instead of the net

import agents
import dspy
import openai
import pydantic
import pydantic_ai
import smolagents
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.ollama import OllamaModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.ollama import OllamaProvider
from pydantic_ai.providers.openai import OpenAIProvider

agents.set_tracing_disabled(True)
QUESTION = "Does it rain?"
FORM = "I want a form."
MISSING = "nothing/there"


class Report(pydantic.BaseModel):
    """What an answer is parsed as."""

    city: str
    degrees: int


def weather(city: str) -> str:
    """
    Tell the weather of a city.

    Args:
        city: Its name.
    """
    return f"wet {city}"


def refusal(call: Callable[[], Any]) -> list[str]:
    """Return the class and the words of the error that a call raises."""
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return []


async def with_agents(model: agents.Model, missing: agents.Model) -> dict[str, Any]:
    """Run openai-agents: a loop whole and streamed, a form, and a model that is not there."""
    settings = agents.ModelSettings(include_usage=True)

    def agent(model: agents.Model, **more: Any) -> agents.Agent[Any]:
        return agents.Agent(name="a", instructions="Be brief.", model=model, model_settings=settings, **more)

    calling = agent(model, tools=[agents.function_tool(weather)])
    whole = await agents.Runner.run(calling, QUESTION)
    streamed = agents.Runner.run_streamed(calling, QUESTION)
    kinds = [event.name async for event in streamed.stream_events() if event.type == "run_item_stream_event"]
    form = await agents.Runner.run(agent(model, output_type=Report), FORM)
    called = [json.loads(one.raw_item.arguments) for one in whole.new_items if isinstance(one, agents.ToolCallItem)]
    try:
        await agents.Runner.run(agent(missing), QUESTION)
        refused = []
    except openai.NotFoundError as error:
        refused = [type(error).__name__, str(error)]
    return {
        "texts": [whole.final_output, streamed.final_output],
        "called": called,
        "kinds": kinds,
        "usage": [one.context_wrapper.usage.total_tokens for one in (whole, streamed)],
        "form": form.final_output.model_dump(),
        "refused": refused,
    }


def with_agents_apis(client: openai.AsyncOpenAI, model: str) -> dict[str, Any]:
    """Run openai-agents on both APIs, and chat completions with what makes it give reasoning back."""

    async def run() -> dict[str, Any]:
        responses, chat = agents.OpenAIResponsesModel, agents.OpenAIChatCompletionsModel
        replays: Any = {"should_replay_reasoning_content": lambda _: True}
        return {
            "responses": await with_agents(responses(model, client), responses(MISSING, client)),
            "chat": await with_agents(chat(model, client), chat(MISSING, client)),
            "chat that replays": await with_agents(chat(model, client, **replays), chat(MISSING, client)),
        }

    return asyncio.run(run())


async def with_pydantic(model: Any, missing: Any, native: bool) -> dict[str, Any]:
    """Run pydantic-ai: a loop whole and streamed, forms by each of its modes, and a model that is not there."""
    calling = pydantic_ai.Agent(model, instructions="Be brief.", tools=[weather])
    whole = await calling.run(QUESTION)
    async with calling.run_stream_events(QUESTION) as events:
        ends = [event async for event in events if isinstance(event, pydantic_ai.AgentRunResultEvent)]
    forms = [(pydantic_ai.ToolOutput(Report), "I want a final result."), (pydantic_ai.PromptedOutput(Report), FORM)]
    if native:
        forms.append((pydantic_ai.NativeOutput(Report), FORM))
    outputs = [(await pydantic_ai.Agent(model, output_type=form).run(asked)).output for form, asked in forms]
    calls = [part for one in whole.all_messages() for part in one.parts if part.part_kind == "tool-call"]
    try:
        await pydantic_ai.Agent(missing).run(QUESTION)
        refused = []
    except pydantic_ai.ModelHTTPError as error:
        refused = [type(error).__name__, str(error)]
    return {
        "texts": [whole.output, *(one.result.output for one in ends)],
        "called": [one.args_as_dict() for one in calls],
        "usage": [whole.usage.input_tokens, whole.usage.output_tokens, whole.usage.requests],
        "forms": [one.model_dump() for one in outputs],
        "refused": refused,
    }


def with_pydantic_apis(base_url: str, token: str, model: str) -> dict[str, Any]:
    """Run pydantic-ai on all APIs that it knows."""
    provider = OpenAIProvider(base_url=base_url, api_key=token)
    anthropic = AnthropicProvider(base_url=base_url.removesuffix("/v1"), api_key=token)
    ollama = OllamaProvider(base_url=base_url, api_key=token)
    apis: dict[str, Callable[[str], Any]] = {
        "chat": lambda name: OpenAIChatModel(name, provider=provider),
        "responses": lambda name: OpenAIResponsesModel(name, provider=provider),
        "anthropic": lambda name: AnthropicModel(name, provider=anthropic),
        "ollama": lambda name: OllamaModel(name, provider=ollama),
    }

    async def run() -> dict[str, Any]:
        return {
            name: await with_pydantic(make(model), make(MISSING), name != "anthropic") for name, make in apis.items()
        }

    return asyncio.run(run())


def with_smolagents(base_url: str, token: str, model: str) -> dict[str, Any]:
    """Run both kinds of agents of smolagents, whole and streamed."""

    def named(name: str) -> Any:
        return smolagents.OpenAIModel(model_id=name, api_base=base_url, api_key=token, client_kwargs={"max_retries": 0})

    found: dict[str, Any] = {"called": [], "coded": [], "structured": [], "usage": []}
    for streams in (False, True):
        options: Any = {
            "tools": [smolagents.tool(weather)],
            "model": named(model),
            "stream_outputs": streams,
            "verbosity_level": smolagents.LogLevel.OFF,
        }
        agent = smolagents.ToolCallingAgent(**options)
        found["called"].append(agent.run(QUESTION))
        found["usage"].append(agent.monitor.get_total_token_counts().output_tokens)
        found["coded"].append(smolagents.CodeAgent(**options).run("I want some code."))
        structured = smolagents.CodeAgent(**options, use_structured_outputs_internally=True)
        found["structured"].append(structured.run("I want code as JSON."))
    asked = smolagents.ChatMessage(role=smolagents.MessageRole.USER, content=QUESTION)
    found["refused"] = refusal(lambda: named(MISSING).generate([asked]))
    return found


def with_dspy(base_url: str, token: str, model: str) -> dict[str, Any]:
    """Run dspy: a chain of thought, whole and streamed, and a model that is not there."""

    def named(name: str) -> Any:
        return dspy.LM(f"openai/{name}", api_base=base_url, api_key=token, cache=False, num_retries=0)

    dspy.configure(lm=named(model), track_usage=True)
    thought = dspy.ChainOfThought("question -> answer")(question="?")
    listener = dspy.streaming.StreamListener(signature_field_name="answer")
    program = dspy.streamify(dspy.Predict("question -> answer"), stream_listeners=[listener])

    async def stream() -> str:
        return "".join([piece.chunk async for piece in program(question="?") if hasattr(piece, "chunk")])

    usage: Any = thought.get_lm_usage()
    return {
        "thought": [thought.reasoning, thought.answer],
        "streamed": asyncio.run(stream()),
        "usage": [one["total_tokens"] for one in usage.values()],
        "refused": refusal(lambda: named(MISSING)("?")),
    }


def main() -> None:
    """Make all calls, and print what they brought."""
    base_url, token, model = sys.argv[1:]
    client = openai.AsyncOpenAI(base_url=base_url, api_key=token, max_retries=0)
    with contextlib.redirect_stdout(sys.stderr):  # smolagents shows what agents do
        seen = {
            "agents": with_agents_apis(client, model),
            "pydantic": with_pydantic_apis(base_url, token, model),
            "smolagents": with_smolagents(base_url, token, model),
            "dspy": with_dspy(base_url, token, model),
        }
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
