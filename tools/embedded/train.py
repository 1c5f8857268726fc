"""Trains the embedded model and writes its checkpoint: `python -m tools.embedded.train`.

A curriculum of stages, from short drills to long conversations. On Linux, preload OpenBLAS
(`LD_PRELOAD=libopenblas.so.0 OPENBLAS_NUM_THREADS=1`): the BLAS inside MLX's CPU wheel is far slower.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import AdamW, clip_grad_norm, cosine_decay, join_schedules, linear_schedule
from mlx.utils import tree_flatten
from tokenizers import Tokenizer

from tools.embedded import corpus, lessons, model, tokenizer
from tools.embedded.batches import WEIGHTS, Batcher
from tools.embedded.lessons import Kind, Role
from tools.embedded.model import CHECKPOINT

PEAK_RATE = 3e-3
FINAL_RATE = 1e-4
WARM_UP_STEPS = 50
REPORT_EVERY = 25


@dataclass(frozen=True)
class Stage:
    """`steps` batches of `size` documents of `length` tokens with up to `most_facts` facts each."""

    steps: int
    size: int
    length: int
    most_facts: int
    kinds: Sequence[Kind]


ASKED: tuple[Kind, ...] = (lessons.plain, lessons.chat)
MIXED: tuple[Kind, ...] = (*ASKED * 6, lessons.talk)

CURRICULUM: tuple[Stage, ...] = (
    Stage(100, 32, 64, 8, (lessons.drill,)),
    Stage(250, 16, 192, 20, (lessons.drill, *ASKED)),
    Stage(250, 8, 384, 40, MIXED),
    Stage(200, 4, 768, 70, MIXED),
    Stage(150, 2, 1536, 96, MIXED),
    Stage(200, 1, 2304, 96, MIXED),
)


class Trainer:
    """Owns model, optimizer and the count of steps done."""

    def __init__(self, network: nn.Module, batcher: Batcher, seed: int, steps: int) -> None:
        warm_up = linear_schedule(0.0, PEAK_RATE, WARM_UP_STEPS)
        decay = cosine_decay(PEAK_RATE, steps - WARM_UP_STEPS, FINAL_RATE)
        rate = join_schedules([warm_up, decay], [WARM_UP_STEPS])
        self._network = network
        self._batcher = batcher
        self._seed = seed
        self._done = 0
        self._optimizer = AdamW(rate, betas=[0.9, 0.98], weight_decay=0.01)
        self._gradient = nn.value_and_grad(network, self._loss)

    def run(self, stage: Stage) -> None:
        """Train for one stage and print its progress."""
        start = time.monotonic()
        for index in range(stage.steps):
            loss, recall = self._step(stage)
            if index % REPORT_EVERY == 0 or index == stage.steps - 1:
                spent = time.monotonic() - start
                print(f"  step {self._done:5} loss {loss:.3f} recall {recall:.3f} {spent:6.1f} s", flush=True)

    def _step(self, stage: Stage) -> tuple[float, float]:
        """Train on one batch; return its loss and the share of recalled tokens that were right."""
        rng = corpus.training_rng(self._seed, self._done)
        batch = self._batcher.batch(rng, stage.kinds, stage.size, stage.length, stage.most_facts)
        (loss, recall), gradient = self._gradient(*batch)
        gradient, _ = clip_grad_norm(gradient, 1.0)
        self._optimizer.update(self._network, gradient)
        mx.eval(loss, recall, self._network.parameters(), self._optimizer.state)
        self._done += 1
        return loss.item(), recall.item()

    def _loss(self, tokens: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
        """Return the weighted cross entropy of all targets and the recall of the batch."""
        targets = tokens[:, 1:]
        scores = self._network(tokens[:, :-1])
        losses = nn.losses.cross_entropy(scores, targets) * weights
        recalled = weights == WEIGHTS[Role.RECALLED]
        right = (mx.argmax(scores, axis=-1) == targets) & recalled
        return losses.sum() / weights.sum(), right.sum() / mx.maximum(recalled.sum(), 1)


def write(network: nn.Module, settings: dict[str, Any], vocabulary: Tokenizer, folder: Path) -> None:
    """Replace the checkpoint in `folder` file by file; a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".embedded-") as name:
        fresh = Path(name)
        tokenizer.write(vocabulary, fresh)
        (fresh / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        tensors = dict(tree_flatten(network.parameters()))
        mx.save_safetensors(str(fresh / "model.safetensors"), tensors, {"format": "mlx"})
        for file in fresh.iterdir():
            file.replace(folder / file.name)


def main() -> None:
    """Train from scratch and write the checkpoint after each stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=CHECKPOINT)
    options = parser.parse_args()
    print(f"seed {options.seed}, writing {options.out}")
    vocabulary = tokenizer.train()
    settings = model.config(vocabulary)
    mx.random.seed(options.seed)
    network = model.build(settings)
    steps = sum(stage.steps for stage in CURRICULUM)
    trainer = Trainer(network, Batcher(vocabulary), options.seed, steps)
    for stage in CURRICULUM:
        print(f"stage: {stage.steps} steps of {stage.size} documents of {stage.length} tokens")
        trainer.run(stage)
        write(network, settings, vocabulary, options.out)


if __name__ == "__main__":
    main()
