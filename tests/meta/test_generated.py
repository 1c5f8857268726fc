"""Generated code is what its source says, and versions agree."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import daemon
import mlx_sidecar._version
from tools.generate_stubs import PUBLIC, ROOT, generate


def test_committed_stubs_match_the_protos(tmp_path: Path) -> None:
    """Run `make gen` after a change of a proto."""
    client, private = tmp_path / "client", tmp_path / "daemon"
    client.mkdir()
    private.mkdir()
    generate(client, private)
    fresh = {path.relative_to(client): path for path in client.rglob("*.p*")}
    assert Path("mlx_sidecar/v1/sidecar.proto") in fresh
    for name, path in fresh.items():
        assert (ROOT / "clients" / "python" / name).read_text() == path.read_text(), f"{name} is stale"
    for path in private.rglob("*.py*"):
        assert (ROOT / path.relative_to(private)).read_text() == path.read_text(), f"{path.name} is stale"


@pytest.mark.parametrize(
    ("before", "after", "broken"),
    [
        ("", "", ""),
        ("  rpc Stats(", "  rpc State(", 'RPC "Stats"'),
        ("string model = 1;", "string model = 99;", '"model"'),
    ],
    ids=["as it is", "RPC renamed", "field renumbered"],
)
def test_change_that_breaks_old_clients_is_found(tmp_path: Path, before: str, after: str, broken: str) -> None:
    """By `make lint`, against the API of the last release."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    proto = tmp_path / "protos" / PUBLIC
    proto.write_text(proto.read_text().replace(before, after, 1))
    buf = Path(sys.executable).with_name("buf")
    done = subprocess.run(
        [buf, "breaking", "--against", "protos/released.binpb"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode == 0) == (broken == ""), done.stdout + done.stderr
    assert broken in done.stdout


def test_daemon_and_client_share_one_version() -> None:
    """They are released together."""
    assert daemon.__version__ is mlx_sidecar._version.__version__
    written = [path for path in (ROOT / "daemon").rglob("*.py") if f'"{daemon.__version__}"' in path.read_text()]
    assert not written
