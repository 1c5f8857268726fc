"""Prefixes on the disk in a whole engine: exact after a restart for every kind of cache, whatever happens to them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from daemon.cache.mlx import computing_place, self_tests
from daemon.cache.mlx.self_tests import Verdicts
from daemon.kv.disk import write_behind
from daemon.kv.mlx.layout import Layout
from daemon.kv.mlx.self_test import without_reuse
from daemon.shared.slices import Sliced
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import embedding_model, random_model
from tests.unit.engine.cold_runs import CLOSE
from tests.unit.engine.disk_engines import ask, restarted, written
from tests.unit.engine.embed_calls import CLOSE as CLOSE_VECTORS
from tests.unit.engine.embed_calls import Vectors, embed
from tests.unit.engine.families import EXACT, Family, write
from tests.unit.engine.harness import Answer, Harness, generate
from tests.unit.engine.prompts import ids

KINDS = ["llama/bfloat16", "deepseek_v3", "gemma3_text", "gpt_oss", "qwen3_next", "mamba", "falcon_h1", "minimax_m3_vl"]
BYPASS = pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS)
TEXT = "The disk keeps what was used again. " * 12


@pytest.mark.parametrize("family", KINDS)
def test_prefix_is_exact_after_a_restart(engine: Callable[..., Harness], tmp_path: Path, family: str) -> None:
    """Tails are written where a model goes on from resume points only; the answer is that of a cold run."""
    path, prompt = write(tmp_path, Family(family)), ids(300)
    harness = engine()
    ask(harness, path, prompt)
    ask(harness, path, prompt)
    written(harness)
    harness = restarted(harness, engine)
    longer = [*prompt, *ids(20, 3)]
    warm = ask(harness, path, longer, pb.CACHE_MODE_READ_ONLY)
    cold = ask(harness, path, longer, pb.CACHE_MODE_BYPASS)
    assert warm.started.disk_tokens == warm.cached == 288
    assert (cold.cached, cold.started.disk_tokens) == (0, 0)
    assert warm.ids == cold.ids
    difference = [abs(a.logprob - b.logprob) for a, b in zip(warm.logprobs, cold.logprobs, strict=True)]
    assert max(difference) <= (0 if family in EXACT else CLOSE)
    again = ask(harness, path, longer, pb.CACHE_MODE_READ_ONLY)
    assert (again.cached, again.started.disk_tokens) == (warm.cached, 0)
    harness.settle()
    figures = harness.figures.prefix_cache
    assert (figures.disk_hits, figures.disk_tokens_reused) == (1, warm.cached)
    assert 0 < figures.disk_bytes <= figures.disk_budget_bytes


@pytest.mark.parametrize("library", ["mlx", "mlx-lm"])
def test_prefix_that_another_version_computed_is_removed(
    engine: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    """A release of mlx-lm may mend how a model computes; the names of the model and of its tokens stay."""
    path, prompt = write(tmp_path, Family("llama")), ids(300)
    harness = engine()
    for _ in range(2):
        ask(harness, path, prompt)
    written(harness)
    folder = harness.engine._disk.work._files.folder
    assert list(folder.glob("*.kv"))
    monkeypatch.setattr(computing_place, "version", lambda name: "0" if name == library else version(name))
    harness = restarted(harness, engine)
    harness.until(lambda: harness.engine._disk.open)
    assert not list(folder.glob("*.kv"))
    assert ask(harness, path, prompt).cached == 0


def test_pieces_are_given_back_if_their_model_reuses_nothing(
    engine: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its self-test has failed since they were written: on another device, for example."""

    def unproven(model: Any, layout: Layout) -> Sliced[Layout]:
        yield from ()
        return without_reuse(layout)

    path, prompt = write(tmp_path, Family("llama")), ids(300)
    harness = engine()
    for _ in range(2):
        ask(harness, path, prompt)
    written(harness)
    monkeypatch.setattr(self_tests, "proven", unproven)
    harness = restarted(harness, lambda: engine(verdicts=Verdicts()))
    disk = harness.engine._disk
    harness.until(lambda: disk.open)
    assert ask(harness, path, prompt).cached == 0
    harness.until(lambda: not disk.reads.nbytes)
    harness.settle()


def test_evicted_prefix_comes_back_from_the_disk(engine: Callable[..., Harness]) -> None:
    """Also while its engine lives."""
    harness = engine()
    harness.run(generate(TEXT))
    warm = harness.run(generate(TEXT))
    written(harness)
    harness.engine._memory._prefixes.shed(10**12)
    again = harness.run(generate(TEXT))
    assert again.started.disk_tokens == again.cached == warm.cached
    assert again.content == warm.content


def test_idle_prefix_leaves_memory_for_the_disk(engine: Callable[..., Harness]) -> None:
    """After `model_ttl` without a use, also if it was used once; the next request has it from there."""
    harness = engine(model_ttl=80)
    cold = harness.run(generate(TEXT))
    for _ in range(20):
        harness.clock_offset += 5
        harness.settle()
        written(harness)
    assert harness.figures.prefix_cache.bytes == 0
    again = harness.run(generate(TEXT))
    assert again.started.disk_tokens == again.cached >= len(TEXT.split()) // 16 * 16
    assert again.content == cold.content


@pytest.mark.parametrize("damage", ["flipped", "torn", "gone", "unreadable"])
def test_damaged_file_costs_time_and_no_request(engine: Callable[..., Harness], damage: str) -> None:
    """The prompt is computed, and its answer is the same."""
    harness = engine()
    harness.run(generate(TEXT))
    warm = harness.run(generate(TEXT))
    written(harness)
    harness.engine._memory._prefixes.shed(10**12)
    for path in harness.engine._disk.work._files.folder.glob("*.kv"):
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        if damage == "flipped":
            path.write_bytes(content)
        elif damage == "torn":
            path.write_bytes(content[:-9])
        else:
            path.unlink()
            if damage == "unreadable":
                path.mkdir()
    again = harness.run(generate(TEXT))
    assert again.content == warm.content
    assert again.cached == 0
    harness.settle()
    assert harness.figures.prefix_cache.disk_faults >= 1


def test_cancelled_request_leaves_its_restore(engine: Callable[..., Harness]) -> None:
    """Nothing stays staged, and nothing is held."""
    harness = engine()
    harness.run(generate(TEXT))
    harness.run(generate(TEXT))
    written(harness)
    harness.engine._memory._prefixes.shed(10**12)
    call = harness.begin(generate(TEXT))
    harness.until(lambda: bool(harness.engine._disk.restores))
    harness.cancel(call)
    harness.settle()
    assert not harness.engine._disk.restores


def test_bypassing_and_scored_requests_read_no_disk(engine: Callable[..., Harness]) -> None:
    """As they read no memory."""
    harness = engine()
    harness.run(generate(TEXT))
    harness.run(generate(TEXT))
    written(harness)
    harness = restarted(harness, engine)
    assert harness.run(generate(TEXT, cache=pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS))).cached == 0
    assert harness.run(generate(TEXT, prompt_logprobs=0)).cached == 0
    assert harness.engine._disk.work.counters.read_bytes == 0


def test_embedding_reads_its_instruction_from_the_disk(engine: Callable[..., Harness], tmp_path: Path) -> None:
    """Once for all texts of a call; the vectors are those of a call that reads nothing."""
    model = embedding_model(tmp_path / "model", default_prompt_name="query")
    harness = engine()
    for text in ("one ship", "two birds"):
        Vectors(harness, embed(model, [text]))
    written(harness)
    harness = restarted(harness, engine)
    texts = ["three waves", "four ships", "five birds"]
    warm = Vectors(harness, embed(model, texts))
    counters = harness.engine._disk.work.counters
    assert (counters.hits, counters.read_bytes) == (1, harness.engine._disk.catalog.nbytes)
    assert warm.finished.usage.cached_tokens >= 3 * 16
    cold = Vectors(harness, embed(model, texts, cache=pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS)))
    np.testing.assert_allclose(warm.values, cold.values, atol=CLOSE_VECTORS)


@pytest.mark.parametrize("damaged", [False, True])
def test_draft_reads_its_prefix_from_the_disk(engine: Callable[..., Harness], tmp_path: Path, damaged: bool) -> None:
    """Beside that of the model itself; what cannot be read is computed."""
    draft = str(random_model(tmp_path, "qwen3"))
    request = generate(TEXT, draft_model=draft, draft_tokens=2)
    harness = engine()
    cold = harness.run(request)
    harness.run(request)
    written(harness)
    names = {entry.piece.model for entry in harness.engine._disk.catalog}
    assert names == {"embedded", draft}
    for entry in harness.engine._disk.catalog if damaged else ():
        if entry.piece.model == draft:
            path = harness.engine._disk.work._files.folder / entry.piece.name
            *before, last = path.read_bytes()
            path.write_bytes(bytes([*before, last ^ 1]))
    harness = restarted(harness, engine)
    answer = harness.run(request)
    assert answer.content == cold.content
    assert answer.started.disk_tokens == answer.cached > 0
    harness.settle()
    assert harness.figures.prefix_cache.disk_tokens_reused == answer.cached * (1 if damaged else 2)
    assert harness.figures.prefix_cache.disk_faults == damaged


def test_requests_that_wait_together_read_the_disk_once(engine: Callable[..., Harness]) -> None:
    """Both reuse what came from there."""
    harness = engine()
    for _ in range(2):
        harness.run(generate(TEXT))
    written(harness)
    harness = restarted(harness, engine)
    calls = [harness.begin(generate(TEXT)) for _ in range(2)]
    answers = [Answer(harness.finish(call)) for call in calls]
    # The other one may come so late that it finds in memory what the first one has read.
    assert any(answer.started.disk_tokens == answer.cached > 0 for answer in answers)
    assert answers[0].cached == answers[1].cached
    assert answers[0].content == answers[1].content
    harness.settle()
    disk = harness.engine._disk
    assert disk.work.counters.read_bytes == disk.catalog.nbytes
    assert disk.staged == disk.work.spare


def test_second_daemon_goes_without_the_directory(engine: Callable[..., Harness]) -> None:
    """It serves, says once what is wrong, and invalidates; when the first one has gone, it takes over."""
    first = engine()
    for _ in range(2):
        first.run(generate(TEXT))
    written(first)
    folder = first.engine._disk.work._files.folder
    with capture_logs() as lines:
        second = engine(kv_disk_dir=folder)
        answer = second.run(generate(TEXT))
        assert (answer.cached, answer.content) == (0, first.run(generate(TEXT, cache=BYPASS)).content)
        assert not second.run(pb.InvalidateRequest(all=pb.AllTarget(prefixes=True))).failure.message
        for _ in range(5):
            second.clock_offset += 2
            second.settle()
    told = [(line["error"], line["directory"]) for line in lines if line["event"] == "kv_disk_unusable"]
    assert told == [("another daemon uses it", str(folder))]
    assert list(folder.glob("*.kv"))
    first.close()
    first.engine._disk.work._files.close()
    second.clock_offset += 2
    second.until(lambda: second.engine._disk.open and second.engine._disk.settled)
    assert not list(folder.glob("*.kv"))


def test_prefill_gets_the_machine_for_itself(engine: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch) -> None:
    """What its own lookup used again is written once it is computed."""
    monkeypatch.setattr(write_behind, "MOST_REST", 1e9)
    harness = engine()
    harness.run(generate(TEXT))
    disk, beside, computing = harness.engine._disk, [], []
    step, begin = disk.step, disk.writer._begin

    def stepped(*, prompts: bool) -> None:
        computing.append(prompts)
        step(prompts=prompts)

    def begun(job: write_behind.Job) -> None:
        beside.append(harness.engine._runner.computes_prompts)
        begin(job)

    monkeypatch.setattr(disk, "step", stepped)
    monkeypatch.setattr(disk.writer, "_begin", begun)
    assert harness.run(generate(TEXT + "What came after it is new. " * 200)).cached
    written(harness)
    assert True in computing
    assert beside
    assert True not in beside


def test_running_stream_gets_a_step_between_slices(
    engine: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a prefix that comes back from the disk, and of one that is written: each turn does one slice of them."""
    monkeypatch.setattr(write_behind, "PIECE_BYTES", 1)  # a piece for each block
    harness = engine()
    for _ in range(2):
        harness.run(generate(TEXT))
    written(harness)
    harness.engine._memory._prefixes.shed(10**12)
    stream = harness.begin(generate("Once upon a time", max_tokens=1800, stop=pb.Stop(ignore_eos=True)))
    harness.until(lambda: harness.decoding(stream))
    order = ""

    def noted(letter: str, step: Callable[..., None]) -> Callable[..., None]:
        def stepped(**given: bool) -> None:
            nonlocal order
            order += letter if harness.decoding(stream) else ""
            step(**given)

        return stepped

    monkeypatch.setattr(harness.engine._disk, "step", noted("d", harness.engine._disk.step))
    monkeypatch.setattr(harness.engine._runner, "step", noted("r", harness.engine._runner.step))
    answer = harness.run(generate(TEXT))
    assert answer.started.disk_tokens == answer.cached > 0
    assert order.count("d") > 1
    assert "dd" not in order
