"""
Packs what a CUDA machine without a network needs, as pieces: `python -m benchmarks.gpu.pack FOLDER [--json]`.

Assumed there: Linux x86_64, Python 3.12 with pip, a driver for CUDA 13, NVIDIA's CUDA 13 libraries as Python packages,
and ASSUMED. Everything else that `daemon/constraints.txt` names is brought in the versions that it names, with MLX's
CUDA backend in place of its CPU backend, and the files that git tracks, as they are. FOLDER then has the pieces, their
manifest and run.pyz.

Wheels stay in FOLDER/wheels: a packer that was interrupted goes on, and one that runs again fetches nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import pieces

ROOT = Path(__file__).resolve().parents[2]
PIECE_BYTES = 60_000_000
ASSUMED = frozenset((
    "numpy", "transformers", "tokenizers", "safetensors", "click", "rich", "markdown-it-py", "mdurl", "pygments",
    # What transformers needs; its release there goes with these there.
    "huggingface-hub", "hf-xet", "filelock", "fsspec", "packaging", "pyyaml", "regex", "tqdm", "typer", "shellingham",
    "annotated-doc", "httpx2", "httpcore2", "truststore",
))  # fmt: skip
"""Packages that are taken from the machine. gRPC and protobuf are brought: generated code refuses older releases."""
_OTHER_BACKENDS = frozenset(("mlx-cpu", "mlx-metal"))
_EXTRAS = re.compile(r"opentelemetry-|prometheus-client$")
_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (35, 34, 31, 28, 27, 26, 24, 17, 12, 5)),
    "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64",
)  # fmt: skip
_MOST_SHOWN = 300
RUNNER = "run.pyz"
_RUNNER_FILES = ("benchmarks/__init__.py", *(f"benchmarks/gpu/{name}.py" for name in ("__init__", "pieces", "run")))


class PackError(Exception):
    """Why nothing was packed, as one line, with the way out of it."""


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="gets the pieces")
    parser.add_argument("--index", type=Path, help="a folder of wheels, in place of the package index")
    parser.add_argument("--piece-bytes", type=int, default=PIECE_BYTES, help="size of the largest piece")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    arguments = parser.parse_args()
    if arguments.piece_bytes < 1:
        parser.error(f"--piece-bytes is {arguments.piece_bytes}; it must be at least 1")
    try:
        manifest = pack(arguments.folder, requirements(), arguments.piece_bytes, arguments.index)
    except PackError as error:
        print(json.dumps({"error": str(error)}) if arguments.json else f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(manifest, indent=1))
        return 0
    print(f"{len(manifest['pieces'])} pieces of a package of {manifest['bytes'] / 1e6:.0f} MB in {arguments.folder}")
    print(f"Copy them, {pieces.MANIFEST} and {RUNNER} to the machine; there: python3 {RUNNER} --out results")
    return 0


def requirements(constraints: Path = ROOT / "daemon" / "constraints.txt") -> list[str]:
    """Return what is brought, as NAME==VERSION."""
    lines = [line.strip() for line in constraints.read_text().splitlines() if re.match(r"[a-z]", line)]
    versions = dict(line.split("==") for line in lines)
    left = ASSUMED | _OTHER_BACKENDS
    brought = {name: number for name, number in versions.items() if name not in left and not _EXTRAS.match(name)}
    brought["mlx-cuda-13"] = versions["mlx"]
    return [f"{name}=={number}" for name, number in sorted(brought.items())]


def pack(folder: Path, wanted: Sequence[str], most_bytes: int, index: Path | None = None) -> dict[str, Any]:
    """
    Write the pieces of a package into a folder, with what joins and runs them.

    Args:
        folder: Gets pieces, manifest and RUNNER.
        wanted: Requirements of the form NAME==VERSION, a wheel for each.
        most_bytes: Size of the largest piece.
        index: A folder of wheels to take in place of the package index.

    Returns:
        The manifest.

    Raises:
        PackError: If a wheel cannot be had, or the checkout not be listed.
    """
    (folder / "wheels").mkdir(parents=True, exist_ok=True)
    wheels = [fetched(requirement, folder / "wheels", index) for requirement in wanted]
    package = folder / "package.tar.gz"
    with tarfile.open(package, "w:gz") as tar:
        for wheel in wheels:
            tar.add(wheel, f"wheels/{wheel.name}", filter=_plain)
        for name in tracked(ROOT):
            tar.add(ROOT / name, f"project/{name}", filter=_plain)
    about = {"commit": _commit(), "wheels": {wheel.name: pieces.digest(wheel) for wheel in wheels}}
    manifest = pieces.cut(package, folder, most_bytes, about)
    package.unlink()
    write_runner(folder / RUNNER)
    return manifest


def write_runner(path: Path) -> None:
    """Write what joins and runs the package, as one file that Python runs."""
    with zipfile.ZipFile(path, "w") as file:
        for name in _RUNNER_FILES:
            file.writestr(name, (ROOT / name).read_text())
        file.writestr("__main__.py", "import sys\n\nfrom benchmarks.gpu.run import main\n\nsys.exit(main())\n")


def fetched(requirement: str, folder: Path, index: Path | None = None) -> Path:
    """
    Return the wheel of a requirement, from the folder if it is there whole, else from the index.

    Raises:
        PackError: If the index has none for the machine.
    """
    if (found := _whole(requirement, folder)) is not None:
        return found
    source = ["--no-index", "--find-links", str(index)] if index else []
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps", *source]
    command += ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", "--dest", str(folder)]
    for platform in _PLATFORMS:
        command += ["--platform", platform]
    done = subprocess.run([*command, requirement], capture_output=True, text=True)
    found = next(_named(requirement, folder), None)
    if done.returncode or found is None:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        why = (said or [f"pip ended with status {done.returncode}"])[-1][:_MOST_SHOWN]
        raise PackError(f"no wheel of {requirement} for Python 3.12 on Linux x86_64: {why}")
    _note(found).write_text(pieces.digest(found))
    return found


def tracked(root: Path) -> list[str]:
    """
    Return the files of a checkout that git tracks; they are packed as they are now, with changes.

    Raises:
        PackError: If git cannot tell.
    """
    command = ["git", "ls-files", "-z"]
    try:
        shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise PackError(f"git does not list the files of {root} ({error}); pack from a checkout") from None
    names: Iterable[str] = filter(None, shown.split("\0"))
    return sorted(name for name in names if (root / name).is_file())


def _whole(requirement: str, folder: Path) -> Path | None:
    """Return the wheel of a requirement; None if there is none. One that is not what was fetched is removed."""
    for path in _named(requirement, folder):
        note = _note(path)
        if note.exists() and note.read_text() == pieces.digest(path):
            return path
        path.unlink()
        note.unlink(missing_ok=True)
    return None


def _named(requirement: str, folder: Path) -> Iterator[Path]:
    name, _, number = requirement.partition("==")
    yield from folder.glob(f"{name.replace('-', '_')}-{number}-*.whl")


def _note(wheel: Path) -> Path:
    return wheel.with_suffix(".sha256")


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out of an entry what would make packages of the same files differ."""
    entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
    return entry


def _commit() -> str:
    """Return the commit of the checkout, and whether it was changed since."""
    shown = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return shown.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
