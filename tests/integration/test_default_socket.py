"""What the pages show finds the daemon where it listens by itself: on Linux that is the runtime directory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_sidecar._address import default_socket_path
from tests.support.daemons import RunningDaemon

ROOT = Path(__file__).resolve().parents[2]
NODE = ROOT / "tests" / "node"
README = (ROOT / "README.md").read_text()
GUIDES = ROOT / "docs" / "clients"

GRPCURL = """#!{python}
# Stands in for grpcurl, of which it knows the one line that the pages show: services, by reflection.
import argparse, grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

parser = argparse.ArgumentParser()
parser.add_argument("-plaintext", action="store_true", required=True)
parser.add_argument("-unix", action="store_true", required=True)
parser.add_argument("address")
parser.add_argument("symbol", choices=["list"])
address = parser.parse_args().address
with grpc.insecure_channel("unix:" + address) as channel:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=60)
print(*(one.name for one in answer.list_services_response.service), sep="\\n")
"""


@pytest.fixture(name="found", scope="module")
def _found() -> Iterator[dict[str, str]]:
    """Return an environment that tells programs nothing of the socket, with a daemon at its default place."""
    folder = Path(tempfile.mkdtemp(prefix="mlxs-", dir="/tmp"))
    runtime = folder / "r"
    runtime.mkdir(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLX_SIDECAR_SOCKET", raising=False)
        patch.setenv("HOME", str(folder))
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        socket = default_socket_path()
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MLX_SIDECAR_")}
    assert not socket.is_relative_to(folder / ".mlx-sidecar") or sys.platform != "linux"
    programs = folder / "bin"
    programs.mkdir()
    (programs / "grpcurl").write_text(GRPCURL.format(python=sys.executable))
    (programs / "grpcurl").chmod(0o755)
    daemon = RunningDaemon.start(folder, socket=str(socket))
    daemon.client().close()
    yield environ | {"PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    assert daemon.stop() == 0
    shutil.rmtree(folder)


@pytest.fixture(name="node", scope="module")
def _node(found: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with Node's packages, and the protos where the README has them."""
    if "CI" not in os.environ and not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node or npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(NODE / name, folder)
    run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], dict(os.environ), folder)
    (folder / "protos").symlink_to(ROOT / "protos")
    return folder


def run(command: list[str] | str, environ: dict[str, str], folder: Path) -> str:
    """Run a command, which must succeed, and return what it prints."""
    done = subprocess.run(
        command, shell=isinstance(command, str), cwd=folder, env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def program(page: Path, fence: str) -> str:
    """Return the one program of a page."""
    (one,) = re.findall(rf"```{fence}\n(.*?)```", page.read_text(), re.DOTALL)
    return str(one)


def test_readme_node_snippet_finds_the_default_socket(found: dict[str, str], node: Path) -> None:
    """The README's snippet runs unchanged and ends by itself."""
    (node / "snippet.mjs").write_text(program(ROOT / "README.md", "js"))
    assert run(["node", "snippet.mjs"], found, node).strip()


def test_the_node_guide_finds_the_daemon(found: dict[str, str], node: Path) -> None:
    """The guide also works if XDG_RUNTIME_DIR is set but empty."""
    (node / "ask.mjs").write_text(program(GUIDES / "node.md", "js"))
    for environ in (found, found | {"MLX_SIDECAR_SOCKET": ""}):
        answer = run(["node", "ask.mjs", str(ROOT / "protos"), "embedded", "Hello."], environ, node)
        assert "prompt tokens were cached" in answer


def test_the_python_guide_finds_the_daemon(found: dict[str, str], tmp_path: Path) -> None:
    """The Python client knows the rule for the default socket."""
    (tmp_path / "ask.py").write_text(program(GUIDES / "python.md", "python"))
    answer = run([sys.executable, "ask.py", "embedded", "Hello."], found, tmp_path)
    assert "prompt tokens were cached" in answer


def test_grpcurl_example_lists_the_services(found: dict[str, str], tmp_path: Path) -> None:
    """With a stand-in that takes no other arguments; each page that shows it shows the same."""
    lines = {
        line
        for page in (README, *(page.read_text() for page in (ROOT / "docs").rglob("*.md")))
        for line in re.findall(r"`(grpcurl [^`]+)`", page)
    }
    assert lines
    for line in lines:
        assert "mlx_sidecar.v1.SidecarService" in run(line, found, tmp_path).splitlines()


def test_no_page_hard_codes_the_socket_path() -> None:
    """Each program of a page asks `config socket` or the client, or knows all three rules of the default."""
    for page in [ROOT / "README.md", ROOT / "clients" / "python" / "README.md", *sorted(GUIDES.glob("*.md"))]:
        for fence, code in re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL):
            if "sidecar.sock" in code:
                assert "MLX_SIDECAR_SOCKET" in code, f"{page.name}: {fence}"
                assert "XDG_RUNTIME_DIR" in code, f"{page.name}: {fence}"
                assert ".mlx-sidecar" in code, f"{page.name}: {fence}"
        for line in re.findall(r"`[^`\n]*-unix [^`\n]*`", page.read_text()):
            assert '"$(mlx-sidecar config socket)"' in line
    for page in (ROOT / "docs").rglob("*.md"):
        assert "~/.mlx-sidecar/http.sock" not in page.read_text(), f"{page.name}: it lies beside the daemon's socket"


def test_go_guide_compiles_and_finds_the_daemon(found: dict[str, str], tmp_path: Path) -> None:
    """Where Go is, with a module cache or a proxy that has grpc-go; `protoc` is the one that made our stubs."""
    tools = ("go", "protoc-gen-go", "protoc-gen-go-grpc")
    if not all(shutil.which(tool) for tool in tools):
        pytest.skip(f"not all of {', '.join(tools)} are installed")
    (tmp_path / "ask.go").write_text(program(GUIDES / "go.md", "go"))
    (commands,) = re.findall(r"```sh\n(.*?)```", (GUIDES / "go.md").read_text(), re.DOTALL)
    generate = commands[commands.index("M=") :].replace("path/to/mlx-sidecar", str(ROOT))
    generate = generate.replace("protoc -I", f"{sys.executable} -m grpc_tools.protoc -I")
    environ = found | {"GOFLAGS": "-mod=mod", "HOME": os.environ["HOME"]}
    run("go mod init example.com/ask", environ, tmp_path)
    run(generate, environ, tmp_path)
    run("go mod tidy && go build -o ask .", environ, tmp_path)
    assert "prompt tokens were cached" in run(["./ask", "embedded", "Hello."], found, tmp_path)
