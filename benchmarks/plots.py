"""Draws the plots of docs/benchmarks.md as SVG."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import FIRST_TOKEN, OURS, SPEED, Metric, Result
from benchmarks.http_peer import MLX_LM, VLLM_MLX
from benchmarks.page import ROOT
from benchmarks.workloads.kv_bytes import KEPT
from benchmarks.workloads.prefix import COLD

FOLDER = ROOT / "docs" / "benchmarks"
COLOURS = {OURS: "#c2410c", MLX_LM: "#1d4ed8", VLLM_MLX: "#15803d"}
OTHER = "#737373"


def draw(results: dict[str, Result], folder: Path = FOLDER) -> None:
    """Draw each plot whose workload is among the results."""
    folder.mkdir(exist_ok=True)
    # The same figures give the same file: a fixed salt for ids, and text as text instead of paths.
    with mpl.rc_context({"svg.hashsalt": "mlx-sidecar", "svg.fonttype": "none", "font.size": 9}):
        if "prefix" in results:
            axes = _axes("tokens of the prefix", "first token, ms", logarithmic=True)
            _lines(axes, results["prefix"], COLD, "small, ", "cold", "--")
            _lines(axes, results["prefix"], FIRST_TOKEN, "small, ", "warm", "-")
            _save(axes, folder / "first-token.svg")
        if "decode" in results:
            axes = _axes("clients", "tokens/s of all together")
            _lines(axes, results["decode"], SPEED, "small, ", "", "-")
            _save(axes, folder / "throughput.svg")
        if "kv-bytes" in results:
            axes = _axes("conversations", "KV kept, MB")
            _lines(axes, results["kv-bytes"], KEPT, "", "", "-")
            _save(axes, folder / "kv-bytes.svg")


def traffic(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw where the tokens of prompts come from, a bar for each pair of budgets; see `benchmarks.tier_traffic`."""
    with mpl.rc_context({"svg.hashsalt": "mlx-sidecar", "svg.fonttype": "none", "font.size": 9}):
        axes = _axes("budget of memory and of the disk, GB", "share of prompt tokens")
        labels = [f"{row['memory_gb']:g} + {row['disk_gb']:g}" for row in rows]
        bottom = [0.0] * len(rows)
        for key, name, colour in (("from_memory", "memory", "#0d9488"), ("from_disk", "disk", "#c2410c")):
            heights = [row[key] / row["looked_up"] for row in rows]
            axes.bar(labels, heights, bottom=bottom, color=colour, label=name)
            bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
        axes.bar(labels, [1 - below for below in bottom], bottom=bottom, color="#e5e5e5", label="computed")
        axes.set_ylim(0, 1.15)
        _save(axes, path, ncols=3, loc="upper center")


def _lines(axes: Axes, result: Result, metric: Metric, prefix: str, label: str, style: str) -> None:
    """Draw a line for each system through the cases named by `prefix` and a number."""
    for system in dict.fromkeys(row.system for row in result.rows):
        points = [
            (int(found[1]), row.median, min(row.values), max(row.values))
            for row in result.rows
            if (row.system, row.metric) == (system, metric) and (found := re.match(rf"{prefix}(\d+) ", row.case))
        ]
        if not points:
            continue
        x, y, low, high = zip(*sorted(points), strict=True)
        colour = COLOURS.get(system, OTHER)
        axes.plot(x, y, style, marker=".", color=colour, label=f"{system} {label}".strip())
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _axes(x: str, y: str, *, logarithmic: bool = False) -> Axes:
    axes = Figure(figsize=(6.4, 3.6), layout="constrained").add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if logarithmic:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    return axes


def _save(axes: Axes, path: Path, **legend: Any) -> None:
    axes.legend(frameon=False, **legend)
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(path, metadata={"Date": None})
