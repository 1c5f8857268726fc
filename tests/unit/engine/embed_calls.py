"""Embed calls, and their answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Harness

WORDS = "the sea is wide and a ship sails over it while birds count seven waves from the north"

CLOSE = 2e-6
"""Most that a number of a vector of length 1 may differ: rows of a shared pass have other rounding on some machines."""


def embed(model: object, wanted: list[str], **fields: Any) -> pb.EmbedRequest:
    """Return a request."""
    return pb.EmbedRequest(model=str(model), texts=wanted, **fields)


class Vectors:
    """The answer to an Embed call."""

    def __init__(self, harness: Harness, request: pb.EmbedRequest) -> None:
        events = harness.finish(harness.begin(request))
        self.failure = events[-1].failure
        self.finished = events[-1].embed.finished
        parts = [event.embed.embedding for event in events if event.embed.HasField("embedding")]
        assert [part.index for part in parts] == list(range(len(parts)))
        self.values = np.array([part.values for part in parts], dtype=np.float32)
        harness.settle()
