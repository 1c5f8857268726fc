"""Ranks use some settings of the first one, and no others: what a machine may read is its own matter."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from daemon.engine.group.start import settings_of, told_settings
from daemon.shared.config import Config

FIRST = Config(max_models=7, model_ttl=8.0, max_batch=3)


def test_settings_that_decisions_depend_on_are_told() -> None:
    """Each rank uses those of the first."""
    assert settings_of(told_settings(FIRST))["max_batch"] == 3


def test_other_settings_of_the_first_rank_are_not_used(tmp_path: Path) -> None:
    """Whatever has the key cannot make a machine read other folders, or write its log elsewhere."""
    told = json.loads(told_settings(FIRST))
    for name in ("model_roots", "state_dir", "log_file"):
        assert name in asdict(FIRST)
        told[name] = str(tmp_path)
    assert settings_of(json.dumps(told)) == json.loads(told_settings(FIRST))
