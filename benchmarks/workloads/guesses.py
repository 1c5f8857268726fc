"""
Workload "guesses": tokens guessed ahead from n-grams, on texts that repeat themselves much, in part, and little.

The speed of a machine drifts by more than guessing may lose. So engines with guesses and without write the same texts
side by side, a few tokens in turn: whatever slows the machine slows all of them. Each text gives the time of each side;
the figure is the ratio of the sums, and has an interval. A third engine does the same as the one without guesses. Its
ratio shows what is noise. Time of processors is measured as well: other programs hardly change it, and it leaves out
what an engine waits for the device.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from tokenizers import Tokenizer

from benchmarks.bench import Bench
from benchmarks.figures import MORE, OURS, SPEED, Metric, Result, Row
from benchmarks.written import TEXTS, Text, writing
from daemon.cache.resolver import EMBEDDED_PATH
from daemon.engine.scheduling.governor import Check, Governor
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Answer, Harness

AUTO, OFF, CONTROL = OURS, "without guesses", "without guesses, again"
TOKENS_A_PASS = Metric("tokens a pass", "tokens", MORE)
BESIDE = Metric("speed beside no guesses, and its 95 % interval", "x", "")
PROCESSORS = Metric("the same in time of processors", "x", "")
LEAST_BLOCKS = (4, 2)
"""Texts of a case, and of one in a quick run."""
SECONDS_A_ROUND = 1.8
"""How long a case is measured for each round of the run."""
TURN = 16
"""Tokens of each stream in a turn."""
RESAMPLED = 2000
"""Samples of the bootstrap that gives an interval."""
PARKED = "hybrid-mtp"
"""A head of random weights guesses nothing right: this shows only what it costs that it is there, and tried."""
SHAPES = ("small", "hybrid", "window", PARKED)
STREAMS = {1: 1.0, 4: 0.5}
"""Answers that are written at once, and their length as a share of that of one."""


def guesses(bench: Bench) -> Result:
    """W15: a model writes files with a few changes, which are its prompts, JSON of a list, and prose."""
    result = Result("Tokens guessed ahead, one request and four at once")
    models = {shape: bench.model(shape) for shape in bench.size(SHAPES, SHAPES[:1])}
    for shape, model in {**models, **bench.size({"embedded": EMBEDDED_PATH}, {})}.items():
        with loaded(model) as sides:
            for name in TEXTS if shape != PARKED else ["prose"]:
                compare(bench, result, sides, (shape, name), bench.size(96, 24))
    return result


def compare(bench: Bench, result: Result, sides: Sequence[Side], what: tuple[str, str], tokens: int) -> None:
    """
    Measure one of TEXTS.

    Args:
        bench: The run.
        result: Gets rows and targets.
        sides: The engines, which have the model.
        what: The model's name and that of the text.
        tokens: Length of an answer that is written alone.
    """
    tokenizer = Tokenizer.from_file(str(EMBEDDED_PATH / "tokenizer.json"))
    for streams, share in STREAMS.items():
        case = ", ".join(what) + f", {streams} at once" * (streams > 1)
        text = Text(TEXTS[what[1]], tokenizer, int(tokens * share), streams)
        blocks = _blocks(sides, text, case, bench.size(SECONDS_A_ROUND * bench.rounds, 0), bench.size(*LEAST_BLOCKS))
        auto, off, control = ([block[side] for block in blocks] for side in range(3))
        for name, taken in ((AUTO, auto), (OFF, off)):
            result.rows.append(Row(case, SPEED, name, tuple(one.tokens / one.seconds for one in taken)))
            result.rows.append(Row(case, TOKENS_A_PASS, name, tuple(one.tokens / one.passes for one in taken)))
        for metric, unit in ((PROCESSORS, "processors"), (BESIDE, "seconds")):
            ours, without, again = ([getattr(one, unit) for one in taken] for taken in (auto, off, control))
            found, noise = interval(without, ours), interval(without, again)
            result.rows += [Row(case, metric, AUTO, found), Row(case, metric, OFF, noise)]
            print(f"  {case}, {unit}: {_said(found)}, control {_said(noise)}", file=sys.stderr, flush=True)
        result.aim(f"{case}: {AUTO} / {OFF}", [found[1]], 0.97, MORE)


def interval(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Return the ratio of two sums of pairs, between the ends of its 95 % interval: that of pairs drawn again."""
    source, pairs = random.Random(1), list(zip(one, other, strict=True))
    ratios = sorted(_ratio(source.choices(pairs, k=len(pairs))) for _ in range(RESAMPLED))
    return ratios[RESAMPLED // 40], _ratio(pairs), ratios[-RESAMPLED // 40]


@dataclass(slots=True)
class Taken:
    """
    What a text took.

    Attributes:
        seconds: Time.
        processors: Time of processors.
        tokens: Tokens.
        passes: Tokens that were not guessed: each row has one of a pass.
    """

    seconds: float = 0.0
    processors: float = 0.0
    tokens: int = 0
    passes: int = 0


class Patient(Governor):
    """
    A governor that knows of turns.

    Attributes:
        waited: Seconds since the last step in which the device computed for the next one, which is the shorter for it.
    """

    waited = 0.0

    def stepped(self, seconds: float, rows: int, checks: Sequence[Check], tokens: int) -> None:
        """Measure a step, and the wait before it as a part of it."""
        super().stepped(seconds + self.waited, rows, checks, tokens)
        self.waited = 0.0


class Side:
    """
    An engine that writes texts in turns.

    Args:
        model: The model that it loads.
        speculation: Whether it guesses.
    """

    def __init__(self, model: Path, speculation: pb.Speculation) -> None:
        self.harness = Harness(guesses=True, kv_disk_mb=0)
        self._model, self._speculation = str(model), speculation
        self._calls: list[int] = []
        self._goal = 0
        self._taken = Taken()
        self.harness.run(pb.GetOrLoadRequest(model=self._model))
        self.forget()

    @property
    def module(self) -> nn.Module:
        """The model in memory."""
        return self.harness.engine._models.entries()[0].model.model

    def forget(self) -> None:
        """Begin with a governor that knows nothing. Each side has its own: passes without guesses tell it much."""
        self._governor = governor = Patient()
        self.harness.engine._runner.governors.of = lambda model: governor  # type: ignore[method-assign]

    def begin(self, texts: Sequence[tuple[list[int], list[int]]], tokens: int) -> None:
        """Compute prompts, and so many tokens of each answer are to be written."""
        self.harness.events.clear()
        self._taken = Taken()
        with writing([answer for _, answer in texts]):
            self._calls = [self.harness.begin(self._request(prompt, tokens)) for prompt, _ in texts]
            self.harness.until(lambda: all(map(self.harness.decoding, self._calls)))
        self._goal = self.harness.engine._runner.generated_tokens
        self._wait()

    def turn(self, tokens: int) -> bool:
        """Write so many tokens more, some more if they are guessed, and return whether there are any to come."""
        runner = self.harness.engine._runner
        self._goal += tokens
        before, processors, began = runner.generated_tokens, time.process_time(), time.perf_counter()
        while runner.decoding and runner.generated_tokens < self._goal:
            self.harness.step()
        self._wait()
        self._taken.seconds += time.perf_counter() - began
        self._taken.processors += time.process_time() - processors
        self._taken.tokens += runner.generated_tokens - before
        return bool(runner.decoding)

    def taken(self) -> Taken:
        """Return what the answers took, which have ended."""
        used = [Answer(self.harness.of(call)).finished.usage for call in self._calls]
        self._taken.passes = self._taken.tokens - sum(one.accepted for usage in used for one in usage.guesses)
        return self._taken

    def _wait(self) -> None:
        """Wait for the pass that is under way: the time is this side's."""
        began = time.perf_counter()
        mx.synchronize()
        self._governor.waited += time.perf_counter() - began

    def _request(self, prompt: list[int], tokens: int) -> pb.GenerateRequest:
        return pb.GenerateRequest(
            model=self._model,
            tokens=pb.TokenIds(ids=prompt),
            max_tokens=tokens,
            stop=pb.Stop(ignore_eos=True),
            sampling=pb.Sampling(temperature=1.0, seed=1),  # a greedy token without a mask would be the argmax
            speculation=self._speculation,
            cache=pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS),
        )


@contextmanager
def loaded(model: Path) -> Iterator[list[Side]]:
    """Return engines with a model, whose weights they share: with guesses, without, and again without."""
    sides: list[Side] = []
    try:
        for speculation in (pb.SPECULATION_AUTO, pb.SPECULATION_OFF, pb.SPECULATION_OFF):
            sides.append(Side(model, speculation))
            sides[-1].module.update(sides[0].module.parameters())
        yield sides
    finally:
        for side in sides:
            side.harness.close()


def _blocks(sides: Sequence[Side], text: Text, case: str, seconds: float, least: int) -> list[list[Taken]]:
    """Return what each of several texts took each side: so many at least, and as many as fit into so many seconds."""
    _block(sides, text, f"{case}/warm")
    for side in sides:
        side.forget()
    blocks: list[list[Taken]] = []
    end = time.monotonic() + seconds
    while len(blocks) < least or time.monotonic() < end:
        blocks.append(_block(sides, text, f"{case}/{len(blocks)}"))
    return blocks


def _block(sides: Sequence[Side], text: Text, seed: str) -> list[Taken]:
    """Let all sides write the same texts, in turns whose order is random."""
    gc.collect()
    source, texts = random.Random(seed), text.of(seed)
    for side in sides:
        side.begin(texts, text.tokens)
    writing_ones = list(sides)
    while writing_ones:
        source.shuffle(writing_ones)
        writing_ones = [side for side in writing_ones if side.turn(TURN * text.streams)]
    return [side.taken() for side in sides]


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    ours, others = map(sum, zip(*pairs, strict=True))
    return ours / others


def _said(found: tuple[float, float, float]) -> str:
    return f"{found[1]:.3f} ({found[0]:.3f} to {found[2]:.3f})"
