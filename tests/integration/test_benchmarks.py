"""The benchmarks work: each workload, on tiny models. Whether its figures are good is not a test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks import guard, http_door, page, plots, tool_loop
from benchmarks.bench import Bench
from benchmarks.figures import OURS, Result
from benchmarks.http_peer import StartsMlxLm
from benchmarks.report import Report
from benchmarks.sidecar import StartsSidecar
from benchmarks.systems import Request, StartsSystem, System
from benchmarks.words import prompt
from benchmarks.workloads import WORKLOADS
from benchmarks.workloads.kv_bytes import KEPT
from benchmarks.workloads.second_turn import AGAIN
from benchmarks.workloads.trie import MEMORY
from benchmarks.written import writing
from mlx_sidecar import Client
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.conftest import short_folder
from tests.unit.engine.harness import Answer, Harness

STARTS_ITS_OWN = ("startup",)
"""Workloads about servers that start; they take longest, and the whole run below has them."""

LONG = ("guesses", "second-turn")
"""Workloads on several models."""

MAY_BE_NONE = (KEPT, MEMORY, AGAIN)
"""Figures without a bound below: a peer rounds to 10 MB, this process may not grow, and nothing is computed twice."""


@dataclass
class OneStart(Bench):
    """A bench whose servers stay for all workloads; each of them loads what it is asked for."""

    systems: list[System] = field(default_factory=list)

    @contextmanager
    def running(self, *models: Path, starters: Sequence[StartsSystem] | None = None) -> Iterator[list[System]]:
        """Return the same servers each time."""
        if not self.systems:
            self.systems = [start(self.folder / start.name, models) for start in self.starters]
        yield self.systems


@pytest.fixture(name="bench", scope="module")
def _bench() -> Iterator[OneStart]:
    """Return a quick bench."""
    with short_folder() as folder:
        bench = OneStart(folder, [StartsSidecar(), StartsMlxLm()], rounds=1, quick=True)
        yield bench
        for system in bench.systems:
            system.close()


@pytest.fixture(name="results", scope="module")
def _results() -> dict[str, Result]:
    """Return a place for what the workloads gave."""
    return {}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LONG else [])
        for name in WORKLOADS
        if name not in STARTS_ITS_OWN
    ],
)
def test_benchmark_workload_measures_every_system(bench: OneStart, results: dict[str, Result], name: str) -> None:
    """A workload has positive figures for mlx-sidecar and at least one peer, and its JSON can be read back."""
    result = results[name] = WORKLOADS[name](bench)
    systems = {row.system for row in result.rows}
    assert OURS in systems
    assert len(systems) > 1
    assert all(value > 0 for row in result.rows for value in row.values if row.metric not in MAY_BE_NONE)
    assert Result.parse(json.loads(json.dumps(result.raw))) == result


def test_benchmark_figures_are_all_shown_and_plotted(results: dict[str, Result], folder: Path) -> None:
    """Every figure appears in the text with its case, and in the plots."""
    for result in results.values():
        assert all(row.case in page.text(result) for row in result.rows)
    plots.draw(results, folder)
    assert {path.stem for path in folder.iterdir()} == {"first-token", "throughput", "kv-bytes"}


def test_each_benchmark_word_is_one_token(bench: OneStart) -> None:
    """All systems count the same tokens, also in an answer that is sent back."""
    model = bench.model("small")
    with bench.running(model) as systems:
        for system in systems:
            answer = system.ask(Request(model, prompt("words", 50), 7))
            assert (answer.prompt_tokens, answer.tokens, len(answer.text.split())) == (50, 7, 7)
            text = prompt("words", 50) + " " + answer.text.strip() + prompt("more", 3)
            assert system.ask(Request(model, text, 7)).prompt_tokens == 60


def test_run_that_was_ended_can_be_gone_on_with(folder: Path) -> None:
    """What it had measured is kept, but never beside figures of another commit."""
    out = folder / "long.json"
    empty: dict[str, Any] = {"left_out": [], "workloads": {}}
    Report(out, {"commit": "a", **deepcopy(empty)}).add("index", Result("index"))
    again = Report(out, {"commit": "a", **deepcopy(empty)})
    again.go_on()
    assert list(again.tree["workloads"]) == ["index"]
    with pytest.raises(SystemExit, match="commit differ"):
        Report(out, {"commit": "b", **deepcopy(empty)}).go_on()
    again.add("trie", Result("trie"))
    again.end()
    assert list(json.loads(out.read_text())["workloads"]) == ["index", "trie"]
    with pytest.raises(SystemExit, match="no run to go on with"):
        again.go_on()


@pytest.mark.slow
def test_benchmark_command_measures_everything(folder: Path) -> None:
    """The command writes only the files that it was told to write."""
    out = folder / "quick.json"
    subprocess.run([sys.executable, "-m", "benchmarks", "--quick", "--out", str(out)], check=True)
    assert set(json.loads(out.read_text())["workloads"]) == set(WORKLOADS)


def test_gpu_benchmark_shows_that_warm_is_cold(folder: Path) -> None:
    """On whatever device this machine has; figures of speed are there for each number of requests."""
    out = folder / "gpu.json"
    options = ["--shape", "trivial", "--dtype", "float32", "--prompt-tokens", "100", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "benchmarks.gpu", *options], check=True, capture_output=True)
    figures = json.loads(out.read_text())["float32"]
    assert figures["exactness"]["cached"] == 99
    assert figures["exactness"]["same_warm"]
    assert [*figures["tokens_per_second"]] == ["1", "4", "8", "16"]
    assert all(figures["tokens_per_second"].values())


@pytest.mark.slow
def test_guard_is_measured(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model makes no call, and each stream has all of its tokens; `guard` checks that."""
    monkeypatch.setattr(guard, "ROUNDS", 1)
    monkeypatch.setattr(guard, "TOKENS", 4)
    row = guard.compared(client, str(guard.write(tmp_path)), 2)
    assert min(row["ratio"], row["with_tools"], row["without"]) > 0


def test_cost_of_the_http_door_is_measured() -> None:
    """Beside gRPC, for prompts with a cached beginning; with its memory and its start."""
    with short_folder() as folder:
        figures = http_door.measure(folder, quick=True)
    assert all(any(name.endswith(what) for name in figures) for what in http_door.WANTED)
    assert all(value > 0 for name, value in figures.items() if not name.endswith("a token more, ms"))


@pytest.mark.slow
def test_tool_loop_is_measured_beside_a_peer() -> None:
    """Both servers give the same answers, turn by turn; `tool_loop` checks that."""
    with short_folder() as folder:
        figures = tool_loop.measure(folder, quick=True)
    assert figures["mlx-sidecar: prompt tokens"] == figures["mlx_lm.server: prompt tokens"]
    assert all(value > 0 for value in figures.values())


def test_model_writes_the_text_that_a_benchmark_gives_it() -> None:
    """Random weights write none that repeats itself as texts do."""
    harness = Harness(kv_disk_mb=0)
    try:
        with writing([[7, 8, 9, 7, 8, 9]]):
            asked = pb.TokenIds(ids=range(20, 30))
            call = harness.begin(pb.GenerateRequest(model="embedded", tokens=asked, max_tokens=6))
            harness.until(lambda: harness.decoding(call))
        assert Answer(harness.finish(call)).ids == [7, 8, 9, 7, 8, 9]
    finally:
        harness.close()
