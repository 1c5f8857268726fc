"""Disk tiers of a group's ranks of which one fails, is late, lacks a file or is another rank today."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from mlx_sidecar import Client, EngineRestarted, MachineFault
from tests.integration.group_models import WIDE
from tests.integration.group_prefixes import ask, written
from tests.support.daemons import RunningDaemon, wait_until
from tests.support.groups import RunningGroup
from tests.support.models import write_random
from tests.support.repetitions import scaled

pytestmark = pytest.mark.slow

Start = Callable[..., RunningGroup]


@pytest.fixture(name="model")
def _model(folder: Path) -> str:
    """Return a model that two and three ranks can cut in each way."""
    (folder / "models").mkdir()
    return str(write_random(folder / "models" / "wide", WIDE, 7))


@pytest.fixture(name="start")
def _start(folder: Path, model: str) -> Iterator[Start]:
    """Return a function that starts a group in the same folders, as the one before or otherwise."""
    started: list[RunningGroup] = []

    def start(how: str = "tensor", **settings: object) -> RunningGroup:
        options = {"roots": str(folder / "models"), "group_models": f"{model}={how}", "kv_disk_mb": "64", **settings}
        started.append(RunningGroup.start(folder, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for group in started:
        group.kill()


def names(group: RunningGroup) -> list[set[str]]:
    """Return the files of each rank."""
    return [set(group.pieces(rank)) for rank in range(1 + len(group.others))]


def test_files_of_one_rank_that_go_or_rot(start: Start, model: str) -> None:
    """The prompt is computed on all ranks, and the piece of the others goes; the group never parts."""
    group = start()
    with group.front.client() as client:
        group.ready(client)
        for rank, how in ((0, "lost"), (1, "lost"), (0, "rotten"), (1, "rotten"), (1, "torn")):
            cold = written(group, client, model)
            restarts = client.stats().group.restarts
            group.restarted(client)
            for path in group.pieces(rank).values():
                data = path.read_bytes()
                if how == "lost":
                    path.unlink()
                elif how == "torn":
                    path.write_bytes(data[:-1])
                else:
                    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            again = ask(client, model)
            assert again.token_ids == cold.token_ids
            assert again.usage.cached_tokens == 0, (rank, how)
            wait_until(lambda: names(group) == [set(), set()], f"a piece that rank {rank} has {how} goes on all")
            assert client.stats().group.restarts == restarts + 1
            client.invalidate_all(weights=False)


def test_file_that_a_rank_lacks_at_a_start_goes_on_the_other(start: Start, model: str) -> None:
    """The scans of both are compared."""
    group = start()
    with group.front.client() as client:
        group.ready(client)
        cold = written(group, client, model)
    group.stop()
    for path in group.pieces(1).values():
        path.unlink()
    group = start()
    with group.front.client() as client:
        group.ready(client)
        wait_until(lambda: names(group) == [set(), set()], "the orphan goes")
        assert ask(client, model).token_ids == cold.token_ids
        assert client.stats().group.disk_tokens_reused == 0


def test_ranks_that_are_others_today_restore_nothing(start: Start, folder: Path, model: str) -> None:
    """Each has KV of other heads. As they were, they restore it; cut otherwise, or with a third, they do not."""
    group = start()
    with group.front.client() as client:
        group.ready(client)
        cold = written(group, client, model)
    group.stop()

    def reused(how: str = "tensor", ranks: int = 2) -> int:
        again = start(how, ranks=ranks)
        with again.front.client() as client:
            again.ready(client)
            assert ask(client, model).token_ids == cold.token_ids
            tokens = client.stats().group.disk_tokens_reused
        again.stop()
        return tokens

    kept = folder / "kept"
    shutil.copytree(folder / "0" / "kv" / "group", kept / "0")
    shutil.copytree(folder / "1" / "kv" / "group", kept / "1")

    def given(first: str, second: str) -> None:
        for home, part in (("0", first), ("1", second)):
            shutil.rmtree(folder / home / "kv" / "group")
            shutil.copytree(kept / part, folder / home / "kv" / "group")

    assert reused() > 0
    given("1", "0")
    assert reused() == 0
    assert names(group) == [set(), set()]
    given("0", "1")
    assert reused("pipeline") == 0
    given("0", "1")
    assert reused(ranks=3) == 0
    assert names(group) == [set(), set()]


@pytest.mark.parametrize("fault", ["disk.write=raise", "disk.read=raise", "disk.read=sleep:15"])
def test_disk_of_one_rank_that_fails_or_is_late(start: Start, model: str, fault: str) -> None:
    """Nothing is restored, on no rank, and calls go on."""
    group = start(failpoints=fault)
    with group.front.client() as client:
        group.ready(client)
        cold = ask(client, model)
        ask(client, model)
        if fault == "disk.write=raise":
            wait_until(lambda: client.stats().group.disk_faults > 0, "the fault of the other rank is counted")
            wait_until(lambda: names(group) == [set(), set()], "what the first has written goes")
        else:
            wait_until(lambda: names(group)[0] == names(group)[1] != set(), "it is written")
            group.restarted(client)
            again = ask(client, model)
            assert again.token_ids == cold.token_ids
            assert again.usage.cached_tokens == 0
        restarts = client.stats().group.restarts
        assert ask(client, model).token_ids == cold.token_ids
        assert client.stats().group.restarts == restarts


def test_invalidation_that_one_rank_cannot_do_fails(start: Start, model: str) -> None:
    """The caller hears which rank and why, as the files may be found again. The group goes on."""
    group = start(failpoints="disk.remove=raise")
    with group.front.client() as client:
        group.ready(client)
        cold = written(group, client, model)
        with pytest.raises(MachineFault, match="rank 1"):
            client.invalidate_model(model, weights=False)
        assert ask(client, model).token_ids == cold.token_ids
        assert client.stats().group.restarts == 0
    assert names(group)[0] == set() != names(group)[1]


def test_rank_that_dies_in_a_write(start: Start, model: str) -> None:
    """The others have the piece or not; the next start heals it."""
    group = start(failpoints="disk.synced=kill@1")
    with group.front.client() as client:
        group.ready(client)
        cold = ask(client, model)
        with suppress(EngineRestarted):
            ask(client, model)
        wait_until(lambda: client.stats().group.restarts > 0, "the rank dies")
        group.ready(client)
        wait_until(lambda: names(group)[0] == names(group)[1], "an orphan goes")
        assert ask(client, model).token_ids == cold.token_ids


def test_rank_without_a_tier_turns_it_off_for_all(start: Start, model: str) -> None:
    """The log says which."""
    group = start(kv_disk_mb="64,0")
    with group.front.client() as client:
        group.ready(client)
        cold = ask(client, model)
        assert ask(client, model).token_ids == cold.token_ids
        assert client.stats().group.disk_budget_bytes == 0
    assert [line["rank"] for line in group.front.log() if line["event"] == "group_kv_disk_off"] == [1]
    assert names(group) == [set(), set()]


def test_prefixes_that_are_dropped_while_a_rank_is_away_stay_dropped(start: Start, model: str) -> None:
    """The first machine notes it."""
    group = start()
    with group.front.client() as client:
        group.ready(client)
        cold = written(group, client, model)
        group.others[0].process.kill()
        group.others[0].wait()
        wait_until(lambda: bool(client.stats().group.problem), "the group cannot start")
        client.invalidate_all(weights=False)
    group.stop()
    group = start()
    with group.front.client() as client:
        group.ready(client)
        assert ask(client, model).token_ids == cold.token_ids
        assert client.stats().group.disk_tokens_reused == 0
        wait_until(lambda: not list((group.folder_of(0)).glob("kv-invalidated-*")), "the note is done with")


def test_prefixes_that_are_dropped_while_a_group_starts_stay_dropped(start: Start, model: str) -> None:
    """Whether or not its engines have looked at their disks when the call comes."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    group = start()
    with group.front.client() as client:
        group.ready(client)
        for _ in range(scaled(4)):
            cold = written(group, client, model)
            begin_anew(group, client)
            time.sleep(chance.uniform(0, 2))  # the call comes at any moment of the start
            with suppress(EngineRestarted):
                client.invalidate_all(weights=False)
                group.ready(client)
                warm = ask(client, model)
                assert (warm.usage.cached_tokens, warm.disk_tokens) == (0, 0), f"SEED={seed}"
                assert warm.token_ids == cold.token_ids
            group.ready(client)


def test_prefixes_that_are_dropped_without_a_group_are_not_in_a_later_one(start: Start, model: str) -> None:
    """The first machine runs alone in between, with the same directories."""
    group = start()
    with group.front.client() as client:
        group.ready(client)
        written(group, client, model)
    group.stop()
    alone = RunningDaemon.start(group.folder_of(0), None, kv_disk_mb="64")
    with alone.client() as client:
        client.invalidate_all(weights=False)
    alone.stop()
    group = start()
    with group.front.client() as client:
        group.ready(client)
        assert ask(client, model).disk_tokens == 0


def test_prefixes_of_a_model_that_left_the_group_are_dropped_on_all_ranks(start: Start, model: str) -> None:
    """An Invalidate finds them by name, though the group does not run the model any more."""
    group = start()
    with group.front.client() as client:
        group.ready(client)
        written(group, client, model)
    group.stop()
    group = start(group_models="org/other=tensor")
    with group.front.client() as client:
        group.ready(client)
        wait_until(lambda: client.stats().group.disk_bytes > 0, "the directories are open")
        client.invalidate_prefix(model, [1, 2, 3])
    assert names(group) == [set(), set()]


def test_layers_in_a_pipeline_of_equal_parts(start: Start, model: str) -> None:
    """Both ranks have three layers each."""
    group = start("pipeline")
    with group.front.client() as client:
        group.ready(client)
        cold = written(group, client, model)
        group.restarted(client)
        warm = ask(client, model)
        assert warm.token_ids == cold.token_ids
        assert warm.usage.cached_tokens > 0


@pytest.mark.parametrize("layers", [4, 3], ids=["tensor", "uneven pipeline"])
def test_ranks_agree_under_random_work(start: Start, folder: Path, layers: int) -> None:
    """
    Small memories and small disks: prefixes come and go, are dropped, and engines are killed; eight callers at once.

    All answers are those of cold runs, and no group ends but by a kill.
    """
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    model = str(write_random(folder / "models" / "layers", {**WIDE, "num_hidden_layers": layers}, 7))
    how = "pipeline" if layers % 2 else "tensor"
    group = start(kv_disk_mb="1", kv_cache_mb="1", max_batch="4", group_models=f"{model}={how}")
    with group.front.client() as client:
        group.ready(client)
        prompts = [beginning_of(chance) for _ in range(40)]
        cold = [tokens_of(client, model, prompt, salt=f"cold{number}") for number, prompt in enumerate(prompts)]
        reused = 0
        for _ in range(scaled(3)):
            restarts = client.stats().group.restarts
            with ThreadPoolExecutor(8) as threads:
                chosen = [chance.randrange(len(prompts)) for _ in range(scaled(60))]
                for number, answer in zip(
                    chosen, threads.map(lambda at: tokens_of(client, model, prompts[at]), chosen), strict=True
                ):
                    assert answer == cold[number], f"SEED={seed} prompt {number}"
                    if chance.random() < 0.03:
                        client.invalidate_prefix(model, prompts[chance.randrange(len(prompts))][:48])
            assert client.stats().group.restarts == restarts, f"SEED={seed}"
            reused += client.stats().group.disk_tokens_reused
            group.restarted(client)
            wait_until(lambda: client.stats().group.disk_budget_bytes > 0, "the directories are open")
        assert reused > 0
    assert not [line for line in group.front.log() if line["event"] == "group_diverged"]
    assert names(group)[0] == names(group)[1]


def begin_anew(group: RunningGroup, client: Client) -> None:
    """Kill the engine of a rank, and wait until the next one of the first rank has been started."""
    restarts = client.stats().group.restarts
    os.kill(group.engine_of(1), signal.SIGKILL)
    wait_until(lambda: client.stats().group.restarts > restarts and bool(client.stats().group.pid), "it starts anew")


def beginning_of(chance: random.Random) -> list[int]:
    """Return a prompt; others begin with the same tokens, and go on otherwise."""
    shared = [700 + chance.randrange(4)] * 16 * chance.randint(1, 12)
    return [*shared, *(chance.randrange(1, 700) for _ in range(chance.randint(1, 160)))]


def tokens_of(client: Client, model: str, prompt: list[int], **options: object) -> tuple[int, ...]:
    """Return the tokens of an answer."""
    return client.complete(model, prompt, max_tokens=12, **options).token_ids  # type: ignore[arg-type]
