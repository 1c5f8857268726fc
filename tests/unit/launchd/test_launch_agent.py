"""What launchd is told: the plist, and what is kept of the environment."""

from __future__ import annotations

import os
import plistlib
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.launchd.agent import DAEMON, Agent, as_text, of_this_environment, plist_path, read
from daemon.launchd.errors import AgentError
from daemon.shared.config_sources import load_config

HOME = Path("/Users/ada")
ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "launchd" / f"{DAEMON.label}.plist"


def agent(environ: dict[str, str], flags: dict[str, object] | None = None, *, background: bool = False) -> Agent:
    return of_this_environment(load_config(flags or {}, environ, HOME), environ, HOME, background=background)


def test_sample_plist_matches_the_installed_plist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample shows users the plist before they run the command."""
    monkeypatch.setattr(sys, "executable", "/Users/ada/.local/share/uv/tools/mlx-sidecar/bin/python")
    assert plistlib.loads(SAMPLE.read_bytes()) == plistlib.loads(agent({"MLX_SIDECAR_MAX_MODELS": "2"}).render())
    assert SAMPLE.read_text().count("<!--") >= 10, "each key has its reason"


def test_rendered_plist_is_read_back(tmp_path: Path) -> None:
    """Values with characters that are special in XML round-trip."""
    made = Agent(("/a b/python", "-m", "daemon"), {"MLX_SIDECAR_SOCKET": "/tmp/<&>\"'é.sock"}, Path("/l/x.log"), True)
    file = tmp_path / "a.plist"
    file.write_bytes(made.render())
    assert read(file) == made
    assert read(tmp_path / "missing") is None


def test_plist_keeps_flags_and_variables_only() -> None:
    """Variables of the Hub and of OpenTelemetry are kept, tokens never."""
    environ = {"MLX_SIDECAR_MAX_QUEUE": "5", "HF_HOME": "/Volumes/models", "HF_TOKEN": "hf_secret", "LANG": "C"}
    environ |= {"OTEL_SERVICE_NAME": "mine", "OTEL_EXPORTER_OTLP_HEADERS": "api-key=otel_secret"}
    made = agent(environ, {"model_ttl": "10m", "evict_on_memory_pressure": False, "model_roots": ("/a", "/b")})
    assert made.environment == {
        "MLX_SIDECAR_MAX_QUEUE": "5",
        "MLX_SIDECAR_MODEL_TTL": "600.0",
        "MLX_SIDECAR_EVICT_ON_MEMORY_PRESSURE": "false",
        "MLX_SIDECAR_MODEL_ROOTS": "/a:/b",
        "MLX_SIDECAR_LOG_FILE": "/Users/ada/Library/Logs/mlx-sidecar/daemon.log",
        "HF_HOME": "/Volumes/models",
        "OTEL_SERVICE_NAME": "mine",
    }
    assert "_secret" not in made.render().decode()


def test_plist_keeps_a_custom_log_file() -> None:
    """An empty log file, which turns the log file off, is kept as well."""
    assert agent({"MLX_SIDECAR_LOG_FILE": "/x.log"}).environment["MLX_SIDECAR_LOG_FILE"] == "/x.log"
    assert agent({"MLX_SIDECAR_LOG_FILE": ""}).environment["MLX_SIDECAR_LOG_FILE"] == ""


def test_drain_longer_than_launchd_allows_is_refused() -> None:
    """The error names the setting and both durations."""
    with pytest.raises(AgentError, match=r"drain_timeout from MLX_SIDECAR_DRAIN_TIMEOUT is 51 s, .* at most 50\."):
        agent({"MLX_SIDECAR_DRAIN_TIMEOUT": "51"})
    assert agent({"MLX_SIDECAR_DRAIN_TIMEOUT": "50"})


def test_plist_interpreter_is_absolute_and_unresolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The link in a virtual environment is what makes it that environment's interpreter."""
    monkeypatch.setattr(sys, "executable", "/Users/ada/tools/../venv/bin/python")
    assert agent({}).program == ("/Users/ada/venv/bin/python", "-P", "-m", "daemon", "serve")


def test_background_plist_has_its_session_type() -> None:
    """A background agent has only the background session type; with both it would run twice."""
    assert agent({}, background=True).properties()["LimitLoadToSessionType"] == "Background"
    assert "LimitLoadToSessionType" not in agent({}).properties()
    assert plist_path(HOME) == HOME / "Library/LaunchAgents/com.mlx-sidecar.daemon.plist"


@given(
    st.fixed_dictionaries(
        {
            "max_models": st.integers(1, 2**31 - 1),
            "model_ttl": st.floats(0, 1e9),
            "evict_on_memory_pressure": st.booleans(),
            "model_roots": st.lists(st.sampled_from(["/a", "/b c", "/ü"]), max_size=3).map(tuple),
            "log_file": st.sampled_from(["", "/tmp/x.log"]),
            "log_level": st.sampled_from(["debug", "error"]),
        }
    )
)
def test_plist_settings_round_trip(values: dict[str, object]) -> None:
    """A float, a list or an empty path goes through text and comes back."""
    first = load_config(values, {}, HOME).config
    environ = {f"MLX_SIDECAR_{key.upper()}": as_text(getattr(first, key)) for key in values}
    second = load_config({}, environ, HOME).config
    assert {key: getattr(first, key) for key in values} == {key: getattr(second, key) for key in values}


@pytest.mark.parametrize("content", [b"", b"text", plistlib.dumps({"Label": DAEMON.label}), plistlib.dumps([1])])
def test_foreign_plist_is_named(tmp_path: Path, content: bytes) -> None:
    """A foreign or damaged plist is named, whatever is wrong with it."""
    file = tmp_path / "a.plist"
    file.write_bytes(content)
    with pytest.raises(AgentError, match=str(file)):
        read(file)


def test_plist_path_separator_is_a_colon() -> None:
    """The stored `model_roots` are separated by `os.pathsep`."""
    assert os.pathsep == ":"
