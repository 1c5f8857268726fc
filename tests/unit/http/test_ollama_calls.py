"""Ollama's endpoints with a client that has a script: which calls they make, and what a failure becomes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from daemon.http.access import Policy
from daemon.http.app import build
from daemon.http.ollama import API
from daemon.http.ollama.embed_types import EmbedRequest
from daemon.http.parameters import rows
from mlx_sidecar import (
    AsyncClient,
    ContextLengthExceeded,
    Delta,
    Embeddings,
    EngineRestarted,
    Finished,
    InvalidArgument,
    LoadProgress,
    ModelAbilities,
    ModelList,
    SidecarError,
    Started,
    Timings,
    Usage,
)
from mlx_sidecar._model_info import DefaultSampling
from tests.support.asgi import Request, Response
from tests.unit.cli.cli_fakes import INFO, LISTED, MODEL_STATS, NOTHING, STATS

ANSWER: list[Any] = [
    Started("r", "m", 1, 0),
    Delta("Hi", (1,), ()),
    Finished("stop", "", Usage(1, 0, 1), Timings(None, None, None, None, None, None, None)),
]
DEAD = EngineRestarted("the engine died")


class Pause:
    """
    A place in an answer at which no more of it comes.

    Attributes:
        reached: Set when it is waited there.
    """

    def __init__(self) -> None:
        self.reached = asyncio.Event()

    async def wait(self) -> None:
        """Wait until the answer is given up."""
        self.reached.set()
        await asyncio.Event().wait()


class Script:
    """A stream of events; an exception among them is raised, and a pause waited for."""

    def __init__(self, events: list[Any], warnings: tuple[str, ...] = ()) -> None:
        self._events = events
        self._warnings = warnings

    async def result(self) -> Any:
        return replace(INFO, warnings=self._warnings)

    async def __aenter__(self) -> Script:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[Any]:
        for event in self._events:
            if isinstance(event, Pause):
                await event.wait()
            elif isinstance(event, Exception):
                raise event
            else:
                yield event


class Scripted(AsyncClient):
    """A client that answers from scripts and remembers its calls."""

    def __init__(self, *scripts: list[Any]) -> None:
        super().__init__("/nowhere/s.sock")
        self.scripts = list(scripts)
        self.calls: list[tuple[Any, ...]] = []
        self.most = 3
        self.refusal: SidecarError | None = None
        self.warnings: tuple[str, ...] = ()

    def generate(self, model: str, prompt: Any, **options: Any) -> Any:
        self.calls.append(("generate", model, options.get("enable_thinking")))
        return Script(self.scripts.pop(0))

    def get_or_load(self, model: str, **options: Any) -> Any:
        self.calls.append(("get_or_load", model, options))
        return Script(self.scripts.pop(0), self.warnings)

    async def load(self, model: str, **options: Any) -> Any:
        self.calls.append(("load", model, options))
        return replace(INFO, default_sampling=DefaultSampling(0.6, None, 20, None, 1.5))

    async def invalidate_model(self, model: str, **options: Any) -> Any:
        self.calls.append(("invalidate", model, options))
        if self.refusal is not None:
            raise self.refusal
        return NOTHING

    async def list_models(self) -> Any:
        can = ModelAbilities(chat=True, tools=True, reasoning=True, embeddings=False)
        broken = replace(LISTED, model="org/broken", aliases=(), problem="it is damaged")
        return ModelList((replace(LISTED, can=can), broken), (), 0, truncated=False, aliases={"fast": "org/name"})

    async def stats(self, **options: Any) -> Any:
        return replace(STATS, models=(MODEL_STATS, replace(MODEL_STATS, state="loading")))

    async def embed(self, model: str, texts: Any, **options: Any) -> Any:
        self.calls.append(("embed", [len(text) for text in texts], options))
        long = {index: len(text) for index, text in enumerate(texts) if len(text) > self.most}
        if long:
            named = " ".join(f"{index}:{tokens}" for index, tokens in long.items())
            figures = {"context_length": str(self.most), "long_texts": named}
            raise ContextLengthExceeded("it is too long", field=f"texts[{min(long)}]", metadata=figures)
        return Embeddings(((0.5, 1.0),) * len(texts), model, 2, "mean", True, Usage(4, 0, 0), 0.1)


async def post(client: AsyncClient, path: str, body: Any, method: str = "POST") -> Response:
    """Return the response to a request."""
    app = build(client, Policy(None, loopback_only=False), [API])
    return await Request(method, path, json.dumps(body).encode()).to(app)


def lines(response: Response) -> list[Any]:
    """Return the objects of a stream."""
    assert response.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in response.body.splitlines()]


def chat(**fields: Any) -> dict[str, Any]:
    """Return the body of a chat request."""
    return {"model": "hf.co/org/name:latest", "messages": [{"role": "user", "content": "Hi"}], **fields}


async def test_late_failure_is_the_last_line() -> None:
    """SDKs raise what has `error`."""
    found = lines(await post(Scripted([*ANSWER[:2], DEAD]), "/api/chat", chat()))
    assert [line.get("done") for line in found] == [False, None]
    assert found[-1] == {"error": "the engine died"}


async def test_early_failure_has_its_status() -> None:
    """As all errors have, in Ollama's form."""
    response = await post(Scripted([DEAD]), "/api/chat", chat())
    assert (response.status, response.json) == (503, {"error": "the engine died"})


@pytest.mark.parametrize(
    ("keep", "before", "after"),
    [
        (None, [], []),
        ("5m", [("load", "org/name", {"ttl": 300.0})], []),
        (-1, [("load", "org/name", {"pin": True})], []),
        (0, [], [("invalidate", "org/name", {"weights": True, "prefixes": False})]),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_keep_alive_is_told_to_the_daemon(keep: Any, before: list[Any], after: list[Any], stream: bool) -> None:
    """Before the answer, or after it; the name is the daemon's own, and the answer has the client's."""
    client = Scripted(ANSWER)
    response = await post(client, "/api/chat", chat(keep_alive=keep, stream=stream))
    assert client.calls == [*before, ("generate", "org/name", None), *after]
    last = lines(response)[-1] if stream else response.json
    assert (last["done"], last["model"]) == (True, "hf.co/org/name:latest")


DROPPED = ("invalidate", "org/name", {"weights": True, "prefixes": False})


@pytest.mark.parametrize("stream", [True, False])
async def test_model_is_unloaded_behind_an_answer_that_is_cut_short(stream: bool) -> None:
    """`keep_alive` 0 asks for the memory back, whether the client waits for the end or not."""
    pause = Pause()
    client = Scripted([*ANSWER[:2], pause])
    app = build(client, Policy(None, loopback_only=False), [API])
    request = Request("POST", "/api/chat", json.dumps(chat(keep_alive=0, stream=stream)).encode())
    answer = asyncio.create_task(request.to(app))
    await pause.reached.wait()
    request.leave()
    await answer
    assert client.calls[1:] == [DROPPED]


@pytest.mark.parametrize("stream", [True, False])
async def test_answer_outlives_a_failure_to_unload(stream: bool) -> None:
    """The engine may die right behind it, with the weights."""
    client = Scripted(ANSWER)
    client.refusal = DEAD
    response = await post(client, "/api/chat", chat(keep_alive=0, stream=stream))
    found = lines(response) if stream else [response.json]
    assert "".join(line["message"]["content"] for line in found) == "Hi"
    assert found[-1]["done"]
    vectors = await post(client, "/api/embed", {"model": "m", "input": "a", "keep_alive": 0})
    assert vectors.json["embeddings"] == [[0.5, 1.0]]
    refused = await post(client, "/api/chat", {"model": "m", "stream": False, "keep_alive": 0})
    assert (refused.status, refused.json) == (503, {"error": "the engine died"}), "it asks for nothing else"


async def test_refused_request_unloads_nothing() -> None:
    """The model may be in use by others, which asked for nothing wrong."""
    client = Scripted([InvalidArgument("is wrong", field="max_tokens")])
    assert (await post(client, "/api/chat", chat(keep_alive=0))).status == 400
    assert DROPPED not in client.calls


async def test_options_of_vectors_have_no_effect() -> None:
    """Frameworks send those of answers with each text; the table of parameters tells it."""
    assert {name: treatment for name, treatment, _ in rows(EmbedRequest)}["options"] == "harmless"
    body = {"model": "m", "input": "a", "options": {"num_ctx": 8}}
    assert (await post(Scripted(), "/api/embed", body)).json["embeddings"] == [[0.5, 1.0]]


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_request_without_words_loads_or_unloads(path: str) -> None:
    """With one answer that says which."""
    client = Scripted()
    assert lines(await post(client, path, {"model": "m"}))[0]["done_reason"] == "load"
    assert (await post(client, path, {"model": "m", "stream": False, "keep_alive": 0})).json["done_reason"] == "unload"
    assert [call[0] for call in client.calls] == ["load", "invalidate"]


async def test_model_without_a_switch_is_asked_again() -> None:
    """Only if reasoning was turned off: some clients do that in each request."""
    error = InvalidArgument("has no effect", field="chat.enable_thinking")
    client = Scripted([error], ANSWER)
    assert lines(await post(client, "/api/chat", chat(think=False)))[-1]["done"]
    assert client.calls == [("generate", "org/name", False), ("generate", "org/name", None)]
    response = await post(Scripted([error], ANSWER), "/api/chat", chat(think=True))
    assert (response.status, response.json) == (400, {"error": "has no effect"})


async def test_pooling_is_passed_on() -> None:
    """Many conversions leave out the files that say it."""
    client = Scripted()
    await post(client, "/api/embed", {"model": "m", "input": "a", "pooling": "last_token"})
    await post(client, "/api/embeddings", {"model": "m", "prompt": "a", "pooling": "mean"})
    assert [call[2]["pooling"] for call in client.calls] == ["last_token", "mean"]


async def test_texts_that_are_too_long_are_cut() -> None:
    """Each on its own, unless the request says otherwise; then the daemon's error is the answer."""
    client = Scripted()
    found = (await post(client, "/api/embed", {"model": "m", "input": ["12345", "12", "1234567"]})).json
    assert (found["embeddings"], found["prompt_eval_count"]) == ([[0.5, 1.0]] * 3, 4)
    assert [call[1] for call in client.calls] == [[5, 2, 7], [3, 2, 3]], "all at once: a try for each would take hours"
    assert (await post(Scripted(), "/api/embeddings", {"model": "m", "prompt": "12"})).json == {"embedding": [0.5, 1.0]}
    whole = await post(Scripted(), "/api/embed", {"model": "m", "input": "12345", "truncate": False})
    assert "too long" in whole.json["error"]


async def test_models_are_listed_under_all_names() -> None:
    """A model that cannot be used is left out."""
    models = (await post(Scripted(), "/api/tags", None, "GET")).json["models"]
    assert [model["name"] for model in models] == ["fast", "org/name"]
    assert models[0]["digest"] == models[1]["digest"]
    assert models[0]["details"] == {
        "parent_model": "", "format": "safetensors", "family": "qwen3", "families": ["qwen3"], "parameter_size": "",
        "quantization_level": "4-bit",
    }  # fmt: skip


async def test_models_in_memory_have_an_end() -> None:
    """One that is still being loaded is not there."""
    (model,) = (await post(Scripted(), "/api/ps", None, "GET")).json["models"]
    assert (model["name"], model["size_vram"], model["context_length"]) == ("org/name", INFO.size_bytes, 4096)
    assert model["expires_at"] < "2300"


async def test_model_that_stays_for_ages_has_a_date() -> None:
    """An idle time may have 10,000 years, and dates end before: the list has all models all the same."""

    class Patient(Scripted):
        async def stats(self, **options: Any) -> Any:
            return replace(STATS, models=(replace(MODEL_STATS, expires_in=3e11),))

    (model,) = (await post(Patient(), "/api/ps", None, "GET")).json["models"]
    assert model["expires_at"].startswith("9999-12-31T23:59:59")


async def test_model_is_shown_in_detail() -> None:
    """By any of its names; its weights are not loaded for that."""
    client = Scripted()
    found = (await post(client, "/api/show", {"name": "fast:latest"})).json
    assert client.calls == [("load", "fast", {"estimate_only": True})]
    assert found["capabilities"] == ["completion", "tools", "thinking"]
    assert found["model_info"]["qwen3.block_count"] == 8
    assert [line.split() for line in found["parameters"].splitlines()] == [
        ["temperature", "0.6"],
        ["top_k", "20"],
        ["repeat_penalty", "1.5"],
    ]


async def test_pull_tells_its_progress() -> None:
    """Steps with a size have what clients draw a bar from; the failure of a pull is an error line."""
    steps = [LoadProgress("queued", 0, 0, ()), LoadProgress("downloading", 5, 10, ())]
    client = Scripted(steps)
    found = lines(await post(client, "/api/pull", {"model": "org/name"}))
    options = {"allow_download": True, "estimate_only": True, "update": True}
    assert client.calls == [("get_or_load", "org/name", options)]
    assert found[0] == {"status": "queued org/name"}
    assert (found[1]["total"], found[1]["completed"], found[1]["digest"][:7]) == (10, 5, "sha256:")
    assert found[2] == {"status": "success"}
    assert (await post(Scripted(steps), "/api/pull", {"model": "m", "stream": False})).json == {"status": "success"}
    client = Scripted(steps)
    client.warnings = ("m was not updated",)
    warned = lines(await post(client, "/api/pull", {"model": "m"}))
    assert warned[-2:] == [{"status": "m was not updated"}, {"status": "success"}]
    late = lines(await post(Scripted([*steps, SidecarError("no disk")]), "/api/pull", {"model": "m"}))
    assert late[-1] == {"error": "no disk"}


@pytest.mark.parametrize("path", ["/api/show", "/api/pull"])
async def test_model_without_a_name_is_refused(path: str) -> None:
    """Under its newer name."""
    response = await post(Scripted(), path, {})
    assert (response.status, response.json) == (400, {"error": "model is missing"})
