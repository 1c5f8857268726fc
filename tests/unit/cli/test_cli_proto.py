"""`proto`: the file of the API, from wherever the client's package lies; it compiles from there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.unit.cli.cli_fakes import FakeClient, client_fixture, run_cli  # noqa: F401
from tools.generate_stubs import PROTOS, PUBLIC


def test_proto_prints_the_file_of_the_api(client: FakeClient) -> None:
    """To the byte, and its place."""
    text = (PROTOS / PUBLIC).read_text()
    assert run_cli(client, "proto").stdout == text
    path = Path(run_cli(client, "proto", "--path").stdout.removesuffix("\n"))
    assert path.read_text() == text
    assert path == Path(run_cli(client, "proto", "--root").stdout.removesuffix("\n")) / PUBLIC


def test_proto_compiles_from_its_root(client: FakeClient, tmp_path: Path) -> None:
    """As the help says; with the options that other languages take their names from."""
    root = run_cli(client, "proto", "--root").stdout.strip()
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{root}",
        f"--descriptor_set_out={tmp_path / 'set'}",
        PUBLIC,
    ]
    subprocess.run(command, check=True)
    written = (tmp_path / "set").read_bytes()
    for name in (b"mlx_sidecar/v1/sidecar", b"MlxSidecar.V1", b"mlxsidecar.v1", b"MXS", b"MlxSidecar_V1_"):
        assert name in written


def test_proto_prints_one_place_at_a_time(client: FakeClient) -> None:
    refused = run_cli(client, "proto", "--path", "--root")
    assert refused.exit_code == 2
    assert "give one" in refused.output
