"""Computes an answer with mlx-lm's own sharding, as a rank of a ring: prints the ids as a line of JSON."""

from __future__ import annotations

import json
import os
import sys

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import sharded_load


def main(model: str, how: str, prompt: list[int], tokens: int) -> None:
    """Generate greedily; each rank computes the same."""
    group = mx.distributed.init(strict=True, backend="ring")
    module, _ = sharded_load(model, **{f"{how}_group": group})
    steps = generate_step(mx.array(prompt), module, max_tokens=tokens)
    ids = [int(token) for token, _ in steps]
    mx.eval(mx.distributed.all_sum(mx.array(1.0), group=group))  # no rank ends while another one needs it
    print(json.dumps(ids), flush=True)  # noqa: T201 - the test reads it


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
    os._exit(0)
