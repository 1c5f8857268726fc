"""The door's process imports what it needs: no TLS, no command line, and of the APIs what was asked for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from daemon.http.kept_out import StandIn

PROGRAM = """
import json, sys
from daemon.http.kept_out import keep_out
keep_out()
import daemon.http.process
started = list(sys.modules)
from daemon.http.api import served
apis = {api.name: api.load() for api in served()}
import hashlib, ssl
print(json.dumps([started, sorted(apis), hashlib.sha256(b"").hexdigest(), ssl.create_default_context.__name__]))
"""


@pytest.fixture(name="seen", scope="module")
def _seen() -> tuple[set[str], list[str], str, str]:
    """Return the modules of a door that starts, the names of its APIs, a digest, and a name of the real `ssl`."""
    shown = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, check=True)
    started, *others = json.loads(shown.stdout)
    return set(started), *others


def test_door_starts_without_what_it_never_uses(seen: tuple[set[str], list[str], str, str]) -> None:
    """Each would take memory and time at every start. The number grows if a library begins to import another."""
    started = seen[0]
    assert not started & {"_ssl", "click", "argparse", "gettext", "multiprocessing", "mlx", "numpy"}
    assert len(started) < 540


def test_apis_are_imported_when_they_are_asked_for(seen: tuple[set[str], list[str], str, str]) -> None:
    """A tool speaks one of them, or two."""
    assert not [name for name in seen[0] if name.startswith("daemon.http.") and name.endswith(("types", "routes"))]
    assert seen[1] == ["Anthropic", "Ollama", "OpenAI", "OpenAI responses"]


def test_what_was_kept_out_still_works(seen: tuple[set[str], list[str], str, str]) -> None:
    """Digests are Python's own, and `ssl` is the real one as soon as something asks for more than its numbers."""
    assert seen[2] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert seen[3] == "create_default_context"


def test_stand_in_gives_way_to_the_real_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that every module is asked for do not count."""
    module = StandIn("colorsys", ONE_THIRD=3)
    monkeypatch.setitem(sys.modules, "colorsys", module)
    assert module.ONE_THIRD == 3
    assert not hasattr(module, "__file__")
    assert sys.modules["colorsys"] is module
    assert module.rgb_to_hsv(0, 0, 0) == (0.0, 0.0, 0)
    assert sys.modules["colorsys"] is not module
