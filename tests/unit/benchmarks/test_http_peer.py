"""How the benchmarks start other servers."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.http_peer import StartsVllmMlx

HOARDER = f"""#!{sys.executable}
import http.server, pathlib, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

(pathlib.Path.home() / "prefixes").write_text("gigabytes")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[4])), Handler).serve_forever()
"""
"""A server with vllm-mlx's command line that keeps a file in its home directory."""


def test_peer_leaves_nothing_in_the_home_directory(tmp_path: Path) -> None:
    """vllm-mlx keeps prefixes there: a run left 28 GB. Its home is a folder that goes with the run."""
    program = tmp_path / "venv" / "bin" / "vllm-mlx"
    program.parent.mkdir(parents=True)
    program.write_text(HOARDER)
    program.chmod(0o755)
    peer = StartsVllmMlx(tmp_path / "venv")(tmp_path / "run", [Path("model")])
    peer.close()
    assert (tmp_path / "run" / "prefixes").exists()
