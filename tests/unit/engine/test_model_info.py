"""What is told of a model in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.cache.identity import ModelKey, ModelSource
from daemon.cache.mlx.loader import LoadedModel
from daemon.engine.reporting import model_info
from daemon.kv.mlx.layout import Layout
from mlx_sidecar.v1 import sidecar_pb2 as pb


def model(layout: Layout) -> LoadedModel:
    """Return a model with a layout."""
    return LoadedModel(
        ModelSource(ModelKey("digest"), "name", Path("/models/name"), 1, {"model_type": "llama"}), None, layout, 5, 7
    )


@pytest.mark.parametrize("warning", ["", "prefixes of this model are not reused"])
def test_failed_self_test_is_a_model_warning(warning: str) -> None:
    info = model_info.loaded(model(Layout("KVCache", 100, warning=warning)), "alias")

    assert info.model == "alias"
    assert list(info.warnings) == ([warning] if warning else [])
    assert info.prefix_reuse == pb.PREFIX_REUSE_NONE
