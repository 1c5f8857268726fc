"""Checkpoints as disks and uploads leave them: files that mlx-lm does not load are as good as absent."""

from __future__ import annotations

import shutil
from pathlib import Path

from daemon.cache.resolver import EMBEDDED_PATH
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import Harness, generate

PROMPT = "The code of the blue box is"
APPLE_DOUBLE = bytes.fromhex("00051607000200004d6163204f532058") + bytes(4080)
"""How macOS keeps a file's attributes on a file system that has none, such as exFAT."""
WEIGHTS = (EMBEDDED_PATH / "model.safetensors").stat().st_size


def load(model: str, *, estimate_only: bool = False) -> pb.GetOrLoadRequest:
    """Return a request for a model."""
    return pb.GetOrLoadRequest(model=model, estimate_only=estimate_only)


def test_appledouble(harness: Harness, tmp_path: Path) -> None:
    """Such a file may lie beside each other file of the model."""
    model = copy_of_embedded(tmp_path, tested=True)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "._tools.jinja").write_bytes(APPLE_DOUBLE)
    for file in [file for file in model.iterdir() if file.is_file()]:
        (model / f"._{file.name}").write_bytes(APPLE_DOUBLE)
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hello")])
    answer = harness.run(pb.GenerateRequest(model=str(model), chat=chat, max_tokens=3))
    assert answer.finished.usage.completion_tokens > 0
    assert harness.figures.models[-1].info.size_bytes == harness.run(load("embedded")).events[-1].load.ready.size_bytes


def test_consolidated(tmp_path: Path) -> None:
    """The same weights in another format count for nothing against the budget."""
    model = copy_of_embedded(tmp_path, tested=True)
    (model / "original").mkdir()
    for name in ("consolidated.safetensors", "original/model.safetensors"):
        shutil.copy(model / "model.safetensors", model / name)
    harness = Harness(model_cache_mb=-(-WEIGHTS * 3 // 2) >> 20)
    assert WEIGHTS < harness.engine._models.limits.budget_bytes < 2 * WEIGHTS
    info = harness.run(load(str(model), estimate_only=True)).events[-1].load.ready
    assert info.size_bytes == WEIGHTS
    assert harness.run(generate(PROMPT, model=str(model), max_tokens=2)).finished.usage.completion_tokens == 2
    harness.engine.close()
