"""ListModels, Tokenize, Embed and aliases over the real socket, as agents and people use them."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlx_sidecar
from mlx_sidecar import AsyncClient, Client, Message, Tool
from tests.support.daemons import RunningDaemon
from tests.support.models import copy_of_embedded, embedding_model

TALK = [Message("system", "You answer in one word."), Message("user", "What is the capital of France?")]
TOOLS = [Tool("weather", "The weather of a city", {"type": "object", "properties": {"city": {"type": "string"}}})]


@pytest.fixture(name="served", scope="module")
def _served() -> Iterator[RunningDaemon]:
    """Return a daemon with models below a root, one of them for embeddings, a Hub cache, and short names."""
    with tempfile.TemporaryDirectory(prefix="mlxs-", dir="/tmp") as name:
        folder = Path(name)
        roots = folder / "roots"
        (roots / "deeper").mkdir(parents=True)
        embedding_model(roots / "deeper" / "vectors")
        copy_of_embedded(roots, "chat")
        (roots / "broken").mkdir()
        (roots / "broken" / "config.json").write_text("{}")
        aliases = f"fast=embedded,faster=fast,vectors={roots}/deeper/vectors,absent=org/absent"
        daemon = RunningDaemon.start(
            folder, model_roots=f"{roots}:{folder / 'no-such-root'}", aliases=aliases, warmup_tokens="0"
        )
        yield daemon
        assert daemon.stop() == 0


@pytest.fixture(name="caller")
def _caller(served: RunningDaemon) -> Iterator[Client]:
    """Return a client of that daemon."""
    with served.client() as client:
        yield client


def cli(daemon: RunningDaemon, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command against the daemon."""
    command = [sys.executable, "-m", "daemon", *arguments]
    return subprocess.run(command, env=daemon.environ, input=stdin, capture_output=True, text=True, timeout=120)


def test_list_models_tells_place_figures_and_abilities(caller: Client, served: RunningDaemon) -> None:
    """Nothing is loaded by that, and a broken model is listed with its problem."""
    found = caller.list_models()
    models = {Path(model.model).name: model for model in found.models}
    assert caller.stats().models == ()
    assert set(models) >= {"embedded", "chat", "vectors", "broken"}
    assert (models["chat"].place, models["embedded"].place) == ("root", "embedded")
    assert models["chat"].can.chat
    assert not models["chat"].can.embeddings
    assert models["vectors"].can.embeddings
    assert models["vectors"].context_length == 4096
    assert (models["embedded"].complete, models["embedded"].fits, models["embedded"].loaded) == (True, True, False)
    assert models["embedded"].aliases == ("fast", "faster")
    assert models["broken"].problem
    assert found.aliases["absent"] == "org/absent"
    caller.load("embedded")
    assert next(model for model in caller.list_models().models if model.model == "embedded").loaded
    caller.invalidate_model("embedded")


def test_tokenize_equals_what_generate_counts(caller: Client) -> None:
    """Text, ids, and a conversation with tools; the weights stay on the disk."""
    caller.invalidate_all()
    talk = caller.tokenize("fast", TALK, tools=TOOLS)
    text = caller.tokenize("fast", "The sea is wide.")
    back = caller.tokenize("fast", text.ids)
    assert caller.stats().models == ()
    assert caller.complete("fast", TALK, tools=TOOLS, max_tokens=1).usage.prompt_tokens == talk.count == len(talk.ids)
    assert caller.complete("fast", "The sea is wide.", max_tokens=1).usage.prompt_tokens == text.count
    assert back.text.strip() == "The sea is wide."
    assert "capital of France" in talk.text
    counted = caller.tokenize("fast", TALK, tools=TOOLS, count_only=True)
    assert (counted.count, counted.ids, counted.text) == (talk.count, (), "")
    assert counted.context_length == caller.load("fast", estimate_only=True).context_length > 0
    with pytest.raises(mlx_sidecar.InvalidArgument) as refused:
        caller.tokenize("fast", [5, 10**6])
    assert refused.value.field == "tokens.ids[1]"


def test_tokenize_renders_with_every_option(caller: Client) -> None:
    """The last turn stays open for Tokenize as for Generate, and an option that the template has not is refused."""
    talk = [*TALK, Message("assistant", "It is")]
    opened = caller.tokenize("fast", talk, continue_final_message=True)
    answer = caller.complete("fast", talk, continue_final_message=True, max_tokens=1)
    assert opened.text.endswith("It is")
    assert answer.usage.prompt_tokens == opened.count
    for field, options in {
        "reasoning_effort": {"reasoning_effort": "low"},
        "template_args[x]": {"template_args": {"x": 1}},
    }.items():
        with pytest.raises(mlx_sidecar.InvalidArgument) as refused:
            caller.tokenize("fast", TALK, **options)  # type: ignore[arg-type]
        assert refused.value.field == f"chat.{field}"


def test_embed_answers_both_clients_alike(caller: Client, served: RunningDaemon) -> None:
    """A batch over the socket, by a short name; the second call reuses the instruction."""
    texts = [f"ship number {number} sails over the sea" for number in range(40)]
    first = caller.embed("vectors", texts, prompt_name="query", salt="both")

    async def again() -> mlx_sidecar.Embeddings:
        async with AsyncClient(served.socket) as client:
            return await client.embed("vectors", texts, prompt_name="query", salt="both")

    second = asyncio.run(again())
    assert len(first.vectors) == 40
    assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-5) for vector in first.vectors)
    for one, other in zip(first.vectors, second.vectors, strict=True):
        assert one == pytest.approx(other, abs=2e-6)
    assert second.usage.cached_tokens > first.usage.cached_tokens > 0
    assert (first.dimensions, first.pooling, first.normalized) == (64, "last_token", True)


def test_embed_names_as_many_long_texts_as_a_call_has(caller: Client) -> None:
    """An error of gRPC's may have a few kilobytes."""
    caller.load("vectors", context_length=16)
    with pytest.raises(mlx_sidecar.ContextLengthExceeded) as refused:
        caller.embed("vectors", ["sea " * 1500] * 255 + ["sea"])
    caller.invalidate_model("vectors")
    named = refused.value.metadata["long_texts"].split()
    assert [int(one.partition(":")[0]) for one in named] == [*range(255)]


def test_short_names_work_wherever_a_model_is_named(caller: Client) -> None:
    """Generate, GetOrLoad, and Invalidate of what another name loaded."""
    assert caller.load("faster").model == "embedded"
    assert caller.complete("fast", "Hi", max_tokens=1).model == "embedded"
    assert caller.invalidate_model("faster").models == ("embedded",)
    assert caller.invalidate_prefix("fast", "Hi there").blocks == 0


@pytest.mark.parametrize(
    ("name", "meant"), [("embeded", "embedded"), ("fastt", "fast"), ("{roots}/chatt", "{roots}/chat")]
)
def test_error_for_a_missing_model_names_the_likeliest(
    caller: Client, served: RunningDaemon, name: str, meant: str
) -> None:
    """In the same sentence, for a load, a generation and a count."""
    roots = str(served.folder / "roots")
    name, meant = name.replace("{roots}", roots), meant.replace("{roots}", roots)
    for call in (caller.load, lambda model: caller.complete(model, "Hi"), lambda model: caller.tokenize(model, "Hi")):
        with pytest.raises(mlx_sidecar.ModelNotFound, match="did you mean") as refused:
            call(name)
        assert meant in str(refused.value)


def test_commands_of_texts_and_models_work(served: RunningDaemon) -> None:
    """Each as the pages show it."""
    vectors = str(served.folder / "roots" / "deeper" / "vectors")
    assert "vectors stands for" in cli(served, "list").stdout
    assert json.loads(cli(served, "show", "fast", "--json").stdout)["listed"]["model"] == "embedded"
    assert "architecture" in cli(served, "show", vectors).stdout
    counted = cli(served, "tokens", "fast", "How", "many", "are", "these?")
    assert counted.stdout.endswith("; the context holds 4096.\n"), counted.stderr
    ids = cli(served, "tokens", "fast", "--ids", stdin="The sea")
    assert cli(served, "tokens", "fast", "--decode", *ids.stdout.split()).stdout.strip() == "The sea"
    shown = cli(served, "embed", "vectors", "a ship", "a bird", "--dimensions", "8")
    assert [len(json.loads(line)) for line in shown.stdout.splitlines()] == [8, 8]
    file = served.folder / "talk.json"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "How are you?"}]}))
    talk = [
        cli(served, "tokens", "fast", *words).stdout
        for words in (["--chat", "How are you?"], ["--messages", str(file)])
    ]
    assert talk[0] == talk[1] != counted.stdout
    embedded = cli(served, "embed", "embedded", "--pooling", "last_token", "one text", "another", "--json")
    assert len(json.loads(embedded.stdout)["vectors"]) == 2
    lines = cli(served, "embed", "vectors", "--prompt-name", "query", stdin="one\ntwo\n\nthree\n")
    assert len(lines.stdout.splitlines()) == 3
    answer = cli(served, "run", "fast", "--max-tokens", "4", "--raw", "--json", "What", "is", stdin=" piped in")
    alone = cli(served, "run", "fast", "--max-tokens", "4", "--raw", "--json", "What is piped in")
    assert json.loads(answer.stdout)["text"] == json.loads(alone.stdout)["text"]
    refused = cli(served, "rm", "fast", "--yes")
    assert (refused.returncode, "a part of mlx-sidecar" in refused.stderr) == (1, True)
    assert cli(served, "help", "rm").stdout.startswith("Usage: ")
