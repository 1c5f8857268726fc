"""
Compare what requests are billed with the memory that they take, and write docs/memory-ledger.md.

`python -m tools.billing_table` runs models of many families with random weights, on the CPU. Their KV is wide and their
layers are few: so KV and workspaces have the proportions of real models, and no fixed cost hides an error. Peaks are
those of MLX's own counter, step by step. `--family NAME` measures one family, prints its cases and writes its row.
"""

from __future__ import annotations

import argparse
import gc
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from daemon.engine.execution.bill import bill
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx import peak
from daemon.kv.mlx.guess_passes import Exactness
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import TINY, write_random
from tests.unit.engine.harness import Harness

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "memory-ledger.md"
MARK = "<!-- The table below is written by python -m tools.billing_table. -->\n"

WIDTH = 256
"""Tokens of a prefill pass: fixed, because the engine's own choice depends on the time that passes take."""

LENGTHS = (100, 500, 1500, 3000)
BATCHES = (1, 4, 8)

SHARED = 1000
"""Tokens from which on the prompts of a batch have their beginning in common."""
ANSWER = 32

WIDE: dict[str, Any] = {"head_dim": 64, "num_key_value_heads": 4, "num_hidden_layers": 8}
"""Changes to a tiny model: 16 KiB of KV a token, and eight layers."""

COHERE: dict[str, Any] = {
    **WIDE,
    "model_type": "cohere2",
    "hidden_size": 256,
    "sliding_window": 256,
    "sliding_window_pattern": 4,
    "layer_norm_eps": 1e-5,
}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "float32", WIDE),
    "qwen2": ("llama", "float32", {**WIDE, "model_type": "qwen2", "hidden_size": 256}),
    "gemma2": ("llama", "float32", {**WIDE, "model_type": "gemma2", "query_pre_attn_scalar": 64}),
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
    "cohere2": ("llama", "float32", COHERE),
    "cohere2, wide window": ("llama", "float32", {**COHERE, "sliding_window": 2048}),
    "lfm2": (
        "llama",
        "float32",
        {
            **WIDE,
            "model_type": "lfm2",
            "hidden_size": 256,
            "norm_eps": 1e-5,
            "conv_bias": False,
            "conv_L_cache": 3,
            "block_dim": 256,
            "block_ff_dim": 512,
            "block_multiple_of": 32,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": False,
            "full_attn_idxs": [1, 3, 5, 7],
        },
    ),
    "qwen3_next": ("qwen3_next", "float32", WIDE),
    "mamba": ("mamba", "float32", {"num_hidden_layers": 8, "intermediate_size": 512, "state_size": 64}),
    "mamba2": (
        "mamba2",
        "float32",
        {"num_hidden_layers": 8, "hidden_size": 256, "num_heads": 8, "head_dim": 64, "state_size": 128},
    ),
    "falcon_h1": ("falcon_h1", "float32", WIDE),
    "recurrent_gemma": (
        "recurrent_gemma",
        "float32",
        {**WIDE, "num_key_value_heads": 1, "num_hidden_layers": 9, "hidden_size": 256, "attention_window_size": 256},
    ),
    "baichuan_m1": ("baichuan_m1", "float32", {**WIDE, "hidden_size": 256, "sliding_window_layers": [1, 3]}),
}

DRAFTED = ("llama", "qwen3", "qwen3_moe", "deepseek_v3")
"""Families whose cases include a draft model, which needs full attention alone."""


@dataclass
class Phase:
    """
    The largest bill of a phase, and the largest peak from its beginning to the end of the requests.

    Attributes:
        bill: Bytes billed.
        peak: Bytes beyond those of the idle engine.
        least: The least multiple of its own peak that a step of the phase was billed.
    """

    bill: int = 0
    peak: int = 0
    least: float = math.inf

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


Step = tuple[str, int, int]
"""The phase of a step of the engine, its bill, and its peak."""


def phases_of(steps: list[Step]) -> dict[str, Phase]:
    """Return the phases of requests that came together. A bill is a reservation up to their end, so peaks count on."""
    phases: dict[str, Phase] = {}
    for name, billed, taken in steps:
        phase = phases.setdefault(name, Phase())
        phase.bill, phase.least = max(phase.bill, billed), min(phase.least, billed / max(1, taken))
        for begun in phases.values():
            begun.peak = max(begun.peak, taken)
    return phases


class Bench:
    """An engine with one model, whose passes have a fixed width and whose prefix cache is off."""

    def __init__(self, folder: Path, family: str) -> None:
        self.path = _written(folder / "model", family, 7)
        self.harness = Harness(state_dir=folder / "state", kv_cache_mb=2048, kv_disk_mb=0)
        self.harness.run(pb.GetOrLoadRequest(model=self.path))
        self.runner = self.harness.engine._runner
        sizer = self.runner._times
        sizer.size = lambda *_, **__: WIDTH  # type: ignore[method-assign]
        sizer.most_together = lambda *_: WIDTH  # type: ignore[method-assign]
        self._original, self._promised = self.runner._conclude_start, 0
        self.runner._conclude_start = self._started  # type: ignore[method-assign]
        self._prefixes = self.harness.engine._memory._prefixes
        self._store = self._prefixes.store
        self._prefixes.store = self._storing  # type: ignore[method-assign]
        self._before = self._peak = 0

    def run(self, length: int, batch: int, answer: int = ANSWER) -> Case:
        """
        Run requests to their end, and return what they took in each phase.

        Long prompts of a batch share their beginning with the prompt that ran alone before them. So they restore it:
        their KV is as large as if it were computed, and the table is made in minutes.
        """
        shared = 0 if length < SHARED else length - BLOCK_TOKENS
        prompts = [
            [5 + (7 * index + length) % 701 for index in range(shared)]
            + [6 + (11 * index + 31 * number + length + batch) % 700 for index in range(shared, length)]
            for number in range(batch)
        ]
        return Case(length, batch, self.requests([asked(prompt, answer) for prompt in prompts]))

    def variants(self, folder: Path, family: str) -> Iterator[Case]:
        """Yield samples of one prompt, guesses, masked answers with many options, and answers with a draft model."""
        length = SHARED // 2
        prompts = [[7 + (13 * index + 41 * number) % 600 for index in range(length)] for number in range(4)]
        yield self._variant("samples", [asked(prompts[0], samples=4, sampling=pb.Sampling(temperature=1))])
        sampling = pb.Sampling(temperature=1, top_p=0.9, min_p=0.01, frequency_penalty=0.5, seed=1)
        form = pb.ResponseFormat(regex="[a-z ]{200}")
        if self.guesses:
            repeated = (prompts[2][:64] * length)[:length]
            yield self._variant("guesses", [asked(repeated, 64, speculation=pb.SPECULATION_NGRAM)])
        yield self._variant("forms", [asked(prompt, response_format=form, sampling=sampling) for prompt in prompts])
        if family in DRAFTED:
            draft = _written(folder / "draft", family, 8)
            drafted: dict[str, Any] = {"draft_model": draft, "draft_tokens": 4, "speculation": pb.SPECULATION_AUTO}
            yield self._variant("drafts", [asked(prompts[1], **drafted)])

    def _variant(self, name: str, requests: list[pb.GenerateRequest]) -> Case:
        first = pb.GenerateRequest()  # loads the draft model, so that its weights do not count
        first.CopyFrom(requests[0])
        first.tokens.ids[:] = [3] * BLOCK_TOKENS
        self.requests([first])
        steps = [(name, bill, peak) for _, bill, peak in self._steps(requests)]
        return Case(SHARED // 2, len(requests), phases_of(steps))

    def requests(self, asked: list[pb.GenerateRequest]) -> dict[str, Phase]:
        """Run requests to their end, and return each phase."""
        return phases_of(self._steps(asked))

    def _steps(self, asked: list[pb.GenerateRequest]) -> list[Step]:
        harness = self.harness
        harness.settle()
        gc.collect()
        mx.clear_cache()
        self._before = mx.get_active_memory() - self._stored
        for request in asked:
            request.model = self.path
        calls = [harness.begin(request) for request in asked]
        steps: list[Step] = []
        while not all(map(self._ended, calls)):
            self._peak = self._promised = 0
            peak.reset()
            harness.step()
            harness.flush()
            self._taken(self._stored)
            if self._promised:
                phase = "prefill" if self.runner._prefills.computed else "decode"
                steps.append((phase, self._promised, self._peak))
        return steps

    @property
    def guesses(self) -> bool:
        """Whether a pass of the model over guesses can be taken back."""
        return self.harness.engine._models.entries()[0].model.guess_exactness is not Exactness.WRONG

    @property
    def _stored(self) -> int:
        """Bytes of cached prefixes, which are billed apart."""
        return self.harness.engine._memory._prefixes.memory_usage()

    def _started(self) -> None:
        """Note what is billed once requests have started, before anything is computed."""
        self._original()
        groups = [rows for decoder in self.runner._decoders.values() for rows in decoder.groups]
        self._promised = bill(list(self.runner._prefills), groups, WIDTH).total

    def _storing(self, *args: Any, **fields: Any) -> int:
        """Store a prefix: what was taken before it had the bytes of the prefix cache beside it as they were then."""
        before = self._stored
        self._taken(before)
        stored = self._store(*args, **fields)
        self._taken(max(before, self._stored))
        return stored

    def _taken(self, stored: int) -> None:
        """Note the peak since the last call, while cached prefixes took so many bytes."""
        mx.synchronize()
        self._peak = max(self._peak, mx.get_peak_memory() - self._before - stored)
        peak.reset()

    def _ended(self, call: int) -> bool:
        events = self.harness.of(call)
        assert not any(event.HasField("failure") for event in events), events[-1].failure
        return any(event.generate.HasField("finished") for event in events)


def asked(prompt: list[int], answer: int = ANSWER, **fields: Any) -> pb.GenerateRequest:
    """Return a request for an answer of so many tokens."""
    fields = {"speculation": pb.SPECULATION_OFF, **fields}
    stop = pb.Stop(ignore_eos=True)
    return pb.GenerateRequest(tokens=pb.TokenIds(ids=prompt), max_tokens=answer, stop=stop, **fields)


def _written(path: Path, family: str, seed: int) -> str:
    kind, dtype, changes = FAMILIES[family]
    return str(write_random(path, {**TINY[kind], "max_position_embeddings": 65_536, **changes}, seed, dtype))


def measured(family: str) -> Iterator[Case]:
    """Yield the cases of a family."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(folder, family)
        for length in LENGTHS:
            for batch in BATCHES:
                yield bench.run(length, batch)
        case = bench.run(250, 1, answer=280)
        yield Case(250, 1, {"growth": case.phases["decode"]})
        yield from bench.variants(folder, family)
        bench.harness.close()


COLUMNS = ("prefill", "decode", "growth", "samples", "guesses", "forms", "drafts")


def row(family: str, cases: list[Case]) -> str:
    """Return a family's row of the table: the least multiple of any step, and the largest of any phase."""
    cells = []
    for name in COLUMNS:
        phases = [case.phases[name] for case in cases if name in case.phases]
        least, most = min((one.least for one in phases), default=0), max((one.ratio for one in phases), default=0)
        cells.append(f"{least:.2f} to {most:.2f}" if phases else "")
    return f"| {family} | " + " | ".join(cells) + " |"


def write(measured: dict[str, str]) -> None:
    """Put rows into the page's table, by family; rows of other families of the command stay."""
    text, _, table = PAGE.read_text("utf-8").partition(MARK)
    lines = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")} | measured
    head = f"| family | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}\n"
    rows = [lines[family] for family in FAMILIES if family in lines]
    PAGE.write_text(text + MARK + "\n" + head + "\n".join(rows) + "\n", "utf-8")


def main() -> None:
    """Measure, print, and write the page's table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", choices=FAMILIES)
    chosen = parser.parse_args().family
    for family in [chosen] if chosen else FAMILIES:
        cases = list(measured(family))
        print(row(family, cases), flush=True)
        write({family: row(family, cases)})
        for case in cases if chosen else ():
            for name, one in case.phases.items():
                ratios = f"{one.least:.2f} {one.ratio:.2f}"
                print(f"{case.length:>6} x {case.batch} {name:8} {ratios} {one.bill:>12,} {one.peak:>12,}")


if __name__ == "__main__":
    main()
