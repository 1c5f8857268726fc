"""A GPU run that anyone can repeat: its package travels in pieces, and the run says what it did not reach."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.gpu import pack, pieces, run

PIECE = 1 << 12
HERE = str(Path(__file__).relative_to(pack.ROOT))
PACKED = (HERE, "benchmarks/gpu/pack.py", "benchmarks/gpu/run.py", "pyproject.toml")
"""Files that stand for the whole checkout, which may have come here without git."""
LIBRARY = "mlx_cuda_13-1.0-py3-none-manylinux_2_35_x86_64.whl"
WANTED = ("mlx-cuda-13==1.0", "traveller==2.0")


def wheel(folder: Path, file: str, **modules: str) -> None:
    """Write a wheel with modules into a folder."""
    name, number, *_ = file.split("-")
    tag = file.removeprefix(f"{name}-{number}-").removesuffix(".whl")
    about = f"{name}-{number}.dist-info"
    with zipfile.ZipFile(folder / file, "w") as archive:
        for module, code in modules.items():
            archive.writestr(f"{module}.py", code)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        archive.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{about}/RECORD", "")


@pytest.fixture(name="index", scope="module")
def _index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two wheels, in place of a package index."""
    folder = tmp_path_factory.mktemp("index")
    wheel(folder, LIBRARY, mlx_cuda_13="")
    wheel(folder, "traveller-2.0-py3-none-any.whl", traveller="arrived = True")
    return folder


@pytest.fixture(name="packed", scope="module")
def _packed(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of pieces of two wheels and some files of this checkout."""
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("packed")
    with mock.patch.object(pack, "tracked", return_value=PACKED):
        pack.pack(folder, WANTED, PIECE, index)
    return folder


@pytest.fixture(name="moved")
def _moved(packed: Path, tmp_path: Path) -> Path:
    """Return another folder with all that has to be copied."""
    folder = tmp_path / "moved"
    folder.mkdir()
    for path in packed.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_package_is_joined_in_another_folder(moved: Path, tmp_path: Path) -> None:
    """It has the wheels and the checkout, and none of its pieces is larger than was asked for."""
    assert max(piece.stat().st_size for piece in moved.glob("piece-*")) <= PIECE
    assert len([*moved.glob("piece-*")]) > 1
    told = pieces.unpack(moved, tmp_path / "there")
    assert told["wheels"].keys() == {LIBRARY, "traveller-2.0-py3-none-any.whl"}
    assert {path.name for path in (tmp_path / "there" / "wheels").iterdir()} == told["wheels"].keys()
    assert (tmp_path / "there" / "project" / HERE).read_bytes() == Path(__file__).read_bytes()


def test_files_that_git_tracks_are_packed(tmp_path: Path) -> None:
    """As they are now; without git the error says what to do."""
    for name in ("added", "removed", "other"):
        (tmp_path / name).touch()
    for command in (["init", "--quiet"], ["add", "added", "removed"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "removed").unlink()
    assert pack.tracked(tmp_path) == ["added"]
    with pytest.raises(pack.PackError, match="pack from a checkout"):
        pack.tracked(tmp_path / "none")


def test_package_is_unpacked_once(moved: Path, tmp_path: Path) -> None:
    """A second run takes what the first one unpacked, also without the pieces."""
    pieces.unpack(moved, tmp_path / "there")
    for piece in moved.glob("piece-*"):
        piece.unlink()
    assert pieces.unpack(moved, tmp_path / "there")["wheels"]


def test_damaged_and_missing_pieces_are_named(moved: Path, tmp_path: Path) -> None:
    """All of them at once, before anything is unpacked."""
    damaged = bytearray((moved / "piece-00").read_bytes())
    damaged[100] ^= 1
    (moved / "piece-00").write_bytes(damaged)
    (moved / "piece-01").unlink()
    (moved / "piece-02").write_bytes(b"cut")
    with pytest.raises(pieces.PieceError) as failure:
        pieces.unpack(moved, tmp_path / "there")
    assert "piece-00 is damaged" in str(failure.value)
    assert "piece-01 is missing" in str(failure.value)
    assert "piece-02 has 3 bytes instead of" in str(failure.value)
    assert not (tmp_path / "there").exists()


def test_runner_needs_nothing_but_its_pieces(moved: Path, tmp_path: Path) -> None:
    """The one file that travels with them runs alone, and names the piece that it misses."""
    (moved / "piece-01").unlink()
    command = [sys.executable, "-I", str(moved / pack.RUNNER), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "error: piece-01 is missing; copy what is named again" in done.stderr


def test_manifest_must_be_there_and_whole(tmp_path: Path) -> None:
    """Otherwise the error says what to copy."""
    with pytest.raises(pieces.PieceError, match="is missing; copy it with the pieces"):
        pieces.read(tmp_path)
    (tmp_path / pieces.MANIFEST).write_text('{"bytes": 1')
    with pytest.raises(pieces.PieceError, match="is damaged"):
        pieces.read(tmp_path)


def test_wheel_that_is_whole_is_not_fetched_again(packed: Path, index: Path, tmp_path: Path) -> None:
    """A damaged one is; so a packer that was interrupted goes on."""
    folder = packed / "wheels"
    before = (folder / LIBRARY).read_bytes()
    assert pack.fetched(WANTED[0], folder, tmp_path).read_bytes() == before
    (folder / LIBRARY).write_bytes(before[:-9])
    assert pack.fetched(WANTED[0], folder, index).read_bytes() == before


def test_wheel_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    """With the machine that it is for."""
    pytest.importorskip("pip")
    with pytest.raises(pack.PackError, match=r"no wheel of absent==1\.0 for Python 3\.12 on Linux x86_64: ERROR"):
        pack.fetched("absent==1.0", tmp_path, tmp_path)


def test_package_brings_what_the_machine_lacks() -> None:
    """MLX's backend is CUDA's, of the version of MLX itself; no extra of the project is brought."""
    brought = dict(requirement.split("==") for requirement in pack.requirements())
    assert brought["mlx-cuda-13"] == brought["mlx"]
    assert {"mlx-lm", "structlog", "llguidance", "prompt-toolkit", "grpcio-status", "uvicorn"} <= brought.keys()
    assert not brought.keys() & {"mlx-cpu", "mlx-metal", "transformers", "prometheus-client", "opentelemetry-sdk"}


def test_environment_lies_on_top_of_this_one(index: Path, tmp_path: Path) -> None:
    """It has the wheels that were brought, and beneath them the packages of the Python that made it."""
    pytest.importorskip("pip")
    python = run.environment(index, tmp_path / "venv")
    code = "import numpy, traveller, sys; print(traveller.arrived, sys.prefix in traveller.__file__)"
    shown = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["True", "True"]


def test_cuda_libraries_are_on_the_path_of_the_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of NVIDIA's packages, before what was there; and the headers that kernels are compiled with."""
    for part in ("cu13/lib", "cudnn/lib", "cu13/include"):
        (tmp_path / "nvidia" / part).mkdir(parents=True)
    (tmp_path / "nvidia/cu13/include/cuda_runtime.h").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    environ = run.variables(tmp_path, tmp_path, [tmp_path])
    folders = environ["LD_LIBRARY_PATH"].split(":")
    assert folders[:2] == [str(tmp_path / "nvidia/cu13/lib"), str(tmp_path / "nvidia/cudnn/lib")]
    assert folders[-1] == "/before"
    assert environ["CUDA_HOME"] == str(tmp_path / "nvidia/cu13")


def begun(tmp_path: Path, code: str, seconds: float) -> run.Run:
    """Return a run whose steps are a shell script, and whose first figures are there."""
    script = tmp_path / "step"
    script.write_text(f"#!/bin/sh\n{code}\n")
    script.chmod(0o700)
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "serving.json").write_text('{"results": [{"title": "half of it"}], "left_out": ["a peer"]}')
    environ = {"PATH": "/usr/bin:/bin"}
    return run.Run(script, tmp_path, tmp_path, tmp_path, environ, time.monotonic() + seconds, report={"package": {}})


def test_step_without_time_is_named(tmp_path: Path) -> None:
    """In the figures and in the table."""
    begun(tmp_path, "exit 0", 0).steps({"guesses": 10})
    assert json.loads((tmp_path / "gpu.json").read_text())["left_out"] == {"guesses": "no time was left"}
    assert "* left out: guesses: no time was left" in (tmp_path / "gpu.md").read_text()


def test_step_that_takes_too_long_keeps_its_figures(tmp_path: Path) -> None:
    """It is ended, and named as cut off."""
    begun(tmp_path, "exec sleep 600", 600).steps({"serving": 0.2})
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["cut_off"] == {"serving": "ended after its 0 s"}
    assert report["steps"]["serving"]["results"][0]["title"] == "half of it"
    assert "* serving: a peer" in (tmp_path / "gpu.md").read_text()


def test_step_that_fails_is_named_with_its_last_words(tmp_path: Path) -> None:
    """The others still run."""
    begun(tmp_path, 'echo "out of memory"; exit 3', 600).steps({"exact-small": 300, "guesses": 200})
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["left_out"] == dict.fromkeys(("exact-small", "guesses"), "failed with status 3: out of memory")
    assert report["logs"]["exact-small"] == "out of memory\n"


def test_run_ends_where_mlx_does_not_work(tmp_path: Path) -> None:
    """The error has what the loader said."""
    with pytest.raises(run.RunError, match="mlx does not work in this environment: failed with status 1: no libcuda"):
        begun(tmp_path, "echo no libcuda; exit 1", 600).steps({"machine": 300, "serving": 200})


def test_models_of_a_real_size_are_not_run_on_a_cpu(tmp_path: Path) -> None:
    """They would take hours; a rehearsal may."""
    script = """echo '{"device": "cpu", "machine": "", "python": "", "versions": {}}' >"$5/machine.json\""""
    with pytest.raises(run.RunError, match="mlx computes on the CPU, which takes hours"):
        begun(tmp_path, script, 600).steps({"machine": 300})


@pytest.mark.slow
def test_whole_run_is_rehearsed_in_a_checkout(tmp_path: Path) -> None:
    """All steps, with tiny models on whatever device this machine has, beside the peer."""
    command = [sys.executable, "-m", "benchmarks.gpu.run", "--checkout", "--rehearse", "--seconds", "3000"]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, capture_output=True)
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["steps"].keys() == run.STEPS.keys()
    assert not report["left_out"]
    results = [result for step in report["steps"].values() for result in step.get("results", ())]
    rows = [row for result in results for row in result["rows"]]
    assert {"mlx-sidecar", "mlx_lm.server"} <= {row["system"] for row in rows}
    exact = [row["values"] for row in rows if "tokens of a cold one" in row["metric"][0]]
    assert len(exact) == 12
    assert "A rehearsal" in (tmp_path / "gpu.md").read_text()
