"""The configuration: later sources win, each value is checked, and each error has its cure."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from daemon.shared.config import KEYS, Config, ConfigError
from daemon.shared.config_sources import Resolved, from_json, given_value, load_config
from daemon.shared.config_values import parse_duration
from mlx_sidecar._address import default_socket_path
from tests.unit.shared.config_files import refusal, write_file


@pytest.fixture(name="home")
def _home(tmp_path: Path) -> Path:
    (tmp_path / ".mlx-sidecar").mkdir()
    return tmp_path


def test_without_any_source_every_value_is_its_default(home: Path) -> None:
    resolved = load_config({}, {}, home)

    assert resolved.config == Config(state_dir=home / ".mlx-sidecar", socket=default_socket_path())
    assert resolved.origins == dict.fromkeys(KEYS, "default")
    assert resolved.config.model_cache_mb == 24576
    assert resolved.config.model_roots == ()


def test_config_flags_outrank_variables_and_file(home: Path) -> None:
    file = write_file(home, "max_models = 2\nmax_queue = 3\nmax_batch = 4\n")
    environ = {"MLX_SIDECAR_MAX_QUEUE": "30", "MLX_SIDECAR_MAX_BATCH": "40"}

    resolved = load_config({"max_batch": "400", "max_models": None}, environ, home)

    assert (resolved.config.max_models, resolved.config.max_queue, resolved.config.max_batch) == (2, 30, 400)
    assert resolved.origins["max_models"] == str(file)
    assert resolved.origins["max_queue"] == "MLX_SIDECAR_MAX_QUEUE"
    assert resolved.origins["max_batch"] == "--max-batch"
    assert resolved.origins["max_cache_blocks"] == "default"


@pytest.mark.parametrize("by", ["variable", "flag"])
def test_config_file_is_found_in_the_chosen_state_dir(home: Path, by: str) -> None:
    other = home / "other"
    other.mkdir()
    (other / "config.toml").write_text("max_models = 9\n")

    if by == "flag":
        resolved = load_config({"state_dir": "~/other"}, {"MLX_SIDECAR_STATE_DIR": "/nowhere"}, home)
    else:
        resolved = load_config({}, {"MLX_SIDECAR_STATE_DIR": str(other)}, home)

    assert resolved.config.state_dir == other
    assert resolved.config.max_models == 9


def test_config_file_cannot_set_its_own_path(home: Path) -> None:
    file = write_file(home, 'state_dir = "/elsewhere"\n')

    assert refusal(home) == f"{file} sets state_dir, which only MLX_SIDECAR_STATE_DIR or --state-dir can set."


ALL_GIVEN: dict[str, tuple[Any, Any]] = {
    "group_ranks": (["10.0.0.1", "10.0.0.2:7411"], ("10.0.0.1", "10.0.0.2:7411")),
    "group_key_file": ("/group.key", Path("/group.key")),
    "group_listen": ("10.0.0.1:7411", "10.0.0.1:7411"),
    "group_backend": ("ring", "ring"),
    "group_devices": ("/devices.json", Path("/devices.json")),
    "group_memory_mb": (4096, 4096),
    "group_models": ({"large": "tensor"}, {"large": "tensor"}),
    "socket": ("~/s.sock", lambda home: home / "s.sock"),
    "model_cache_mb": (0, 0),
    "max_models": (1, 1),
    "max_queue_share": (50, 50),
    "model_ttl": ("1h30m", 5400.0),
    "evict_on_memory_pressure": (False, False),
    "kv_cache_mb": (0, 0),
    "kv_disk_mb": (0, 0),
    "kv_disk_dir": ("~/kv", lambda home: home / "kv"),
    "wire_weights": (True, True),
    "max_cache_blocks": (0, 0),
    "min_prefix_len": (1, 1),
    "warmup_tokens": (0, 0),
    "max_queue": (1, 1),
    "max_batch": (1, 1),
    "drain_timeout": (1.5, 1.5),
    "log_level": ("debug", "debug"),
    "log_file": ("~/log", lambda home: home / "log"),
    "model_roots": (["/a", "~/b"], lambda home: (Path("/a"), home / "b")),
    "http_listen": ("127.0.0.1:8080", "127.0.0.1:8080"),
    "http_origins": (["http://localhost:3000"], ("http://localhost:3000",)),
    "http_hosts": (["Host.docker.internal"], ("host.docker.internal",)),
    "http_hygiene": (False, False),
    "aliases": ({"fast": "org/name", "home": "~/m"}, lambda home: {"fast": "org/name", "home": str(home / "m")}),
    "tracing": (True, True),
}


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {model!r}" for name, model in value.items()) + " }"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={model}" for name, model in value.items())
    if isinstance(value, list):
        return ("," if ":" in value[-1] else os.pathsep).join(value)
    return str(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("drain_timeout", "1" + 400 * "0"),
        ("max_models", "0x" + 4000 * "f"),
        ("model_ttl", "0x" + 4000 * "f"),
        ("aliases", "{ a = 0x" + 4000 * "f" + " }"),
    ],
    ids=["float", "count", "duration", "table"],
)
def test_number_of_many_digits_is_refused(home: Path, key: str, value: str) -> None:
    """As any other one that is out of range; Python neither writes so many digits nor makes a float of them."""
    write_file(home, f"{key} = {value}\n")
    assert refusal(home).startswith(f"{key} from ")


@pytest.mark.parametrize("source", ["file", "variable", "flag"])
def test_every_config_key_works_in_every_source(home: Path, source: str) -> None:
    given = {key: value for key, (value, _) in ALL_GIVEN.items()}
    if source == "file":
        write_file(home, "".join(f"{key} = {_toml(value)}\n" for key, value in given.items()))
        resolved = load_config({}, {}, home)
    elif source == "variable":
        environ = {f"MLX_SIDECAR_{key.upper()}": _text(value) for key, value in given.items()}
        resolved = load_config({}, environ, home)
    else:
        resolved = load_config(given, {}, home)

    assert set(given) | {"state_dir"} == set(KEYS)
    for key, (_, expected) in ALL_GIVEN.items():
        assert getattr(resolved.config, key) == (expected(home) if callable(expected) else expected), key
    assert [key for key, origin in resolved.origins.items() if origin == "default"] == ["state_dir"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("max_models = 0", "max_models from {} is 0, but must be a whole number from 1 to 2147483647."),
        ('max_models = "4"', "max_models from {} is '4', but must be a whole number from 1 to 2147483647."),
        ("max_models = true", "max_models from {} is True, but must be a whole number from 1 to 2147483647."),
        ("max_models = 4.0", "max_models from {} is 4.0, but must be a whole number from 1 to 2147483647."),
        (
            "model_cache_mb = -1",
            "model_cache_mb from {} is -1, but must be a whole number from 0 to 2147483647.",
        ),
        ("evict_on_memory_pressure = 1", "evict_on_memory_pressure from {} is 1, but must be true or false."),
        (
            'log_level = "loud"',
            "log_level from {} is 'loud', but must be one of debug, info, warning, error.",
        ),
        (
            'log_file = "x"',
            "log_file from {} is 'x', but must be an absolute path, or one that starts with \"~/\".",
        ),
        ('model_roots = "/a"', "model_roots from {} is '/a', but must be a list of absolute directories."),
        ('model_roots = ["a"]', "model_roots from {} is ['a'], but must be a list of absolute directories."),
    ],
)
def test_bad_config_value_is_refused_with_its_file(home: Path, line: str, sentence: str) -> None:
    file = write_file(home, line)

    assert refusal(home) == sentence.format(file)


@pytest.mark.parametrize("value", ["", "x", "-1", "1.5", "1e3", "99999999999", "٣"])
def test_a_number_in_a_variable_must_be_digits(home: Path, value: str) -> None:
    sentence = refusal(home, {"MLX_SIDECAR_MAX_QUEUE": value})

    assert sentence == (
        f"max_queue from MLX_SIDECAR_MAX_QUEUE is {value!r}, but must be a whole number from 1 to 2147483647."
    )


def test_relative_path_flag_is_refused(home: Path) -> None:
    sentence = refusal(home, socket="here/s.sock")

    assert sentence == (
        "socket from --socket is 'here/s.sock', but must be an absolute path, or one that starts with \"~/\"."
    )


def test_home_of_another_user_is_not_expanded(home: Path) -> None:
    assert "must be an absolute path" in refusal(home, {"MLX_SIDECAR_LOG_FILE": "~root/log"})


def test_overridden_config_value_is_still_checked(home: Path) -> None:
    assert "MLX_SIDECAR_MAX_BATCH" in refusal(home, {"MLX_SIDECAR_MAX_BATCH": "many"}, max_batch="2")


def test_long_bad_config_value_is_cut(home: Path) -> None:
    assert len(refusal(home, {"MLX_SIDECAR_MAX_QUEUE": "9" * 5000})) < 200


def test_unknown_config_key_suggests_a_similar_one(home: Path) -> None:
    assert refusal(home, {"MLX_SIDECAR_MAX_MODLES": "1"}) == (
        "MLX_SIDECAR_MAX_MODLES in the environment is no setting; did you mean MLX_SIDECAR_MAX_MODELS?"
    )
    assert "--max-models?" in refusal(home, max_modles=1)
    file = write_file(home, "max-models = 1")
    assert refusal(home) == f"max-models in {file} is no setting; did you mean max_models?"


def test_unknown_config_key_lists_all_keys(home: Path) -> None:
    write_file(home, "[weather]\nrain = true\n")

    assert all(key in refusal(home) for key in KEYS)


def test_config_variables_are_upper_case_only(home: Path) -> None:
    assert "is no setting" in refusal(home, {"MLX_SIDECAR_max_models": "1"})


def test_unrelated_environment_variables_are_ignored(home: Path) -> None:
    environ = {"MLX_SIDECAR_TEST_ANYTHING": "x", "MLX_OTHER": "x", "PATH": "x"}

    assert load_config({}, environ, home).origins == dict.fromkeys(KEYS, "default")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("1.5", 1.5),
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("2d", 172800),
        ("0.5h", 1800),
    ],
)
def test_config_durations_are_numbers_or_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "m", "10 minutes", "-1", "-1s", "nan", "inf", "30m1h", "1e10", "1h30", "1w"])
def test_invalid_config_durations_are_refused(home: Path, text: str) -> None:
    sentence = refusal(home, {"MLX_SIDECAR_MODEL_TTL": text})

    assert sentence == (
        f"model_ttl from MLX_SIDECAR_MODEL_TTL is {text!r}, "
        'but must be a number of seconds from 0 to 1e9, or text such as "90s", "10m" or "1h30m".'
    )


@pytest.mark.parametrize(("text", "value"), [("true", True), ("ON", True), ("1", True), ("no", False), ("0", False)])
def test_config_boolean_variable_is_a_word(home: Path, text: str, value: bool) -> None:
    resolved = load_config({}, {"MLX_SIDECAR_EVICT_ON_MEMORY_PRESSURE": text}, home)

    assert resolved.config.evict_on_memory_pressure is value


def test_empty_text_unsets_log_file_and_model_roots(home: Path) -> None:
    write_file(home, 'log_file = "/log"\nmodel_roots = ["/a"]\n')

    config = load_config({}, {"MLX_SIDECAR_LOG_FILE": "", "MLX_SIDECAR_MODEL_ROOTS": ""}, home).config

    assert config.log_file is None
    assert config.model_roots == ()


def _busy(home: Path) -> Resolved:
    return load_config({"log_file": "~/ü/log", "model_roots": ["/a", "/b c"], "model_ttl": "1.5"}, {}, home)


def test_configuration_round_trips_as_json(home: Path) -> None:
    config = _busy(home).config

    assert from_json(config.to_json()) == config
    assert "\n" not in config.to_json()


def test_config_json_with_a_bad_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="colour in JSON is no setting"):
        from_json('{"colour": 1}')
    with pytest.raises(ConfigError, match="max_models from JSON is 0"):
        from_json('{"max_models": 0}')


def test_configuration_is_immutable(home: Path) -> None:
    config = _busy(home).config

    with pytest.raises(FrozenInstanceError):
        config.max_models = 5  # type: ignore[misc]
    assert not hasattr(config, "__dict__")


def test_every_config_key_has_a_one_line_description() -> None:
    for key, field in KEYS.items():
        about = field.metadata["help"]
        assert 10 < len(about) <= 80, key
        assert "\n" not in about
        assert not about.endswith(".")


def test_single_config_value_is_read_alone(home: Path) -> None:
    """A flag wins over a variable. Only a mistake in this setting matters; it is refused by name."""
    write_file(home, "no TOML")
    environ = {"MLX_SIDECAR_SOCKET": "~/v", "MLX_SIDECAR_MAX_BATCH": "none", "MLX_SIDECAR_NO_KEY": "x"}

    assert given_value("socket", "/flag", environ, home) == Path("/flag")
    assert given_value("socket", None, environ, home) == home / "v"
    assert given_value("socket", None, {}, home) is None
    with pytest.raises(ConfigError, match="socket from MLX_SIDECAR_SOCKET is 'v', but must be an absolute path"):
        given_value("socket", None, {"MLX_SIDECAR_SOCKET": "v"}, home)
