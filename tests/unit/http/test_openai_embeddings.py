"""OpenAI's embeddings and models: what a request asks for, and the forms of the answers."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from daemon.http.errors import Problem
from daemon.http.openai.embedding_types import EmbeddingRequest
from daemon.http.openai.embeddings import answer, options
from daemon.http.openai.models import find, listing
from mlx_sidecar import Embeddings, ListedModel, ModelAbilities, ModelList, Usage

FOUND = Embeddings(((0.5, -0.25), (1.0, 0.0)), "m", 2, "mean", True, Usage(7, 3, 0), 0.1)


def request(**fields: Any) -> EmbeddingRequest:
    """Return a request that was read from JSON."""
    return EmbeddingRequest.model_validate_json(json.dumps({"model": "m", "input": "a", **fields}))


def listed(name: str, **fields: Any) -> ListedModel:
    """Return a model of the machine."""
    can = ModelAbilities(True, False, False, False)
    given: dict[str, Any] = {"aliases": (), "complete": True, "problem": "", "last_used_unix_seconds": 5, **fields}
    return ListedModel(
        model=name, place="root", loaded=False, size_bytes=1, disk_bytes=1, fits=True, architecture="qwen3",
        context_length=0, quantization_bits=0, revision="", can=can, path="/m", **given,
    )  # fmt: skip


def test_vectors_come_as_numbers_or_base64() -> None:
    """The SDK asks for base64 by itself."""
    numbers = answer(request(), FOUND)
    assert [one.embedding for one in numbers.data] == [[0.5, -0.25], [1.0, 0.0]]
    encoded = answer(request(encoding_format="base64"), FOUND).data[0].embedding
    assert isinstance(encoded, str)
    assert struct.unpack("<2f", base64.b64decode(encoded)) == (0.5, -0.25)
    assert numbers.usage.total_tokens == 7


def test_embedding_options_are_passed_on() -> None:
    """And one text is a list of one."""
    assert options(request(dimensions=3, cache_salt="s")) == {"dimensions": 3, "salt": "s"}
    assert options(request(pooling="last_token"))["pooling"] == "last_token"
    assert request().input == ["a"]


def test_models_that_cannot_be_used_are_not_listed() -> None:
    """Those half fetched, and those with a problem; short names are names."""
    models = (listed("org/a", aliases=("fast",)), listed("/b", complete=False), listed("/c", problem="GGUF"))
    found = ModelList(models, (), 0, False, {"fast": "org/a"})
    assert [(one.id, one.owned_by) for one in listing(found).data] == [("org/a", "org"), ("fast", "mlx-sidecar")]
    assert find(found, "fast").created == 5
    with pytest.raises(Problem, match="no such model"):
        find(found, "/b")
