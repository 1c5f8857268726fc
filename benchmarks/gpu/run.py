"""
Runs the GPU benchmarks on a machine without a network: `python3 run.pyz --out FOLDER`, beside the pieces of a package.

It needs the standard library and pip alone. In this order it

    joins and verifies the pieces
    makes an environment on top of the packages that this Python has
    puts CUDA's libraries on the loader's path
    runs the steps, each in a process of its own and within a time

After each step FOLDER has all figures so far: gpu.json and, as tables, gpu.md. What failed, had no time or was cut off
is named in both. In a checkout, `python -m benchmarks.gpu.run --checkout --rehearse --out FOLDER` runs all steps with
tiny models and lengths on whatever device there is.

Exit status: 0 if every step came to its end, 2 if not, 1 if none could begin.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu import pieces

SECONDS = 480.0
"""Time of a whole run."""
GRACE = 10.0
"""Seconds that an ended step has for ending its servers."""
STEPS = {
    "machine": 30.0,
    "exact-small": 45.0,
    "exact-window": 35.0,
    "exact-1.7b": 60.0,
    "serving": 215.0,
    "exact-hybrid": 55.0,
    "guesses": 40.0,
}
"""Steps in their order, with the seconds of each. What a step leaves is the next ones'."""
_CUDA_FOLDERS = ("nvidia/*/lib", "nvidia/*/lib64")
_LOG_CHARACTERS = 4000
_DRIVER_FOLDER = Path("/usr/local/nvidia/lib64")
"""Where containers have the driver's libraries, if the loader does not find them by itself."""


class RunError(Exception):
    """What keeps a run from beginning, as one line, with the way out of it."""


@dataclass
class Run:
    """
    One run.

    Attributes:
        python: The interpreter of the steps.
        root: The checkout that they run in.
        out: Folder of the figures.
        work: Folder of models, compiled kernels, and the figures and logs of steps.
        environ: Environment variables of the steps.
        ends: Time at which the run is over, by `time.monotonic`.
        rehearse: Whether models and lengths are tiny.
        report: All that is known so far.
    """

    python: Path
    root: Path
    out: Path
    work: Path
    environ: dict[str, str]
    ends: float
    rehearse: bool = False
    report: dict[str, object] = field(default_factory=dict)
    _left: dict[str, str] = field(default_factory=dict)
    _took: dict[str, float] = field(default_factory=dict)

    def steps(self, budgets: dict[str, float]) -> None:
        """Run steps, each within its seconds and what the earlier ones left, and write the report after each."""
        spare = 0.0
        for name, seconds in budgets.items():
            limit = min(seconds + spare, self.ends - time.monotonic() - GRACE)
            began = time.monotonic()
            reason = self._step(name, limit) if limit > 0 else "no time was left"
            self._took[name] = round(time.monotonic() - began, 1)
            spare = max(0.0, spare + seconds - self._took[name])
            if reason:
                self._left[name] = reason
            self.write([*budgets])
            print(f"{name}: {self._took[name]} s {reason}", flush=True)
            if name == "machine":
                self._check(reason)

    def write(self, names: Sequence[str]) -> None:
        """Write the figures of all steps so far."""
        found = {name: _loaded(self.work / "steps" / f"{name}.json") for name in names}
        steps = {name: one for name, one in found.items() if one}
        missing = {name: self._left.get(name, "not yet begun") for name in names if name not in steps}
        cut = {name: reason for name, reason in self._left.items() if name in steps}
        self.report |= {"rehearsal": self.rehearse, "seconds": self._took, "steps": steps}
        logs = {name: _tail(self.work / "steps" / f"{name}.log") for name in self._left}
        self.report |= {"left_out": missing, "cut_off": cut, "logs": logs}
        _replace(self.out / "gpu.json", json.dumps(self.report, indent=1) + "\n")
        tables = [self.work / "steps" / f"{name}.md" for name in names]
        lines = [_described(self.report), "", *_notes(missing, cut, steps), ""]
        _replace(self.out / "gpu.md", "\n".join([*lines, *(table.read_text() for table in tables if table.exists())]))

    def _check(self, reason: str) -> None:
        """Raise RunError if MLX does not work, or has no GPU for models of a real size."""
        if reason:
            raise RunError(f"mlx does not work in this environment: {reason}")
        device = (_loaded(self.work / "steps" / "machine.json") or {}).get("device", "")
        if device == "cpu" and not self.rehearse:
            raise RunError("mlx computes on the CPU, which takes hours; look for the GPU, or take --rehearse")

    def _step(self, name: str, limit: float) -> str:
        """Run a step, and return why it did not come to its end; empty if it did."""
        command = [str(self.python), "-m", "benchmarks.gpu.steps", name, "--out", str(self.work / "steps")]
        command += ["--models", str(self.work / "models"), *(["--rehearse"] if self.rehearse else [])]
        log = self.work / "steps" / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=self.root, env=self.environ, stdout=file, stderr=file, start_new_session=True
            )
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                _end(process)
                return f"ended after its {limit:.0f} s"
            except BaseException:
                _end(process)
                raise
        if process.returncode:
            return f"failed with status {process.returncode}: {_last_line(log)}"
        return ""


def main() -> int:
    """Run the command line."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, it ends the step that runs
    began = time.monotonic()
    out = arguments.out.resolve()
    work = (arguments.work or out.with_name(f"{out.name}-work")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work / "steps", ignore_errors=True)  # figures of a run before are none of this one
    (work / "steps").mkdir(parents=True)
    try:
        if arguments.checkout:
            python, root, about = Path(sys.executable), Path(__file__).resolve().parents[2], {"commit": "a checkout"}
        else:
            about = pieces.unpack(arguments.pieces or Path(sys.argv[0]).resolve().parent, work / "package")
            python, root = environment(work / "package" / "wheels", work / "venv"), work / "package" / "project"
        environ = variables(root, work, _site_folders())
        print(f"unpacked and installed: {time.monotonic() - began:.1f} s", flush=True)
        run = Run(python, root, out, work, environ, began + arguments.seconds, arguments.rehearse, {"package": about})
        run.steps(_budgets(arguments.step, arguments.seconds))
    except (RunError, pieces.PieceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print((out / "gpu.md").read_text())
    return 0 if not run.report["left_out"] and not run.report["cut_off"] else 2


def _budgets(chosen: Sequence[str] | None, seconds: float) -> dict[str, float]:
    """Return the steps that are wanted, each with its share of the time of a run."""
    wanted = {"machine", *(chosen or STEPS)}
    return {name: share * seconds / SECONDS for name, share in STEPS.items() if name in wanted}


def environment(wheels: Path, venv: Path) -> Path:
    """
    Install wheels into a new environment on top of this Python's packages, and return its interpreter.

    Raises:
        RunError: If that fails.
    """
    # `--system-site-packages` would give the packages of the base Python, not those of an environment that runs this.
    _called([sys.executable, "-m", "venv", "--clear", "--without-pip", str(venv)])
    python = venv / "bin" / "python"
    folder = sysconfig.get_path("purelib", "venv", {"base": str(venv), "platbase": str(venv)})
    (Path(folder) / "beneath.pth").write_text("\n".join(map(str, _site_folders())) + "\n")
    install = ["-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet", "--no-index"]
    install += ["--no-deps", "--no-compile", "--ignore-installed"]
    _called([str(python), *install, *map(str, sorted(wheels.glob("*.whl")))])
    return python


def variables(root: Path, work: Path, sites: Sequence[Path]) -> dict[str, str]:
    """Return the environment variables of the steps: the project's folders, and CUDA's libraries and headers."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MLX_SIDECAR_")}
    libraries = [str(folder) for site in sites for pattern in _CUDA_FOLDERS for folder in sorted(site.glob(pattern))]
    if _DRIVER_FOLDER.exists():
        libraries.append(str(_DRIVER_FOLDER))
    paths = {"LD_LIBRARY_PATH": libraries, "PYTHONPATH": [str(root), str(root / "clients" / "python")]}
    for name, folders in paths.items():
        if joined := os.pathsep.join([*folders, *filter(None, [environ.get(name)])]):
            environ[name] = joined
    headers = [found for site in sites for found in sorted(site.glob("nvidia/*/include/cuda_runtime.h"))]
    if headers and not Path(environ.get("CUDA_HOME", "/nowhere"), "include", "cuda_runtime.h").exists():
        environ["CUDA_HOME"] = str(headers[0].parents[1])
    # Compiled kernels stay for the next step.
    return {**environ, "MLX_PTX_CACHE_DIR": str(work / "kernels"), "PYTHONUNBUFFERED": "1"}


def _site_folders() -> list[Path]:
    """Return the folders that this Python's packages lie in."""
    return [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]


def _called(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RunError(f"{' '.join(command[:4])} ... failed: {said[-1] if said else done.returncode}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a step and its servers."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _loaded(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _replace(path: Path, text: str) -> None:
    """Write a file; a reader sees the old one or the new one."""
    unfinished = path.with_suffix(".new")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def _tail(log: Path) -> str:
    """Return the end of a log, which tells why a step failed; empty if it did not begin."""
    return log.read_text(errors="replace")[-_LOG_CHARACTERS:] if log.exists() else ""


def _last_line(log: Path) -> str:
    lines = _tail(log).strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def _described(report: dict[str, object]) -> str:
    steps = report["steps"]
    machine = steps.get("machine") if isinstance(steps, dict) else None
    if not machine:
        return "the machine is not known"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    package, rehearsal = report["package"], "**A rehearsal: its figures say nothing.** " if report["rehearsal"] else ""
    commit = package.get("commit") if isinstance(package, dict) else None
    place = f"{machine['device']}; {machine['machine']}; Python {machine['python']}; {versions}"
    return f"{rehearsal}{place}; commit {commit}"


def _notes(missing: dict[str, str], cut: dict[str, str], steps: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"* left out: {name}: {reason}" for name, reason in missing.items()]
    lines += [f"* cut off: {name}: {reason}" for name, reason in cut.items()]
    for name, one in steps.items():
        lines += [f"* {name}: {text}" for text in one.get("left_out", ())]
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.pyz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")
    parser.add_argument("--pieces", type=Path, help="folder of the pieces; by default that of run.pyz")
    parser.add_argument("--work", type=Path, help="folder of environment and models; by default OUT-work")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time of the whole run")
    parser.add_argument("--step", action="append", default=None, choices=STEPS, help="only these; may be repeated")
    parser.add_argument("--checkout", action="store_true", help="no pieces: this Python and this checkout")
    parser.add_argument("--rehearse", action="store_true", help="tiny models and lengths")
    return parser


if __name__ == "__main__":
    sys.exit(main())
