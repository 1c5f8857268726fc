"""Groups under random work: models, keeps, drafts, samples, scores, vectors, loads, invalidations, cancels, figures."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.group_work import Caller, Work, figures_asked_often, write_models
from tests.support.daemons import wait_until
from tests.support.groups import RunningGroup
from tests.support.repetitions import scaled

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("how", ["tensor", "pipeline"])
def test_random_work_ends_no_group(folder: Path, how: str) -> None:
    """
    Each answer is that of a call alone, no call hangs, and in the end all ranks are idle and have the same.

    The clocks of the second rank are a day ahead: whatever it decides by one of them, the first decides otherwise.
    """
    seed = random.randrange(2**32)
    print("seed", seed)  # noqa: T201 - shown with a failure
    chance = random.Random(seed)
    models = write_models(folder)
    cuts = ",".join(f"{model}={how}" for model in models)
    group = RunningGroup.start(
        folder, ahead="100000", group_models=cuts, kv_disk_mb="4", kv_cache_mb="1", max_batch="4"
    )
    try:
        with group.front.client() as client, closing(Caller(group.front)) as caller:
            group.ready(client)
            work = Work(caller, client, chance, models)
            with figures_asked_often(group.front, random.Random(seed)):
                for _ in range(scaled(12)):
                    work.several()
                    assert client.stats().group.restarts == 0
            print(work.counts)  # noqa: T201 - likewise
            assert work.counts["answers"] > 0
            wait_until(lambda: client.stats().group.decoding == 0, "no request runs")
            wait_until(lambda: group.pieces(0).keys() == group.pieces(1).keys(), "all disks have the same")
            client.invalidate_all()
            wait_until(lambda: client.stats().group.used_bytes == 0, "all memory is free")
            wait_until(lambda: not group.pieces(0) and not group.pieces(1), "no disk has anything")
            assert client.stats().group.restarts == 0
        group.stop()
    finally:
        group.kill()
    for daemon in (group.front, *group.others):
        assert not [line for line in daemon.log() if line["event"] == "group_diverged"]
