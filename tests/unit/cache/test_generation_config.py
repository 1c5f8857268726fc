"""The sampling that a model recommends: what can be used of its generation_config.json, and what is left out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from daemon.cache.generation_config import default_sampling, usable
from daemon.cache.identity import identify
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.sampling_options import RANGES
from tests.support.builders import write_model

QWEN = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [1, 2]}

CASES: list[tuple[dict[str, Any], dict[str, float], list[str]]] = [
    (QWEN, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}, []),
    ({"do_sample": True, "top_k": 64, "top_p": 0.95}, {"temperature": 1.0, "top_k": 64, "top_p": 0.95}, []),
    ({"do_sample": True}, {"temperature": 1.0}, []),
    ({"temperature": 0.15}, {"temperature": 0.15}, []),
    ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {}, []),
    ({"do_sample": False, "repetition_penalty": 1.1, "top_k": 5}, {"repetition_penalty": 1.1}, []),
    ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}, []),
    ({"do_sample": True, "temperature": 0, "top_p": 0.9}, {}, []),
    ({"eos_token_id": 2}, {}, []),
    ({"do_sample": None, "temperature": None, "top_p": 0.9}, {"temperature": 1.0, "top_p": 0.9}, []),
    ({"do_sample": True, "temperature": "0.6", "top_p": 0.9}, {"temperature": 1.0, "top_p": 0.9}, ["temperature"]),
    ({"do_sample": True, "top_p": 0, "min_p": 2, "top_k": 1.5}, {"temperature": 1.0}, ["top_p", "top_k", "min_p"]),
    ({"do_sample": "no", "temperature": 101}, {}, ["temperature", "do_sample"]),
    ({"temperature": True, "top_p": [0.9]}, {}, ["temperature", "top_p"]),
    ({"do_sample": True, "top_p": 1e-300}, {"temperature": 1.0}, ["top_p"]),
]


@pytest.mark.parametrize(("config", "options", "ignored"), CASES)
def test_recommended_options(config: dict[str, Any], options: dict[str, float], ignored: list[str]) -> None:
    """A greedy model recommends nothing that chooses among tokens; a wrong value counts as not given."""
    assert usable(config) == (options, ignored)


NAMES = [*RANGES, "do_sample", "eos_token_id"]
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers())


@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_any_recommendation_is_within_the_ranges(config: dict[str, Any]) -> None:
    """So that it passes as the options of a request would."""
    options, ignored = usable(config)
    assert all(RANGES[name][0] <= value <= RANGES[name][1] for name, value in options.items())
    assert not (set(options) - {"temperature"}) & set(ignored)
    assert options.get("temperature", 1) > 0
    assert "temperature" in options or not set(options) & {"top_p", "top_k", "min_p"}


def written(folder: Path, text: str) -> Path:
    """Write a model with a generation_config.json."""
    path = write_model(folder / "model")
    (path / "generation_config.json").write_text(text)
    return path


def test_model_tells_its_sampling_without_a_new_identity(tmp_path: Path) -> None:
    """The file is no part of the key: models of equal weights are the same model."""
    path = write_model(tmp_path / "model")
    before = identify("m", path)
    assert before.default_sampling == {}
    (path / "generation_config.json").write_text(json.dumps(QWEN))
    after = identify("m", path)
    assert after.default_sampling == {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    assert after.key == before.key


def test_wrong_values_are_logged_once(tmp_path: Path) -> None:
    """For each state of the file."""
    path = written(tmp_path, json.dumps({"top_p": "high"}))
    with capture_logs() as logs:
        assert [default_sampling("m", path, ()) for _ in range(2)] == [{}, {}]
        (path / "generation_config.json").write_text("no json")
        assert default_sampling("m", path, ()) == {}
        (path / "generation_config.json").write_text("[" * 100_000)
        assert default_sampling("m", path, ()) == {}
    assert [(entry["event"], entry.get("options")) for entry in logs] == [
        ("generation_config_ignored", ["top_p"]),
        ("generation_config_ignored", None),
        ("generation_config_ignored", None),
    ]


def test_irregular_generation_config_is_refused(tmp_path: Path) -> None:
    """As any other file of a model: a FIFO would be waited for."""
    path = write_model(tmp_path / "model")
    os.mkfifo(path / "generation_config.json")
    with pytest.raises(SidecarError) as refused:
        identify("m", path)
    assert refused.value.reason is Reason.MODEL_CORRUPT
