"""Formats results as tables, for the terminal and for docs/benchmarks.md, from the raw figures only."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import LESS, MORE, OURS, Metric, Result, Target
from benchmarks.floor import FLOOR, IN_PROCESS
from benchmarks.http_peer import MLX_LM, VLLM_MLX
from benchmarks.workloads.kv_bytes import UNIQUE

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
REPORT = RESULTS / "bench.json"
GPU_REPORT = RESULTS / "gpu.json"
"""What a run on a GPU wrote; see `benchmarks/gpu/run.py`."""
PAGE = ROOT / "docs" / "benchmarks.md"
_BLOCK = re.compile(r"(<!-- figures: (\S+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
_NO_PEER = (OURS, FLOOR, IN_PROCESS, UNIQUE)
_SUMMARY = (
    ("a cold prompt of 2,048 tokens: first token", "prefix", "small, 2048 tokens", "first token, cold"),
    ("its 2,048 tokens again, and 32 new ones: first token", "prefix", "small, 2048 tokens", "first token"),
    ("eight agents, six turns each: all of it", "agents", "all turns", "all of it"),
    ("two models in turn: first token", "switching", "small and other, each in its conversation", "first token"),
    ("one client", "decode", "small, 1 client", "throughput"),
    ("eight clients", "decode", "small, 8 clients", "throughput"),
    ("eight clients with seeds", "seeded", "8 clients", "throughput"),
    ("four streams while a long prompt comes: longest gap", "fairness", "4 streams, 4096 tokens come", "gap, longest"),
    ("32 conversations with a common beginning: KV kept", "kv-bytes", "32 conversations", "KV kept"),
    ("from the start of the process until it serves", "startup", "no request yet", "serves"),
)
"""Rows of the table that the page leads with: text, workload, case, metric."""


def load(path: Path = REPORT) -> tuple[dict[str, Any], dict[str, Result]]:
    """Return a report as plain data, and its results by workload."""
    report = json.loads(path.read_text())
    return report, {name: Result.parse(raw) for name, raw in report["workloads"].items()}


def write() -> None:
    """Write the figures of the last complete run into the page."""
    PAGE.write_text(filled(PAGE.read_text()))


def filled(text: str) -> str:
    """Return the page's text with each block of figures replaced."""
    report, results = load()
    others = {
        "run": _run(report),
        "summary": _markdown(summary(results)),
        "targets": _targets(results),
        "ahead": ahead(results),
        "gpu": gpu(GPU_REPORT),
    }

    def block(name: str) -> str:
        if name in others:
            return others[name]
        return _markdown(_table(results[name])) if name in results else "*not measured in this run*"

    return _BLOCK.sub(lambda match: f"{match[1]}{block(match[2])}\n{match[3]}", text)


def text(result: Result) -> str:
    """Return a result as text for a terminal."""
    table = _table(result)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join([result.title, *lines, *(f"target {verdict(target)}" for target in result.targets)])


def markdown(result: Result) -> str:
    """Return a result as a table of the page."""
    return _markdown(_table(result))


def number(value: float) -> str:
    """Return a figure with three significant digits."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def summary(results: dict[str, Result]) -> list[list[str]]:
    """Return the figures that the page leads with: medians alone, a line for each that was measured."""
    systems = (OURS, MLX_LM, VLLM_MLX)
    table = [["", "", *systems]]
    for what, workload, case, name in _SUMMARY:
        measured = results[workload].rows if workload in results else []
        rows = [row for row in measured if (row.case, row.metric.name) == (case, name)]
        values = {row.system: number(row.median) for row in rows}
        if rows:
            table.append([what, rows[0].metric.unit, *(values.get(system, "") for system in systems)])
    return table


def _table(result: Result) -> list[list[str]]:
    """Return a line for each case and metric: median and range of each system, then our ratio to each other system."""
    systems = list(dict.fromkeys(row.system for row in result.rows))
    others = [system for system in systems if system != OURS]
    table = [["", "", *systems, *(f"ours / {system}" for system in others)]]
    for case, metric in dict.fromkeys((row.case, row.metric) for row in result.rows):
        cells = [_cell(result, case, metric, system) for system in systems]
        ratios = [_ratio(result.ratios(case, metric, OURS, system)) for system in others]
        table.append([case, f"{metric.name}, {metric.unit}", *cells, *ratios])
    return table


def _cell(result: Result, case: str, metric: Metric, system: str) -> str:
    row = result.find(case, metric, system)
    if row is None:
        return ""
    if min(row.values) == max(row.values):
        return number(row.median)
    return f"{number(row.median)} ({number(min(row.values))} to {number(max(row.values))})"


def _ratio(values: Sequence[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{median(values):.2f}"
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _markdown(table: list[list[str]]) -> str:
    head, *rows = table
    rules = ["---", "---", *("---:" for _ in head[2:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rules, *rows))


def _run(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    peers = ", ".join(f"{name} {number}" for name, number in report["peer_versions"].items())
    lines = [
        f"* {report['machine']}, {report['processor']}; BLAS: {report['blas']}",
        f"* Python {report['python']}; {versions}",
        *([f"* the environment of vllm-mlx: {peers}"] if peers else []),
        f"* commit {report['commit']}; {report['rounds']} rounds",
        *(f"* left out: {what}" for what in report["left_out"]),
        *([f"* **{report['note']}**"] if report["note"] else []),
    ]
    return "\n".join(lines)


def gpu(path: Path) -> str:
    """Return the tables of a run on a GPU, and what it left out."""
    if not path.exists():
        return "*not measured yet*"
    report = json.loads(path.read_text())
    machine = report["steps"]["machine"]
    lines = [f"On {machine['device']}, commit {report['package']['commit']}; mlx {machine['versions']['mlx']}."]
    lines += [f"\n* {name}: {reason}" for name, reason in (report["left_out"] | report["cut_off"]).items()]
    for step in report["steps"].values():
        for raw in step.get("results", ()):
            result = Result.parse(raw)
            lines += [f"\n**{result.title}**", "", markdown(result)]
            lines += ["", *(f"* {verdict(one)}" for one in result.targets)] if result.targets else []
    return "\n".join(lines)


def _targets(results: dict[str, Result]) -> str:
    lines = [f"* {name}, {verdict(target)}" for name, result in results.items() for target in result.targets]
    return "\n".join(lines)


def verdict(target: Target) -> str:
    """Return a bound with the figure, and whether it was reached."""
    wanted = "at most" if target.better == LESS else "at least"
    said = "reached" if target.reached else "**not reached**"
    return f"{target.text}: {number(target.value)}, wanted {wanted} {number(target.bound)}: {said}"


def ahead(results: dict[str, Result]) -> str:
    """Return one line for each figure in which a peer's median is better than ours."""
    lines = []
    for name, result in results.items():
        for row in result.rows:
            ours = result.find(row.case, row.metric, OURS)
            if ours is None or row.system in _NO_PEER or not row.metric.better:
                continue
            behind = row.median > ours.median if row.metric.better == MORE else row.median < ours.median
            if behind:
                values = f"{number(row.median)} {row.metric.unit} against our {number(ours.median)}"
                lines.append(f"* {name}, {row.case}, {row.metric.name}: {row.system} {values}")
    return "\n".join(lines) or "* nowhere in this run"
