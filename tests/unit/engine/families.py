"""Tiny models of many families, one for each kind of cache, with random weights and the embedded model's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.support.models import TINY, write_random


class Family(str):
    """A family's name, and a dtype if not float32: `qwen3/bfloat16`."""

    @property
    def model_type(self) -> str:
        """The family."""
        return self.partition("/")[0]

    @property
    def dtype(self) -> str:
        """The type of its weights."""
        return self.partition("/")[2] or "float32"


class _Kinds(NamedTuple):
    exact: list[str]
    close: list[str]


_PLAIN = ["llama", "llama/bfloat16", "qwen3", "qwen3/bfloat16", "qwen3_moe", "deepseek_v3", "minimax_m3_vl"]
_OTHER = [
    "gemma3_text", "gemma3_text/bfloat16", "gpt_oss", "qwen3_next", "qwen3_next/bfloat16", "mamba", "mamba2",
    "falcon_h1", "recurrent_gemma", "baichuan_m1",
]  # fmt: skip

FAMILIES = [*_PLAIN, *_OTHER]
CHECKPOINTS = frozenset(_OTHER)
"""Those that go on from checkpoints and windows that were kept, not from any block."""

EXACT = frozenset(_PLAIN) - {"deepseek_v3"} | {"qwen3_next"}
"""
Those whose warm answers are cold ones bit by bit. Latent attention multiplies in another order when it has one token:
what was decoded is not what prefill computes.
"""


def write(folder: Path, family: Family) -> Path:
    """Write a model of a family and return its directory."""
    return write_random(folder / family.replace("/", "-"), TINY[family.model_type], seed=7, dtype=family.dtype)
