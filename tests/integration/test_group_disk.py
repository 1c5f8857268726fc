"""The disk tier of a group's models: each rank keeps its part, and all restore it together or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_sidecar import Client, Completion
from tests.integration.test_group import LAYERED
from tests.support.daemons import wait_until
from tests.support.groups import RunningGroup
from tests.support.models import copy_of_embedded, write_random

PROMPT = "The harbour master wrote down the name of each ship, and on the fourth of June he wrote: " * 6


@pytest.fixture(name="folder", scope="module")
def _folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mlxs-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(name="tensor", scope="module")
def _tensor(folder: Path) -> str:
    """Return a model of which each rank has a half of each layer."""
    return str(copy_of_embedded(folder / "models", "large"))


@pytest.fixture(name="pipeline", scope="module")
def _pipeline(folder: Path) -> str:
    """Return a model of which each rank has two layers."""
    return str(write_random(folder / "models" / "layered", LAYERED, 7))


@pytest.fixture(name="uneven", scope="module")
def _uneven(folder: Path) -> str:
    """Return a model of which the first rank has two layers, and the other one."""
    return str(write_random(folder / "models" / "uneven", {**LAYERED, "num_hidden_layers": 3}, 7))


@pytest.fixture(name="group", scope="module")
def _group(folder: Path, tensor: str, pipeline: str, uneven: str) -> Iterator[RunningGroup]:
    models = f"{tensor}=tensor,{pipeline}=pipeline,{uneven}=pipeline"
    group = RunningGroup.start(folder, roots=str(folder / "models"), group_models=models, kv_disk_mb="64")
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


def ask(client: Client, model: str, **options: object) -> Completion:
    """Return the answer to the prompt."""
    return client.complete(model, PROMPT, max_tokens=16, **options)  # type: ignore[arg-type]


def pieces(group: RunningGroup, rank: int) -> dict[str, Path]:
    """Return the files of a rank by their names."""
    home = group.front if rank == 0 else group.others[rank - 1]
    return {path.name: path for path in (home.folder / "kv" / "group").glob("*.kv")}


def started_anew(group: RunningGroup, client: Client) -> None:
    """Kill the engine of a rank, so that all ranks lose what they have in memory."""
    restarts = client.stats().group.restarts
    os.kill(group.engine_of(1), signal.SIGKILL)
    wait_until(lambda: client.stats().group.restarts > restarts, "the group notices")
    group.ready(client)


@pytest.mark.parametrize("kind", ["tensor", "pipeline", "uneven"])
def test_prefix_outlives_the_group(
    group: RunningGroup, client: Client, kind: str, request: pytest.FixtureRequest
) -> None:
    """Both ranks write their parts of it, and read them when the group has started anew."""
    model = request.getfixturevalue(kind)
    cold = ask(client, model)
    ask(client, model)
    wait_until(lambda: bool(pieces(group, 0)) and pieces(group, 0).keys() == pieces(group, 1).keys(), "it is written")
    started_anew(group, client)
    warm = ask(client, model)
    assert warm.token_ids == cold.token_ids
    assert warm.usage.cached_tokens > 0
