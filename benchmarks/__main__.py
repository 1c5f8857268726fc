"""
Runs mlx-sidecar and peer servers side by side, on the same models and prompts.

Without RUN, all workloads run. The figures go to benchmarks/results/bench.json, then into the plots and tables of
docs/benchmarks.md and the README. With RUN, only these workloads run; their figures are printed, and written only to
--out.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine, page, plots
from benchmarks.bench import Bench
from benchmarks.figures import Result
from benchmarks.http_peer import MLX_LM, VLLM_MLX, StartsMlxLm, StartsVllmMlx
from benchmarks.report import Report
from benchmarks.sidecar import StartsSidecar
from benchmarks.systems import StartsSystem
from benchmarks.workloads import WORKLOADS
from tools import readme_figure


def main() -> int:
    """Run the command line."""
    arguments = _parser().parse_args()
    if arguments.publish:
        publish()
        return 0
    # As an exception, SIGTERM runs the blocks that end the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not arguments.no_openblas:
        machine.preload_openblas("benchmarks", *sys.argv[1:])
    everything = not (arguments.run or arguments.quick or arguments.out)
    out = arguments.out or (page.REPORT if everything else None)
    with tempfile.TemporaryDirectory(prefix="mlxs-", dir="/tmp") as folder:
        bench = Bench(Path(folder), _starters(arguments), 1 if arguments.quick else arguments.rounds, arguments.quick)
        report = Report(
            out,
            {
                "note": arguments.note,
                "quick": arguments.quick,
                "rounds": bench.rounds,
                **machine.describe(),
                "peer_versions": machine.versions_in(arguments.peer_venv) if arguments.peer_venv else {},
                "left_out": bench.left_out,
                "workloads": {},
            },
        )
        if arguments.go_on:
            report.go_on()
        for name in arguments.run or list(WORKLOADS):
            if name not in report.tree["workloads"]:
                report.add(name, measure(bench, name))
    report.end()
    if everything:
        publish()
    return 0


def publish() -> None:
    """Write the plots, the page's tables and the README's figures from the last complete run."""
    plots.draw(page.load()[1])
    page.write()
    readme_figure.write()


def measure(bench: Bench, name: str) -> Result:
    """Run a workload, and print its table."""
    began, computed = time.monotonic(), _processor_seconds()
    result = WORKLOADS[name](bench)
    took = f"{time.monotonic() - began:.0f} s, {_processor_seconds() - computed:.0f} s of processors"
    print(f"\n{page.text(result)}\n({name}: {took})", flush=True)
    return result


def _processor_seconds() -> float:
    """
    Return the processor seconds of this process and of the servers that have ended.

    If they are far below the elapsed time, other programs used the processors.
    """
    return sum(os.times()[:4])


def _starters(arguments: argparse.Namespace) -> list[StartsSystem]:
    peers: dict[str, StartsSystem] = {MLX_LM: StartsMlxLm()}
    if arguments.peer_venv:
        peers[VLLM_MLX] = StartsVllmMlx(arguments.peer_venv)
    return [StartsSidecar(), *(peer for name, peer in peers.items() if name in (arguments.peer or peers))]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="*", metavar="RUN", help=f"workloads: {', '.join(WORKLOADS)}")
    parser.add_argument("--peer", action="append", choices=(MLX_LM, VLLM_MLX), help="only these peers; may be repeated")
    parser.add_argument("--peer-venv", type=Path, help="environment that vllm-mlx (and mlx[cpu] on Linux) is in")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each system; fewer of long ones, more of short")
    parser.add_argument("--quick", action="store_true", help="tiny models, one round: shows that the harness works")
    parser.add_argument("--no-openblas", action="store_true", help="on Linux, leave the BLAS that mlx brings along")
    parser.add_argument("--note", default="", help="a sentence about this run, for the page")
    parser.add_argument("--publish", action="store_true", help="only make plots and pages of the last figures again")
    parser.add_argument("--go-on", action="store_true", help="measure only what the last run, which was ended, had not")
    parser.add_argument("--out", type=Path, help="where the figures go; nothing else is written then")
    return parser


if __name__ == "__main__":
    sys.exit(main())
