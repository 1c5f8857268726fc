"""Ranks that fail alone: in work of their own, in an operation that the other rank waits in, and in a pass."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlx_sidecar import Client, EngineRestarted, ModelCorrupt
from tests.support.daemons import wait_until
from tests.support.groups import RunningGroup
from tests.support.models import copy_of_embedded


@pytest.fixture(name="group")
def _group() -> Iterator[RunningGroup]:
    """Return a group of which each rank fails at two places of its own. A new engine fails there again."""
    folder = Path(tempfile.mkdtemp(prefix="mlxs-", dir="/tmp"))
    model = str(copy_of_embedded(folder / "models", "large"))
    group = RunningGroup.start(
        folder,
        failpoints="load.slice=raise@1;load.probed=raise@2",
        test_failpoints="load.slice=raise@2;token.first=raise@2",
        group_models=f"{model}=tensor",
    )
    try:
        yield group
        group.stop()
    finally:
        group.kill()
        shutil.rmtree(folder)


def test_rank_that_fails_alone_leaves_no_caller(group: RunningGroup) -> None:
    """Each failure is an error of the call. Where the ranks have parted the group starts anew; other models go on."""
    model = str(group.front.folder.parent / "models" / "large")
    with group.front.client() as client:
        group.ready(client)
        fail_by_themselves(client, model)
        client.invalidate_model(model, weights=True)
        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(client.load, model)
            assert client.complete("embedded", "The lighthouse", max_tokens=4).token_ids
            with pytest.raises(EngineRestarted, match=r"rank 1 .* failed alone: .*load\.probed"):
                waiting.result()
        restarted(client, group, 1)
        fail_by_themselves(client, model)
        stream = client.generate(model, "The lighthouse", max_tokens=3000, ignore_eos=True)
        next(iter(stream))
        with ThreadPoolExecutor() as threads:
            threads.submit(client.complete, model, "Another", max_tokens=1)  # its end is its own: gRPC may try it again
            with pytest.raises(EngineRestarted, match="rank 0 failed"):
                list(stream)
        restarted(client, group, 2)


def fail_by_themselves(client: Client, model: str) -> None:
    """Whichever rank cannot read, the error is its own and none waits for another: the group loads the model next."""
    restarts = client.stats().group.restarts
    for words in ("^rank 1: .*large cannot be loaded", "^/.*large cannot be loaded"):
        with pytest.raises(ModelCorrupt, match=words):
            client.load(model)
    client.load(model)
    assert client.stats().group.restarts == restarts


def restarted(client: Client, group: RunningGroup, times: int) -> None:
    """Wait until the group has started anew so often."""
    wait_until(lambda: client.stats().group.restarts >= times, "the group has ended")
    group.ready(client)
