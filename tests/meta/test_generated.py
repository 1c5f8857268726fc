"""Generated code is what its source says, and versions agree."""

from __future__ import annotations

from pathlib import Path

import daemon
import mlx_sidecar._version
from tools.generate_stubs import ROOT, generate


def test_committed_stubs_match_the_protos(tmp_path: Path) -> None:
    """Run `make gen` after a change of a proto."""
    client, private = tmp_path / "client", tmp_path / "daemon"
    client.mkdir()
    private.mkdir()
    generate(client, private)
    fresh = {path.relative_to(client): path for path in client.rglob("*.py*")}
    assert fresh
    for name, path in fresh.items():
        assert (ROOT / "clients" / "python" / name).read_text() == path.read_text(), f"{name} is stale"
    for path in private.rglob("*.py*"):
        assert (ROOT / path.relative_to(private)).read_text() == path.read_text(), f"{path.name} is stale"


def test_daemon_and_client_share_one_version() -> None:
    """They are released together."""
    assert daemon.__version__ is mlx_sidecar._version.__version__
    written = [path for path in (ROOT / "daemon").rglob("*.py") if f'"{daemon.__version__}"' in path.read_text()]
    assert not written
