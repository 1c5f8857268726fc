"""Modules are kept out of the imports of a block, and so out of the daemon's processes for good."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from daemon.shared import kept_out as module
from daemon.shared.kept_out import kept_out, unused_digests
from tests.support.daemons import environment

REFUSED = """
import json, sys
from daemon.cli import main
try:
    main(sys.argv[1:], standalone_mode=False)
except Exception as error:
    assert "group" in str(error), error
import daemon.server.grpc_server
print(json.dumps(sorted(sys.modules)))
"""
"""Imports what a parent does: the command is refused once it has its imports, and the server comes later."""

ENGINE = """
import json, sys
import daemon.engine.__main__
from daemon.engine.import_speed import short_imports
with short_imports():
    import daemon.engine.composition
print(json.dumps(sorted(sys.modules)))
"""

WORKER = """
import json, sys
from daemon.engine.template_worker import _prepare
assert not _prepare()
print(json.dumps(sorted(sys.modules)))
"""


def modules(folder: Path, program: str, *args: str) -> set[str]:
    """Return the modules that a process of the daemon has imported at its start; its files are in a folder."""
    command = [sys.executable, "-P", "-c", program, *args]
    environ = environment(folder)
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=300)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "args", [["serve", "--group-models", "org/name=auto"], ["join", "--group-listen", ""]], ids=["serve", "join"]
)
def test_parent_starts_without_what_it_never_uses(tmp_path: Path, args: list[str]) -> None:
    """TLS and OpenSSL, console tracebacks, and all that is the engine's. The number grows if a library's does."""
    started = modules(tmp_path, REFUSED, *args)
    assert not started & {"ssl", "_ssl", "_hashlib", "rich", "pygments", "attr", "multiprocessing", "mlx", "numpy"}
    assert len(started) < 460, len(started)


def test_engine_starts_without_what_it_never_uses(tmp_path: Path) -> None:
    """No images, no console tracebacks, and no parts of the parent."""
    started = modules(tmp_path, ENGINE)
    assert not started & {"PIL", "rich", "pygments", "attr", "torch", "grpc", "click", "daemon.server"}
    assert len(started) < 1040, len(started)


def test_template_worker_starts_with_few_modules(tmp_path: Path) -> None:
    """There can be three of them, and the first request of a chat waits for one."""
    started = modules(tmp_path, WORKER)
    assert not started & {"PIL", "rich", "mlx", "tokenizers", "mlx_lm", "grpc"}
    assert len(started) < 640, len(started)


def test_modules_are_absent_within_the_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was imported before stays."""
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with kept_out("colorsys", "json"):
        with pytest.raises(ModuleNotFoundError, match="colorsys"):
            import_module("colorsys")
        assert import_module("json") is json

    assert import_module("colorsys").ONE_THIRD == 1 / 3
    assert import_module("json") is json


def test_openssls_digests_stay_where_python_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without both could compute no digest, and would end at its start."""
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    assert unused_digests() == ("_hashlib",)
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "_md5" else name)
    assert unused_digests() == ()
