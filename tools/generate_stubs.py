"""Generate the Python stubs of `protos/` with the pinned grpcio-tools.

The public API lands inside the client package and the private IPC messages inside the daemon, because each proto
package is named like the Python package that it belongs to. The public proto itself is copied beside its stubs, so that
each distribution has it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PUBLIC = "mlx_sidecar/v1/sidecar.proto"
"""The proto of the API, below PROTOS."""
GRPCIO_TOOLS = "1.80.0"
"""Generated code refuses runtimes older than its generator, so the generator stays behind the runtimes."""


def generate(client: Path, daemon: Path) -> None:
    """
    Write the stubs below two import roots.

    Args:
        client: Gets `mlx_sidecar/v1/sidecar_pb2{,_grpc}.py`, `.pyi` and `sidecar.proto`.
        daemon: Gets `daemon/v1/ipc_pb2.py` and `.pyi`.

    Raises:
        RuntimeError: If another grpcio-tools is installed.
        subprocess.CalledProcessError: If protoc refuses a file.
    """
    if (found := version("grpcio-tools")) != GRPCIO_TOOLS:
        raise RuntimeError(f"stubs are generated with grpcio-tools {GRPCIO_TOOLS}, not {found}")
    _protoc(PUBLIC, python_out=client, pyi_out=client, grpc_python_out=client)
    shutil.copyfile(PROTOS / PUBLIC, client / PUBLIC)
    _protoc("daemon/v1/ipc.proto", python_out=daemon, pyi_out=daemon)


def _protoc(source: str, **outputs: Path) -> None:
    flags = [f"--{name}={path}" for name, path in outputs.items()]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *flags, source], check=True)


if __name__ == "__main__":
    generate(client=ROOT / "clients" / "python", daemon=ROOT)
