"""The disk tier of a group's models: each rank keeps its part, and all restore it together or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_sidecar import Client
from tests.conftest import short_folder
from tests.integration.group_models import LAYERED
from tests.integration.group_prefixes import ask, written
from tests.support.daemons import wait_until
from tests.support.groups import RunningGroup
from tests.support.models import copy_of_embedded, write_random


@pytest.fixture(name="folder", scope="module")
def _folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture(name="tensor", scope="module")
def _tensor(folder: Path) -> str:
    """Return a model of which each rank has a half of each layer."""
    return str(copy_of_embedded(folder / "models", "large"))


@pytest.fixture(name="uneven", scope="module")
def _uneven(folder: Path) -> str:
    """Return a model of which the first rank has two layers, and the other one."""
    return str(write_random(folder / "models" / "uneven", {**LAYERED, "num_hidden_layers": 3}, 7))


@pytest.fixture(name="group", scope="module")
def _group(folder: Path, tensor: str, uneven: str) -> Iterator[RunningGroup]:
    models = f"{tensor}=tensor,{uneven}=pipeline"
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


def test_prefixes_outlive_the_group(group: RunningGroup, client: Client, tensor: str, uneven: str) -> None:
    """Both ranks write their parts of each, and read them when the group has started anew, however it is cut."""
    models = (tensor, uneven)
    cold = {model: written(group, client, model, known) for known, model in enumerate(models)}
    group.restarted(client)
    warm = [ask(client, model) for model in models]
    assert [each.token_ids for each in warm] == [cold[model].token_ids for model in models]
    assert all(each.disk_tokens == each.usage.cached_tokens > 0 for each in warm)
    reused = sum(each.disk_tokens for each in warm)
    wait_until(lambda: client.stats().group.disk_tokens_reused == reused, "they are counted")
    stats = client.stats().group
    assert (stats.disk_budget_bytes, stats.disk_faults, stats.disk_bytes > 0) == (32 << 20, 0, True)
    wait_until(lambda: client.stats().prefix_cache.disk_budget_bytes == 32 << 20, "this machine's models have half")


def test_cache_shows_the_part_of_a_machine(group: RunningGroup, client: Client, tensor: str) -> None:
    """Beside whole models; each machine looks at its own directory."""
    written(group, client, tensor)
    for home, part in ((group.front, "rank 0 of 2"), (group.others[0], "rank 1 of 2")):
        command = [sys.executable, "-m", "daemon", "cache", "ls", "--json"]
        shown = json.loads(subprocess.run(command, env=home.environ, stdout=subprocess.PIPE, text=True).stdout)
        (own,) = [each for each in shown["models"] if each["model"] == tensor]
        assert part in own["part"]
        assert own["files"] > 0


def test_invalidated_prefixes_are_removed_on_all_ranks(
    group: RunningGroup, client: Client, tensor: str, uneven: str
) -> None:
    """Before the call returns; those of other models stay."""
    written(group, client, tensor)
    written(group, client, uneven, known=1)
    before = [set(group.pieces(rank)) for rank in range(2)]
    client.invalidate_model(tensor, weights=False)
    after = [set(group.pieces(rank)) for rank in range(2)]
    assert after[0] == after[1] < before[0] == before[1]
    client.invalidate_all(weights=False)
    assert [group.pieces(rank) for rank in range(2)] == [{}, {}]
    assert ask(client, tensor).usage.cached_tokens == 0
