"""Random conversations, several at a time, in an engine that much happens to: each answer is that of a cold run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.repetitions import scaled
from tests.unit.engine.harness import Harness
from tests.unit.engine.random_days import a_day


@pytest.mark.parametrize(("kind", "disk"), [("qwen3", True), ("marked:qwen3_next", True), ("gemma3_text", False)])
def test_answers_of_a_random_day_are_those_of_cold_runs(
    engine: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, disk: bool
) -> None:
    """Branches, second turns, readers of one prefix, samples, forms, guesses, cancels, evictions, restarts."""
    a_day(engine, tmp_path, monkeypatch, kind, disk=disk).live(30)


KINDS = [
    *("llama", "qwen3_moe", "deepseek_v3", "gemma3_text", "gpt_oss", "qwen3_next", "mamba", "mamba2", "falcon_h1"),
    *("recurrent_gemma", "baichuan_m1", "marked:qwen3", "marked:qwen3_next", "marked:gemma3_text"),
    *("marked:deepseek_v3", "head:mimo", "head:deepseek_v3", "head:mimo_v2_flash", "head:nemotron_h"),
]


@pytest.mark.slow
@pytest.mark.parametrize("disk", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_a_random_week_are_those_of_cold_runs(
    engine: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, disk: bool
) -> None:
    """It is long enough that prefixes are reused."""
    day = a_day(engine, tmp_path, monkeypatch, kind, disk=disk)
    day.live(scaled(1500))
    assert day.reused
