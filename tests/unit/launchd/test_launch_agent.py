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
from daemon.shared.config import KEYS
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
    environ |= {"XDG_CACHE_HOME": "/Users/ada/.caches", "https_proxy": "http://proxy:3128"}
    environ |= {"OTEL_SERVICE_NAME": "mine", "OTEL_EXPORTER_OTLP_HEADERS": "api-key=otel_secret"}
    made = agent(environ, {"model_ttl": "10m", "evict_on_memory_pressure": False, "model_roots": ("/a", "/b")})
    assert made.environment == {
        "MLX_SIDECAR_MAX_QUEUE": "5",
        "MLX_SIDECAR_MODEL_TTL": "600.0",
        "MLX_SIDECAR_EVICT_ON_MEMORY_PRESSURE": "false",
        "MLX_SIDECAR_MODEL_ROOTS": "/a:/b",
        "MLX_SIDECAR_LOG_FILE": "/Users/ada/Library/Logs/mlx-sidecar/daemon.log",
        "HF_HOME": "/Volumes/models",
        "XDG_CACHE_HOME": "/Users/ada/.caches",
        "https_proxy": "http://proxy:3128",
        "OTEL_SERVICE_NAME": "mine",
    }
    assert "_secret" not in made.render().decode()


def test_relative_places_of_the_shell_are_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service works in /, and would look for models there."""
    monkeypatch.chdir(tmp_path)
    environ = {"HF_HUB_CACHE": "models/hub", "HF_HOME": "~/hf", "XDG_CACHE_HOME": "$HOME/c", "SSL_CERT_FILE": "/c.pem"}
    kept = agent({**environ, "NO_PROXY": "localhost", "HF_ENDPOINT": "hub"}).environment
    cache = str(tmp_path / "models" / "hub")
    expected = {**environ, "HF_HUB_CACHE": cache, "NO_PROXY": "localhost", "HF_ENDPOINT": "hub"}
    assert {name: kept[name] for name in expected} == expected


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


@pytest.mark.parametrize("prefix", ["homebrew", "my brew"])
def test_plist_outlives_an_upgrade_of_homebrew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    """It removes the directory of the old version, and launchd would find no program there."""
    old = tmp_path / prefix / "Cellar" / "mlx-sidecar" / "0.1.0"
    (old / "libexec" / "bin").mkdir(parents=True)
    (old / "libexec" / "bin" / "python").touch()
    monkeypatch.setattr(sys, "executable", str(old / "libexec" / "bin" / "python"))
    assert agent({}).program[0] == sys.executable, "without the link of the formula there is no other name"
    (tmp_path / prefix / "opt").mkdir()
    (tmp_path / prefix / "opt" / "mlx-sidecar").symlink_to(old)
    assert agent({}).program[0] == str(tmp_path / prefix / "opt" / "mlx-sidecar" / "libexec" / "bin" / "python")


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


SHELL: dict[str, str] = {
    "socket": "/tmp/a b/s.sock",
    "state_dir": "/Volumes/State, 2",
    "model_cache_mb": "7",
    "max_models": "2",
    "model_ttl": "1h30m",
    "evict_on_memory_pressure": "off",
    "kv_cache_mb": "auto",
    "kv_disk_mb": "12",
    "kv_disk_dir": "",
    "wire_weights": "yes",
    "max_cache_blocks": "5",
    "min_prefix_len": "32",
    "warmup_tokens": "0",
    "max_queue": "8",
    "max_queue_share": "50",
    "max_batch": "3",
    "drain_timeout": "1.5",
    "log_level": "DEBUG",
    "log_file": "~/logs/x.log",
    "model_roots": "/a:/b c",
    "http_listen": "127.0.0.1:8080",
    "http_origins": "http://localhost:3000, http://127.0.0.1:5173",
    "aliases": "fast=org/small, slow=org/large, it=fast",
    "http_hosts": "host.docker.internal, Ada.local",
    "http_hygiene": "0",
    "tracing": "false",
    "group_ranks": "192.168.7.1, 192.168.7.2:7000",
    "group_key_file": "~/key",
    "group_listen": "192.168.7.1:7000",
    "group_backend": "jaccl",
    "group_devices": "/etc/devices.json",
    "group_memory_mb": "auto",
    "group_models": "org/large=tensor, org/huge=pipeline",
}
"""A value of each setting, as a shell gives it."""


def test_service_starts_with_each_setting_of_the_shell() -> None:
    """The daemon reads the plist's variables at each login: a text that it refuses would end it again and again."""
    assert SHELL.keys() == KEYS.keys()
    environ = {f"MLX_SIDECAR_{key.upper()}": text for key, text in SHELL.items()}
    kept = agent(environ).environment
    assert load_config({}, kept, HOME).config == load_config({}, environ, HOME).config


def test_value_that_no_variable_can_hold_is_refused_at_installation() -> None:
    """A flag can be repeated, so its path may have the separator of paths in it."""
    with pytest.raises(AgentError, match=r"model_roots from --model-roots .*config\.toml"):
        agent({}, {"model_roots": ("/a:b",)})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b'<?xml version="1.0"?><plist><dict><key>La',
        plistlib.dumps({"Label": DAEMON.label}),
        plistlib.dumps([1]),
    ],
)
def test_foreign_plist_is_named(tmp_path: Path, content: bytes) -> None:
    """A foreign or damaged plist is named, whatever is wrong with it."""
    file = tmp_path / "a.plist"
    file.write_bytes(content)
    with pytest.raises(AgentError, match=str(file)):
        read(file)


def test_plist_path_separator_is_a_colon() -> None:
    """The stored `model_roots` are separated by `os.pathsep`."""
    assert os.pathsep == ":"
