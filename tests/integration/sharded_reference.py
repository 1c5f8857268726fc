"""Computes an answer with mlx-lm's own sharding, as a rank of a ring: prints the ids as a line of JSON."""

from __future__ import annotations

import json
import os
import sys

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import sharded_load


def main(model: str, prompt: list[int], tokens: int) -> None:
    """Generate greedily; each rank computes the same."""
    group = mx.distributed.init(strict=True, backend="ring")
    module, _ = sharded_load(model, tensor_group=group)
    steps = generate_step(mx.array(prompt), module, max_tokens=tokens)
    print(json.dumps([int(token) for token, _ in steps]), flush=True)  # noqa: T201 - the test reads it


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
    os._exit(0)
