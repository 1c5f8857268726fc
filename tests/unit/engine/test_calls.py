"""Calls: whenever one is cancelled, invalidated or goes wrong, it alone ends, and nothing that it held is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.cache.mlx.self_tests import Verdicts
from daemon.cache.resolver import EMBEDDED_PATH, Resolver
from daemon.engine.prompt import chat_templates, tokenizers
from daemon.engine.prompt.template_shape import TemplateShape
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import Answer, Harness, generate
from tools.embedded import corpus

PROMPT = next(corpus.held_out(seed=20, tokens_hint=300)).completion()
LONG = pb.Stop(ignore_eos=True)
LOAD = pb.GetOrLoadRequest(model="embedded")


PHASES: dict[str, Callable[[Harness, int], bool]] = {
    "preparing": lambda harness, call: True,
    "loading": lambda harness, call: bool(harness.engine._models.loading()),
    "waiting": lambda harness, call: harness.engine._runner.waiting > 0,
    "prefill": lambda harness, call: harness.engine._runner.prefilling > 0 and bool(harness.of(call)),
    "decode": lambda harness, call: harness.decoding(call),
}


@pytest.mark.parametrize("phase", PHASES)
def test_cancelled_call_frees_everything(engine: Callable[..., Harness], phase: str) -> None:
    """In whatever phase it is; nothing is sent after it, and what it had computed is reused."""
    harness = engine(max_batch=1, verdicts=Verdicts())  # so that the load takes many steps, whatever ran before
    blocker = None
    if phase != "loading":
        harness.run(LOAD)
    if phase == "waiting":
        blocker = harness.begin(generate("The", max_tokens=3000, stop=LONG))
        harness.until(lambda: harness.decoding(blocker or 0))
    call = harness.begin(generate(PROMPT, max_tokens=2000, stop=LONG))
    harness.until(lambda: PHASES[phase](harness, call))
    sent = len(harness.of(call))
    harness.cancel(call)
    harness.cancel(call)
    if blocker is not None:
        harness.cancel(blocker)
    harness.settle()
    assert len(harness.of(call)) == sent
    assert harness.models == (0 if phase == "loading" else 1)
    again = harness.run(generate(PROMPT))
    assert (again.cached > 0) == (phase in ("prefill", "decode"))
    harness.settle()


def test_load_that_all_callers_cancel_is_aborted(harness: Harness) -> None:
    """One of two may go; when both are gone, so is the load."""
    harness.engine._models.step = lambda: None  # type: ignore[method-assign] # nothing is read until both wait
    first, second = harness.begin(LOAD), harness.begin(LOAD)
    harness.until(lambda: len(harness.events) == 2)
    del harness.engine._models.step
    harness.cancel(first)
    assert harness.engine._models.busy
    harness.cancel(second)
    harness.settle()
    assert harness.models == 0
    assert harness.run(LOAD).info.outcome == pb.LOAD_OUTCOME_LOADED
    assert harness.run(LOAD).info.outcome == pb.LOAD_OUTCOME_HIT


def test_cache_modes_and_salts_share_no_prefix(harness: Harness) -> None:
    """READ_ONLY stores nothing, BYPASS neither reads nor stores, a salt shares with itself alone."""

    def cached(mode: Any = pb.CACHE_MODE_UNSPECIFIED, salt: str = "") -> int:
        return harness.run(generate(PROMPT, max_tokens=1, cache=pb.CacheOptions(mode=mode, salt=salt))).cached

    assert cached(pb.CACHE_MODE_READ_ONLY) == 0
    assert cached(pb.CACHE_MODE_BYPASS) == 0
    assert cached() == 0
    assert cached(pb.CACHE_MODE_READ_ONLY) > 0
    assert cached(pb.CACHE_MODE_BYPASS) == 0
    assert cached(salt="a") == 0
    assert cached(salt="a") > 0
    assert cached(salt="b") == 0
    assert cached() > 0
    harness.settle()


def test_at_most_max_batch_requests_run_at_once(engine: Callable[..., Harness]) -> None:
    """The others wait their turn, in order."""
    harness = engine(max_batch=2)
    calls = [harness.begin(generate(f"The code {n}", max_tokens=6, stop=LONG)) for n in range(5)]
    most = 0

    def all_over() -> bool:
        nonlocal most
        runner = harness.engine._runner
        most = max(most, runner.prefilling + runner.decoding)
        return sum(event.generate.HasField("finished") for event in harness.events) == 5

    harness.until(all_over)
    started = [event.call_id for event in harness.events if event.generate.HasField("started")]
    assert most == 2
    assert sorted(started) == calls
    harness.settle()


def test_require_loaded_refuses_instead_of_loading(harness: Harness) -> None:
    """And runs once the model is there."""
    request = generate("The", require_loaded=True)
    assert harness.run(request).failure.reason == "MODEL_NOT_CACHED"
    assert harness.models == 0
    harness.run(LOAD)
    assert harness.run(request).finished.usage.completion_tokens > 0
    harness.settle()


def test_without_a_budget_every_call_loads_a_model(engine: Callable[..., Harness]) -> None:
    """Two calls at once have a model each, and nothing stays."""
    harness = engine(model_cache_mb=0)
    assert harness.run(LOAD).info.outcome == pb.LOAD_OUTCOME_UNCACHED
    assert harness.models == 0
    calls = [harness.begin(generate(PROMPT)) for _ in range(2)]
    answers = [Answer(harness.finish(call)) for call in calls]
    assert answers[0].content == answers[1].content
    harness.settle()
    assert harness.models == 0
    assert harness.figures.model_cache.total_memory_bytes == 0


def test_without_a_budget_no_model_is_preloaded(engine: Callable[..., Harness]) -> None:
    """The refusal says why, instead of advice that cannot help."""
    failure = engine(model_cache_mb=0).run(generate("The", require_loaded=True)).failure
    assert failure.reason == "MODEL_NOT_CACHED"
    assert "model_cache_mb" in failure.message
    assert "GetOrLoad" not in failure.message


def test_the_first_prompt_after_a_load_finds_the_tokenizer_read(
    engine: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = engine(warms=True)
    harness.run(LOAD)
    tokenizers_of = harness.engine._services.tokenizers
    harness.until(lambda: bool(tokenizers_of._loaded))
    monkeypatch.setattr(tokenizers, "_load", pytest.fail)

    assert harness.run(generate("The")).finished.usage.completion_tokens > 0


def test_first_conversation_after_a_load_finds_a_worker(
    engine: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker takes most of a second to start, and the weights take longer to load."""
    harness = engine(warms=True)
    harness.run(LOAD)
    harness.until(lambda: bool(harness.engine._templates._shapes))
    monkeypatch.setattr(chat_templates, "Renderer", pytest.fail)
    monkeypatch.setattr(TemplateShape, "from_json", pytest.fail)

    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hello.")])
    answer = harness.run(pb.GenerateRequest(model="embedded", chat=chat, max_tokens=4))
    assert answer.finished.usage.completion_tokens > 0


def test_a_load_without_warm_up_starts_no_worker(engine: Callable[..., Harness]) -> None:
    harness = engine(warms=True)
    harness.run(pb.GetOrLoadRequest(model="embedded", skip_warmup=True))
    harness.settle()
    assert not harness.engine._templates.pids


def test_a_tokenizer_that_cannot_be_read_is_an_error_of_the_first_prompt(
    tmp_path: Path, engine: Callable[..., Harness]
) -> None:
    path, harness = copy_of_embedded(tmp_path), engine(warms=True)
    (path / "tokenizer.json").write_text("{")

    assert harness.run(pb.GetOrLoadRequest(model=str(path))).info.size_bytes > 0
    assert harness.run(generate("The", model=str(path))).failure.reason == "MODEL_CORRUPT"
    harness.settle()


def test_without_a_budget_pinning_is_refused(engine: Callable[..., Harness]) -> None:
    """A parameter is never ignored: it is refused."""
    answer = engine(model_cache_mb=0).run(pb.GetOrLoadRequest(model="embedded", pin=True))
    assert (answer.failure.reason, answer.failure.field) == ("INVALID_ARGUMENT", "pin")


def test_idle_model_is_evicted_after_its_ttl(harness: Harness) -> None:
    """A pinned one is not."""
    harness.run(pb.GetOrLoadRequest(model="embedded", ttl={"seconds": 60}))
    harness.clock_offset += 59
    harness.step()
    assert harness.models == 1
    harness.clock_offset += 2
    harness.step()
    assert harness.models == 0
    harness.run(pb.GetOrLoadRequest(model="embedded", ttl={"seconds": 60}, pin=True))
    harness.clock_offset += 100
    harness.step()
    assert harness.models == 1


def test_pin_follows_a_directory_whose_files_changed(harness: Harness, tmp_path: Path) -> None:
    """What it held before is idle: no name leads there any more, to unpin it."""
    path = copy_of_embedded(tmp_path)
    harness.run(pb.GetOrLoadRequest(model=str(path), pin=True))
    config = path / "config.json"
    config.write_text(f"{config.read_text()}\n")
    harness.run(generate("The", model=str(path)))
    assert [entry.pinned for entry in harness.engine._models.entries()] == [True, False]
    harness.run(pb.GetOrLoadRequest(model=str(path), pin=False))
    assert [entry.pinned for entry in harness.engine._models.entries()] == [False, False]


def test_pin_follows_a_branch_that_moved(harness: Harness, tmp_path: Path) -> None:
    """A revision that is named keeps its own."""
    commits = {name: copy_of_embedded(tmp_path / name) for name in ("old", "new", "other")}
    for name, path in commits.items():
        config = path / "config.json"
        config.write_text(f"{config.read_text()}{' ' * len(name)}\n")
    now = {"": commits["old"], "v2": commits["other"]}
    resolver = Resolver([], lambda _repo, revision, **_: now[revision])
    harness.engine._services.lookup._resolver = resolver
    for revision in ("v2", ""):
        harness.run(pb.GetOrLoadRequest(model="org/name", revision=revision, pin=True))
    now[""] = commits["new"]
    harness.run(generate("The", model="org/name"))
    pinned = {entry.model.source.path: entry.pinned for entry in harness.engine._models.entries()}
    assert pinned == {commits["old"]: False, commits["new"]: True, commits["other"]: True}


def test_request_timings_sum_up_and_are_not_negative(harness: Harness) -> None:
    """A model that was there took no time to load."""
    for warm in (False, True):
        timings = harness.run(generate(PROMPT)).finished.timings
        spans = {field.name: value.ToNanoseconds() for field, value in timings.ListFields()}
        assert all(span >= 0 for span in spans.values())
        assert (spans.get("load", 0) > 0) == (not warm)
        parts = sum(spans.get(name, 0) for name in ("queue", "load", "lookup", "restore", "prefill"))
        assert abs(spans["first_token"] - parts) < 10_000  # nanoseconds: each span is rounded


def test_timings_of_waiting_requests_sum_up(harness: Harness) -> None:
    """Wherever the time went, none of it is counted twice or lost."""
    prompts = [next(corpus.held_out(seed=seed, tokens_hint=400)).completion() for seed in range(60, 63)]
    calls = [harness.begin(generate(prompt, cache=pb.CacheOptions(salt=prompt[:9]))) for prompt in prompts]
    for call in calls:
        timings = Answer(harness.finish(call)).finished.timings
        spans = {field.name: value.ToNanoseconds() for field, value in timings.ListFields()}
        parts = sum(spans.get(name, 0) for name in ("queue", "load", "lookup", "restore", "prefill"))
        assert abs(spans["first_token"] - parts) < 10_000


def test_stats_report_steps_gaps_and_batch_sizes(harness: Harness) -> None:
    """Of two requests that run together, most turns give both a token."""
    assert not harness.figures.engine.HasField("token_gap_p50")
    calls = [harness.begin(generate("The", max_tokens=30, stop=LONG)) for _ in range(2)]
    for call in calls:
        harness.finish(call)
    engine = harness.figures.engine
    assert (engine.batch_size_p50, engine.batch_size_p99) == (2, 2)
    assert 0 < engine.token_gap_p50.ToNanoseconds() <= engine.token_gap_p99.ToNanoseconds()
    assert 0 < engine.step_time_p50.ToNanoseconds() <= engine.step_time_p99.ToNanoseconds()


def test_generation_config_eos_ends_an_answer(harness: Harness, tmp_path: Path) -> None:
    """Many models name the token that ends a turn only there."""
    first = harness.run(generate(PROMPT)).ids[0]
    copy = tmp_path / "model"
    shutil.copytree(EMBEDDED_PATH, copy)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, first]}))
    answer = harness.run(generate(PROMPT, model=str(copy)))
    assert (answer.text, answer.finished.reason) == ("", pb.FINISH_REASON_STOP)
    assert answer.finished.usage.completion_tokens == 1


def test_stats_are_sent_before_the_event_they_count(harness: Harness) -> None:
    """Who saw the end sees its effect."""
    harness.run(generate(PROMPT))
    figures = harness.figures
    assert figures.prefix_cache.blocks > 0
    assert figures.engine.decoding == figures.prefix_cache.leases == 0
    assert figures.models[0].in_use == 0
    assert figures.memory.weights_bytes == figures.models[0].info.size_bytes > 0


def test_namespace_shows_the_last_requested_model_name(harness: Harness, tmp_path: Path) -> None:
    """Not the one under which its content was loaded first."""
    first = copy_of_embedded(tmp_path)
    second = tmp_path / "second"
    shutil.copytree(first, second)
    for path in (first, second):
        harness.run(generate("The code of the black mirror is", model=str(path)))
    harness.settle()
    harness.step()
    assert [one.model for one in harness.figures.prefix_cache.namespaces] == [str(second)]
