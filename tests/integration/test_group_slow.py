"""What takes longer with groups: three ranks, random schedules, ranks that stop or die, and mlx-lm's own sharding."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mlx_sidecar import Client, EngineRestarted, ModelCorrupt
from tests.integration.group_models import WIDE
from tests.support.daemons import alive, wait_until
from tests.support.groups import RunningGroup, write_key
from tests.support.models import copy_of_embedded, write_random
from tests.support.repetitions import scaled

pytestmark = pytest.mark.slow

PROMPT = "The lighthouse keeper wrote down the weather of each day, and on the third of May he wrote: " * 3


@pytest.fixture(name="start_group")
def _start_group(folder: Path) -> Iterator[Callable[..., RunningGroup]]:
    """Return a function that starts a group of the test's own."""
    started: list[RunningGroup] = []

    def start(ranks: int = 2, **settings: str) -> RunningGroup:
        started.append(RunningGroup.start(folder, ranks, **settings))
        return started[-1]

    yield start
    for group in started:
        group.kill()


def ids(client: Client, model: str, prompt: str | list[int] = PROMPT, **options: object) -> tuple[int, ...]:
    """Return the tokens of an answer."""
    return client.complete(model, prompt, **{"max_tokens": 24, **options}).token_ids  # type: ignore[arg-type]


def reference(model: str, how: str, prompt: list[int], tokens: int, ranks: int) -> list[int]:
    """Return what mlx-lm's own sharding computes with so many processes."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(ranks)]
    hosts = Path(model) / "hosts.json"
    hosts.write_text(json.dumps([["{}:{}".format(*probe.getsockname())] for probe in probes]))
    for probe in probes:
        probe.close()
    program = Path(__file__).with_name("sharded_reference.py")
    running = [
        subprocess.Popen(
            [sys.executable, str(program), model, how, json.dumps(prompt), str(tokens)],
            env={**os.environ, "MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank), "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate()[0] for process in running]
    hosts.unlink()
    answers = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert all(answer == answers[0] for answer in answers)
    return list(answers[0])


@pytest.mark.parametrize("how", ["tensor", "pipeline"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_answers_are_those_of_mlx_lms_sharding(
    folder: Path, ranks: int, how: str, start_group: Callable[..., RunningGroup]
) -> None:
    """Token for token, cold and warm, with parts of the prompt computed in other chunks."""
    path = write_random(folder / "wide", WIDE, 7)
    files = {f"model.layers.{layer}.": "model.safetensors" for layer in range(6)} | {"model.norm": "model.safetensors"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    model = str(path)
    prompt = [3 + number * 7 % 700 for number in range(300)]
    expected = reference(model, how, prompt, 40, ranks)
    group = start_group(ranks, group_models=f"{model}={how}")
    with group.front.client() as client:
        group.ready(client)
        cold = client.complete(model, prompt, max_tokens=40, ignore_eos=True)
        warm = client.complete(model, prompt, max_tokens=40, ignore_eos=True)
        assert list(cold.token_ids) == list(warm.token_ids) == expected
        assert warm.usage.cached_tokens > 0
    group.stop()


@pytest.mark.parametrize(("how", "layers"), [("tensor", 6), ("pipeline", 6), ("pipeline", 5)])
def test_random_neighbours_change_no_answer(
    folder: Path, how: str, layers: int, start_group: Callable[..., RunningGroup]
) -> None:
    """Requests come, share beginnings, are cancelled and invalidated in random order; no rank ever parts."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    model = str(write_random(folder / "wide", {**WIDE, "num_hidden_layers": layers}, 7))
    budget = {"kv_cache_mb": "1"} if layers % 2 else {}  # so that ranks with different numbers of layers evict
    group = start_group(group_models=f"{model}={how}", **budget)
    with group.front.client() as client:
        group.ready(client)
        prompts = [PROMPT[: chance.randrange(20, len(PROMPT))] + str(number % 3) for number in range(12)]
        alone = {prompt: ids(client, model, prompt, cache_mode="bypass") for prompt in prompts}

        def ask(prompt: str, cut: int) -> None:
            with client.generate(model, prompt, max_tokens=24) as stream:
                if cut:
                    for _, _event in zip(range(cut), stream, strict=False):
                        pass
                    return
                assert stream.result().token_ids == alone[prompt]

        for _ in range(scaled(200)):
            failed: list[BaseException] = []
            threads = []
            for _ in range(chance.randrange(1, 5)):
                call = (chance.choice(prompts), chance.choice([0, 0, 1, 4]))
                threads.append(threading.Thread(target=_caught, args=(failed, ask, *call)))
            for thread in threads:
                thread.start()
            if chance.random() < 0.1:
                client.invalidate_model(model, weights=chance.random() < 0.3)
            for thread in threads:
                thread.join()
            assert not failed, f"SEED={seed}"
        assert client.stats().group.restarts == 0
    group.stop()


def _caught(failed: list[BaseException], ask: Callable[[str, int], None], prompt: str, cut: int) -> None:
    try:
        ask(prompt, cut)
    except BaseException as error:
        failed.append(error)


def test_group_computes_while_a_large_model_is_read(folder: Path, start_group: Callable[..., RunningGroup]) -> None:
    """Its weights are hashed, and the first rank alone hears how far that is: all ranks begin the same passes still."""
    small = str(write_random(folder / "small", WIDE, 7))
    large = str(write_random(folder / "large", {**WIDE, "hidden_size": 1152, "vocab_size": 20_000}, 7))
    group = start_group(group_models=f"{small}=tensor,{large}=tensor")
    with group.front.client() as client:
        group.ready(client)
        answer, restarts = ids(client, small), client.stats().group.restarts
        with client.generate(large, PROMPT):
            for _ in range(scaled(20)):
                assert ids(client, small) == answer
        assert client.stats().group.restarts == restarts
    group.stop()


@pytest.mark.parametrize("how", ["tensor", "pipeline"])
def test_draft_model_guesses_in_a_group(folder: Path, start_group: Callable[..., RunningGroup], how: str) -> None:
    """Its passes follow each other without a look at their tokens, and each of them crosses the ranks in turn."""
    model = str(write_random(folder / "model", WIDE, 7))
    draft = str(write_random(folder / "draft", {**WIDE, "num_hidden_layers": 2}, 8))
    group = start_group(group_models=f"{model}={how},{draft}={how}")
    with group.front.client() as client:
        group.ready(client)
        answer = ids(client, model)
        for other in (draft, model):
            assert ids(client, model, draft_model=other, draft_tokens=3, timeout=60.0) == answer
        assert client.stats().group.restarts == 0
    group.stop()


def test_stopped_rank_ends_calls_with_a_reason(folder: Path, start_group: Callable[..., RunningGroup]) -> None:
    """A rank that is silent is given up; its machine starts another engine in its place."""
    model = str(copy_of_embedded(folder, "large"))
    group = start_group(group_models=f"{model}=tensor")
    with group.front.client() as client:
        group.ready(client)
        before = ids(client, model)
        stream = client.generate(model, PROMPT, max_tokens=3000, ignore_eos=True)
        next(iter(stream))
        stopped = group.engine_of(1)
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(EngineRestarted):
            list(stream)
        group.ready(client)
        assert ids(client, model) == before
        assert not alive(stopped)
    group.stop()


@pytest.mark.parametrize("place", ["load.probed", "prefill.chunk"])
@pytest.mark.parametrize("rank", [0, 1])
def test_rank_that_fails_alone_ends_the_group(
    folder: Path, rank: int, place: str, start_group: Callable[..., RunningGroup]
) -> None:
    """In a load and in a pass; the call that failed has a reason, and the group starts anew."""
    model = str(copy_of_embedded(folder, "large"))
    own, other = ("", f"{place}=raise@1")[:: 1 if rank else -1]
    group = start_group(failpoints=other, test_failpoints=own, group_models=f"{model}=tensor")
    with group.front.client() as client:
        group.ready(client)
        with pytest.raises((EngineRestarted, ModelCorrupt), match=f"rank {rank}|{re.escape(place)}"):
            ids(client, model)
        wait_until(lambda: client.stats().group.restarts > 0, "the group has ended")
        if rank:  # the engine of the first machine's own models has the same failpoint
            assert ids(client, "embedded")
        group.ready(client)
    group.stop()


def test_machine_with_another_key_is_no_rank(folder: Path, start_group: Callable[..., RunningGroup]) -> None:
    """Calls are refused with the reason, this machine's own models go on, and the right key mends it."""
    model = str(copy_of_embedded(folder, "large"))
    other = write_key(folder / "other")
    right = other.read_text()
    group = start_group(group_models=f"{model}=tensor", group_key_file=str(other))
    with group.front.client() as client:
        wait_until(lambda: "key is another one" in client.stats().group.problem, "the key is refused")
        with pytest.raises(EngineRestarted, match="key is another one"):
            ids(client, model)
        assert ids(client, "embedded")
        other.write_text((folder / "key").read_text())
        group.ready(client)
        assert other.read_text() != right
        assert ids(client, model) == ids(client, "embedded")
    group.stop()


def test_dying_ranks_leave_no_call_without_an_end(folder: Path, start_group: Callable[..., RunningGroup]) -> None:
    """Ranks are killed at random moments: each call ends with its answer or a typed error."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    model = str(copy_of_embedded(folder, "large"))
    group = start_group(group_models=f"{model}=tensor")
    with group.front.client() as client:
        group.ready(client)
        for number in range(scaled(40)):  # about ten minutes
            # Another request each time: one that runs at two deaths is refused.
            prompt = f"{number}. {PROMPT}"
            expected = ids(client, "embedded", prompt, max_tokens=200, ignore_eos=True)
            stream = client.generate(model, prompt, max_tokens=200, ignore_eos=True)
            for _, _event in zip(range(chance.randrange(1, 60)), stream, strict=False):
                pass
            victim = chance.choice([client.stats().group.pid, group.engine_of(1)])
            if victim:
                os.kill(victim, signal.SIGKILL)
            with suppress(EngineRestarted):  # any other error fails the test
                assert stream.result().token_ids == expected, f"SEED={seed}"
            assert answered(client, group, model, prompt) == expected, f"SEED={seed}"
    group.stop()


def answered(client: Client, group: RunningGroup, model: str, prompt: str) -> tuple[int, ...]:
    """Return the tokens of an answer, asked for again where the group still notices that a rank has died."""
    while True:
        group.ready(client)
        with suppress(EngineRestarted):  # it ends: a request that ran at two deaths is refused
            client.invalidate_model(model)  # and so is a model that ran at three, until this
            return ids(client, model, prompt, max_tokens=200, ignore_eos=True)
