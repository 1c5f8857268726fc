"""
Compare what requests are billed with the memory that they take, and write docs/memory-ledger.md.

`python -m tools.billing_table` runs models of many families with random weights, on the CPU. Their KV is wide and their
layers are few: so KV and workspaces have the proportions of real models, and no fixed cost hides an error. Peaks are
those of MLX's own counter, step by step. `--family NAME` measures one family and prints its rows.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from daemon.engine.execution.bill import LEAST_WIDTH, bill, prompt_bill
from daemon.engine.scheduling.policy import ChunkSizer
from daemon.kv.mlx import peak
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import TINY, write_random
from tests.unit.engine.harness import Harness

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "memory-ledger.md"
MARK = "<!-- The table below is written by python -m tools.billing_table. -->\n"

WIDTH = 256
"""Tokens of a prefill pass: fixed, because the engine's own choice depends on the time that passes take."""

LENGTHS = (100, 200, 300, 500)
BATCHES = (1, 4, 8)
ANSWER = 6

WIDE: dict[str, Any] = {"head_dim": 64, "num_key_value_heads": 4, "num_hidden_layers": 8}
"""Changes to a tiny model: 16 KiB of KV a token, and eight layers."""

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "float32", WIDE),
    "llama, heads of 128": ("llama", "float32", {**WIDE, "head_dim": 128, "num_key_value_heads": 2}),
    "qwen3": ("qwen3", "float32", WIDE),
    "qwen3, one KV head": ("qwen3", "float32", {**WIDE, "num_key_value_heads": 1}),
    "qwen3, wide MLP": ("qwen3", "float32", {**WIDE, "hidden_size": 256, "intermediate_size": 1024}),
    "qwen3_moe": ("qwen3_moe", "float32", WIDE),
    "deepseek_v3": (
        "deepseek_v3",
        "float32",
        {"num_hidden_layers": 8, "kv_lora_rank": 256, "qk_rope_head_dim": 32, "first_k_dense_replace": 8},
    ),
    "gemma3_text": ("gemma3_text", "float32", {**WIDE, "sliding_window": 256}),
    "gpt_oss": (
        "gpt_oss",
        "float32",
        {**WIDE, "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 4},
    ),
    "qwen3_next": ("qwen3_next", "float32", WIDE),
    "mamba": ("mamba", "float32", {"num_hidden_layers": 8, "intermediate_size": 512}),
    "mamba2": ("mamba2", "float32", {"num_hidden_layers": 8}),
    "falcon_h1": ("falcon_h1", "float32", WIDE),
    "recurrent_gemma": ("recurrent_gemma", "float32", {"attention_window_size": 256}),
    "baichuan_m1": ("baichuan_m1", "float32", {**WIDE, "sliding_window_layers": [1, 3]}),
}


@dataclass
class Phase:
    """
    The largest peak of a phase, and the largest bill in it.

    Attributes:
        peak: Bytes beyond those of the idle engine.
        bill: Bytes billed.
    """

    peak: int = 0
    bill: int = 0

    @property
    def ratio(self) -> float:
        """How many times the peak is billed."""
        return self.bill / max(1, self.peak)


@dataclass
class Case:
    """
    One run.

    Attributes:
        length: Tokens of each prompt.
        batch: Requests.
        phases: What was measured.
    """

    length: int
    batch: int
    phases: dict[str, Phase] = field(default_factory=dict)


class Bench:
    """An engine with one model, whose passes have a fixed width and whose prefix cache is off."""

    def __init__(self, folder: Path, family: str) -> None:
        kind, dtype, changes = FAMILIES[family]
        settings = {**TINY[kind], "max_position_embeddings": 65_536, **changes}
        self.path = str(write_random(folder / "model", settings, 7, dtype))
        self.harness = Harness(state_dir=folder / "state", kv_cache_mb=0)
        self.harness.run(pb.GetOrLoadRequest(model=self.path))
        self.runner = self.harness.engine._runner

    def run(self, length: int, batch: int, answer: int = ANSWER) -> Case:
        """Run requests to their end, and return what they took in each phase."""
        harness, case = self.harness, Case(length, batch)
        harness.settle()
        mx.clear_cache()
        before, billed = mx.get_active_memory(), 0
        prompts = ([5 + (7 * index + 31 * number) % 700 for index in range(length)] for number in range(batch))
        calls = [self._begin(prompt, answer) for prompt in prompts]
        while not all(map(self._ended, calls)):
            peak.reset()
            harness.step()
            harness.flush()
            prefills = self.runner._prefills.computed
            phase = case.phases.setdefault("prefill" if prefills else "decode", Phase())
            last, billed = billed, self._billed(WIDTH if prefills else LEAST_WIDTH)
            # A prompt that was computed within the step was billed before it decoded.
            alone = self._alone(length, answer) if prefills else 0
            phase.peak = max(phase.peak, mx.get_peak_memory() - before)
            phase.bill = max(phase.bill, last, billed, alone)
        return case

    def _begin(self, prompt: list[int], answer: int) -> int:
        request = pb.GenerateRequest(model=self.path, tokens=pb.TokenIds(ids=prompt), max_tokens=answer)
        return self.harness.begin(request)

    def _ended(self, call: int) -> bool:
        events = self.harness.of(call)
        assert not any(event.HasField("failure") for event in events), events[-1].failure
        return any(event.generate.HasField("finished") for event in events)

    def _alone(self, length: int, answer: int) -> int:
        model = next(iter(self.harness.engine._models.entries())).model
        return prompt_bill([model], length, answer, 1, WIDTH).total

    def _billed(self, width: int) -> int:
        groups = [rows for decoder in self.runner._decoders.values() for rows in decoder.groups]
        # What is promised to prompts that have not begun is not taken yet.
        begun = [sequence for sequence in self.runner._prefills if sequence.kv.cache is not None]
        return bill(begun, groups, width).total


def measured(family: str) -> Iterator[Case]:
    """Yield the cases of a family."""
    ChunkSizer.size = lambda *_, **__: WIDTH  # type: ignore[method-assign]
    ChunkSizer.most_together = lambda *_: 2048  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), family)
        for length in LENGTHS:
            for batch in BATCHES:
                yield bench.run(length, batch)
        case = bench.run(250, 1, answer=280)
        yield Case(250, 1, {"growth": case.phases["decode"]})
        bench.harness.close()


def row(family: str, cases: list[Case]) -> str:
    """Return a family's row of the table."""
    cells = []
    for name in ("prefill", "decode", "growth"):
        ratios = [case.phases[name].ratio for case in cases if name in case.phases]
        cells.append(f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "")
    return f"| {family} | " + " | ".join(cells) + " |"


def main() -> None:
    """Measure, and write the page's table or print rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", choices=FAMILIES)
    chosen = parser.parse_args().family
    rows = []
    for family in [chosen] if chosen else FAMILIES:
        cases = list(measured(family))
        rows.append(row(family, cases))
        print(rows[-1], flush=True)
        if chosen:
            for case in cases:
                for name, one in case.phases.items():
                    print(f"{case.length:>6} x {case.batch} {name:8} {one.ratio:.2f} {one.bill:>12,} {one.peak:>12,}")
    if not chosen:
        text = PAGE.read_text("utf-8").partition(MARK)[0]
        head = "| family | prefill | decode and join | growth |\n|---|---|---|---|\n"
        PAGE.write_text(text + MARK + "\n" + head + "\n".join(rows) + "\n", "utf-8")


if __name__ == "__main__":
    main()
