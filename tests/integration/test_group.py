"""A group of two ranks on loopback: a daemon, a machine that joins it, and MLX's ring between their engines."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlx_sidecar import (
    Client,
    Completion,
    EngineRestarted,
    InvalidArgument,
    ModelNotFound,
    ModelUnsupported,
)
from tests.conftest import short_folder
from tests.integration.group_models import LAYERED
from tests.support.daemons import wait_until
from tests.support.groups import RunningGroup
from tests.support.models import copy_of_embedded, random_model, write_random

PROMPT = "The lighthouse keeper wrote down the weather of each day, and on the third of May he wrote: " * 3


@pytest.fixture(name="folder", scope="module")
def _folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture(name="model", scope="module")
def _model(folder: Path) -> str:
    """Return a model of the group."""
    return str(copy_of_embedded(folder / "models", "large"))


@pytest.fixture(name="odd", scope="module")
def _odd(folder: Path) -> str:
    """Return a model of the group that cannot be cut in two."""
    return str(random_model(folder / "models", "mamba"))


@pytest.fixture(name="layered", scope="module")
def _layered(folder: Path) -> str:
    """Return a model of the group whose heads cannot be divided by two, so that each rank has some of its layers."""
    return str(write_random(folder / "models" / "layered", LAYERED, 7))


@pytest.fixture(name="uneven", scope="module")
def _uneven(folder: Path) -> str:
    """Return a model of the group of which the first rank has two layers, and the other one."""
    return str(write_random(folder / "models" / "uneven", {**LAYERED, "num_hidden_layers": 3}, 7))


@pytest.fixture(name="lacking", scope="module")
def _lacking(folder: Path) -> str:
    """Return a model of the group that the other rank may not read."""
    return str(copy_of_embedded(folder, "lacking"))


@pytest.fixture(name="group", scope="module")
def _group(folder: Path, model: str, odd: str, layered: str, uneven: str, lacking: str) -> Iterator[RunningGroup]:
    models = ",".join(
        [f"{name}=tensor" for name in (model, odd, lacking)] + [f"{name}=pipeline" for name in (layered, uneven)]
    )
    group = RunningGroup.start(folder, roots=str(folder / "models"), group_models=models)
    try:
        yield group
        group.stop()
    finally:
        group.kill()


@pytest.fixture(name="client")
def _client(group: RunningGroup) -> Iterator[Client]:
    """Return a client, with all ranks ready."""
    with group.front.client() as client:
        group.ready(client)
        yield client


def ids(client: Client, model: str, prompt: str = PROMPT, **options: object) -> tuple[int, ...]:
    """Return the tokens of an answer."""
    return client.complete(model, prompt, max_tokens=24, **options).token_ids  # type: ignore[arg-type]


def test_ranks_compute_what_one_machine_computes(client: Client, model: str) -> None:
    """The tokens of both ranks' halves are those of the whole model in this machine's own engine."""
    assert ids(client, model) == ids(client, "embedded")
    assert [other.info.model for other in client.stats().group.models] == [model]


def test_each_rank_holds_a_part(client: Client, model: str) -> None:
    """The matrices of the layers are halved; embeddings are whole on each rank."""
    part, whole = client.load(model).size_bytes, client.load("embedded").size_bytes
    assert part < 0.8 * whole


def test_warm_ranks_answer_as_cold_ones(client: Client, model: str) -> None:
    """The second answer reuses the prompt on each rank."""
    cold = client.complete(model, PROMPT, max_tokens=24, salt="warm")
    warm = client.complete(model, PROMPT, max_tokens=24, salt="warm")
    assert cold.usage.cached_tokens == 0
    assert warm.usage.cached_tokens > 0
    assert warm.token_ids == cold.token_ids


def test_streams_that_share_steps_answer_as_alone(client: Client, model: str) -> None:
    """Requests that arrive together, with seeds, join one batch on each rank."""
    prompts = [f"{PROMPT}{number}" for number in range(3)]
    options = {"temperature": 1.0, "seed": 7}
    alone = [ids(client, model, prompt, salt="alone", **options) for prompt in prompts]
    together: dict[int, tuple[int, ...]] = {}

    def ask(number: int) -> None:
        together[number] = ids(client, model, prompts[number], salt="together", **options)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(len(prompts))] == alone


def test_random_samples_need_no_seed(client: Client, model: str) -> None:
    """A seed that the first rank drew is that of all ranks: else they would part, and the group would end."""
    restarts = client.stats().group.restarts
    answer = client.complete(model, PROMPT, max_tokens=24, temperature=1.0)
    again = client.complete(model, PROMPT, max_tokens=24, temperature=1.0, seed=answer.seed)
    assert again.token_ids == answer.token_ids
    assert client.stats().group.restarts == restarts


def test_cancelled_stream_ends_on_all_ranks(client: Client, model: str) -> None:
    """The next request has the same answer as ever."""
    stream = client.generate(model, PROMPT, max_tokens=2000, ignore_eos=True)
    next(iter(stream))
    stream.close()
    wait_until(lambda: client.stats().group.decoding == 0, "no request runs")
    assert ids(client, model) == ids(client, "embedded")


def test_form_of_an_answer_holds_on_all_ranks(client: Client, model: str) -> None:
    """Each rank keeps to the grammar by itself, with the same masks."""
    answers = [
        client.complete(name, PROMPT, max_tokens=24, temperature=1.0, seed=3, regex="[a-c]{5}").text
        for name in (model, "embedded")
    ]
    assert answers[0] == answers[1]
    assert re.fullmatch("[a-c]{5}", answers[0])


def test_samples_are_those_of_one_machine(client: Client, model: str) -> None:
    """Several samples share the prompt, on each rank."""
    samples, others = (
        client.complete_samples(name, PROMPT, samples=2, temperature=1.0, seed=5, max_tokens=8)
        for name in (model, "embedded")
    )
    assert [sample.token_ids for sample in samples] == [sample.token_ids for sample in others]


def test_texts_are_embedded_by_all_ranks(client: Client, model: str) -> None:
    """The vectors are those of the whole model, but for rounding."""
    vectors, others = (client.embed(name, [PROMPT, "short"], pooling="mean").vectors for name in (model, "embedded"))
    for vector, other in zip(vectors, others, strict=True):
        assert vector == pytest.approx(other, abs=1e-4)


def test_invalidate_drops_on_all_ranks(client: Client, model: str) -> None:
    """The model is read anew, and the answer is the same."""
    before = ids(client, model)
    assert model in client.invalidate_all().models
    assert client.stats().group.models == ()
    assert ids(client, model) == before


@pytest.mark.parametrize("kind", ["layered", "uneven"])
def test_pipeline_computes_what_one_machine_computes(
    client: Client, kind: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    """Cold and warm, alone and in batches, with samples: the tokens are those of the whole model."""
    layered = request.getfixturevalue(kind)
    whole = str(shutil.copytree(layered, folder / "models" / f"whole-{kind}"))
    options = {"max_tokens": 24, "ignore_eos": True, "temperature": 1.0, "seed": 7}
    cold, warm, alone = (client.complete(name, PROMPT, **options) for name in (layered, layered, whole))  # type: ignore[arg-type]
    assert cold.token_ids == warm.token_ids == alone.token_ids
    assert (cold.usage.cached_tokens > 0, warm.usage.cached_tokens > 0) == (False, True)
    samples, others = (
        client.complete_samples(name, PROMPT + "more", samples=3, temperature=1.0, seed=5, max_tokens=8)
        for name in (layered, whole)
    )
    assert [sample.token_ids for sample in samples] == [sample.token_ids for sample in others]
    assert client.load(layered).size_bytes < client.load(whole).size_bytes


@pytest.mark.parametrize("kind", ["layered", "uneven"])
def test_pipelines_share_steps_and_drop_together(client: Client, kind: str, request: pytest.FixtureRequest) -> None:
    """Several streams of a pipeline answer as each alone, and again when all of it was dropped."""
    layered = request.getfixturevalue(kind)
    restarts = client.stats().group.restarts
    prompts = [f"{PROMPT}{number}" for number in range(3)]
    alone = [ids(client, layered, prompt, salt="alone") for prompt in prompts]
    assert together(client, layered, prompts) == alone
    client.invalidate_model(layered, weights=True)
    assert together(client, layered, prompts) == alone
    assert client.stats().group.restarts == restarts


def together(client: Client, model: str, prompts: list[str]) -> list[tuple[int, ...]]:
    """Return the tokens of answers that were asked for at the same time."""
    with ThreadPoolExecutor(len(prompts)) as threads:
        return list(threads.map(lambda prompt: ids(client, model, prompt, salt="together"), prompts))


@pytest.mark.parametrize("kind", ["model", "layered"])
def test_guesses_are_those_of_all_ranks(client: Client, kind: str, request: pytest.FixtureRequest) -> None:
    """Whether guessing pays is measured by the first rank's clock: by its own, a rank would feed other tokens."""
    name = request.getfixturevalue(kind)
    restarts = client.stats().group.restarts
    options = {"max_tokens": 120, "ignore_eos": True, "logit_bias": {11: 100.0}}
    plain = client.complete(name, PROMPT, speculation="off", **options)  # type: ignore[arg-type]
    answers: list[Completion] = []

    def guessed() -> bool:
        """What is asked for is guessed at any cost: a pause of the machine in the only try would make it look dear."""
        asked = client.complete(name, PROMPT, speculation="ngram", **options)  # type: ignore[arg-type]
        chosen = client.complete(name, PROMPT, **options)  # type: ignore[arg-type]
        answers.extend([asked, chosen])
        return bool(chosen.usage.guesses)

    wait_until(guessed, "guessing is chosen")
    assert {answer.token_ids for answer in answers} == {plain.token_ids}
    assert client.stats().group.restarts == restarts


def test_adapter_of_a_group_model_is_refused(client: Client, model: str) -> None:
    """By the field's name, before any rank does anything."""
    with pytest.raises(InvalidArgument, match="adapter cannot be used with a model of the group"):
        client.complete(model, PROMPT, max_tokens=1, adapter="/tmp/adapter")


def test_family_that_cannot_be_cut_is_refused(client: Client, odd: str) -> None:
    """With the reason; the group goes on."""
    with pytest.raises(ModelUnsupported, match="cannot run on several machines"):
        client.load(odd)
    assert client.stats().group.state == "ready"


def test_model_that_a_rank_lacks_is_refused(client: Client, lacking: str) -> None:
    """By the rank's name. The error is one of the call: the group goes on."""
    with pytest.raises(ModelNotFound, match=r"rank 1 .*model_roots"):
        client.complete(lacking, PROMPT, max_tokens=1)
    assert client.stats().group.state == "ready"


def test_commands_show_the_machines(
    client: Client, group: RunningGroup, model: str, odd: str, layered: str, uneven: str, lacking: str
) -> None:
    """`group status` has a line for each, `group test` measures each link without a word to the engines."""
    shown = command(group, "status")
    assert [rank["rank"] for rank in shown["ranks"]] == [0, 1]
    assert not any(rank["problem"] for rank in shown["ranks"])
    (link,) = command(group, "test")
    assert link["address"] == shown["ranks"][1]["address"]
    assert link["round_trip"] > 0
    assert link["bytes_per_second"] > 0
    assert {one["model"]: one["state"] for one in link["models"]} == {
        **dict.fromkeys((model, odd, layered, uneven), "same"),
        lacking: "missing",
    }
    assert client.stats().group.restarts == shown["restarts"]


def command(group: RunningGroup, name: str) -> Any:
    """Return what a command of `mlx-sidecar group` prints."""
    line = [sys.executable, "-m", "daemon", "group", name, "--json"]
    return json.loads(subprocess.run(line, env=group.front.environ, stdout=subprocess.PIPE, text=True).stdout)


def test_killed_rank_ends_calls_with_a_reason(client: Client, group: RunningGroup, model: str) -> None:
    """This machine's own models go on, and the group comes back with the same answers."""
    before = ids(client, model)
    stream = client.generate(model, PROMPT, max_tokens=2000, ignore_eos=True)
    next(iter(stream))
    os.kill(group.engine_of(1), signal.SIGKILL)
    with pytest.raises(EngineRestarted) as caught:
        list(stream)
    assert caught.value.retry_after
    assert ids(client, "embedded") == before
    group.ready(client)
    assert ids(client, model) == before
