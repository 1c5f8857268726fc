"""
Workload "guesses": tokens guessed ahead from n-grams, on texts that repeat themselves much, in part, and little.

The speed of a machine drifts by more than guessing may lose. So short requests of both sides alternate in one engine,
in blocks of four (with, without, without, with; the next block the other way round): a drift that is even within a
block slows both sides alike. Each block gives one ratio, and the median of many blocks has an interval.

Where another program takes turns at the processors, that interval is still wider than what is looked for. So steps are
compared as well: each counts as the median of its kind on its side, which pauses do not change.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from unittest.mock import patch

import mlx.core as mx
from tokenizers import Tokenizer

from benchmarks.bench import Bench
from benchmarks.figures import MORE, OURS, SPEED, Metric, Result, Row
from daemon.cache.resolver import EMBEDDED_PATH
from daemon.engine.prompt.preparation import PreparedRequest
from daemon.engine.scheduling.governor import Check, Governor, Governors
from daemon.engine.structured_output.constraint import Drawn
from daemon.shared.last_events import ends_call
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Answer, Harness

AUTO, OFF = OURS, "without guesses"
SPECULATIONS = {AUTO: pb.SPECULATION_AUTO, OFF: pb.SPECULATION_OFF}
TOKENS_A_PASS = Metric("tokens a pass", "tokens", MORE)
BESIDE = Metric("beside no guesses, median and its 95 % interval", "x", MORE)
TYPICAL = Metric("beside no guesses, in steps of a typical time", "x", MORE)
LEAST_BLOCKS = (4, 1)
"""Of a case, and of one in a quick run."""
SECONDS_A_ROUND = 1.6
"""How long a case is measured for each round of the run."""
RESAMPLED = 2000
"""Samples of the bootstrap that gives the interval of a median."""
PARKED = "hybrid-mtp"
"""A head of random weights guesses nothing right: this shows only what it costs that it is there, and tried."""
SHAPES = ("small", "hybrid", "window", PARKED)
STREAMS = {1: 1.0, 4: 0.5}
"""Answers that are written at once, and their length as a share of that of one."""
CHANGED = 0.03
"""Share of the words of a file that an edit changes."""


class Written:
    """
    Lets a model write a given text: random weights write none that repeats itself as texts do.

    Args:
        ids: The tokens of the text.
        vocab: Width of the logits.
    """

    waits = False

    def __init__(self, ids: list[int], vocab: int) -> None:
        self._ids = iter(ids)
        self._all = mx.arange(vocab)

    def mask(self, last: Drawn | None) -> mx.array:
        """Return the mask that only the next token of the text passes. Called once for each token."""
        return self._all == next(self._ids, 0)

    def late_mask(self) -> None:
        """Return None: each token had its mask."""


def guesses(bench: Bench) -> Result:
    """W15: a model writes files with a few changes, which are its prompts, JSON of a list, and prose."""
    result = Result("Tokens guessed ahead, one request and four at once")
    tokens = bench.size(96, 24)
    harness = Harness(guesses=True, kv_disk_mb=0)
    try:
        models = {shape: bench.model(shape) for shape in bench.size(SHAPES, SHAPES[:1])}
        for shape, model in {**models, **bench.size({"embedded": EMBEDDED_PATH}, {})}.items():
            harness.run(pb.GetOrLoadRequest(model=str(model)))
            for name in TEXTS if shape != PARKED else ["prose"]:
                compare(bench, result, harness, (shape, model, name), tokens)
    finally:
        harness.close()
    return result


def compare(bench: Bench, result: Result, harness: Harness, what: tuple[str, Path, str], tokens: int) -> None:
    """
    Measure one of TEXTS with a loaded model.

    Args:
        bench: The run.
        result: Gets rows and targets.
        harness: The engine that has the model.
        what: The model's name, its folder and the text's name.
        tokens: Length of an answer that is written alone.
    """
    shape, model, name = what
    tokenizer = Tokenizer.from_file(str(EMBEDDED_PATH / "tokenizer.json"))
    for streams, share in STREAMS.items():
        case = f"{shape}, {name}" + f", {streams} at once" * (streams > 1)
        sides = Sides(harness, model, Text(TEXTS[name], tokenizer, int(tokens * share), streams))
        ratios = sides.ratios(case, bench.size(SECONDS_A_ROUND * bench.rounds, 0), bench.size(*LEAST_BLOCKS))
        result.rows += [Row(case, metric, side, tuple(values)) for (metric, side), values in sides.figures.items()]
        found = interval(ratios)
        said = f"{found[1]:.2f} ({found[0]:.2f} to {found[2]:.2f}), typical steps {sides.typical:.3f}"
        print(f"  {case}: {said}", file=sys.stderr, flush=True)
        result.rows += [Row(case, BESIDE, AUTO, found), Row(case, TYPICAL, AUTO, (sides.typical,))]
        result.aim(f"{case}: {AUTO} / {OFF}, typical steps", [sides.typical], 0.97, MORE)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of values, between the ends of its 95 % interval: that of medians of values drawn again."""
    source = random.Random(1)
    medians = sorted(median(source.choices(values, k=len(values))) for _ in range(RESAMPLED))
    return medians[RESAMPLED // 40], median(values), medians[-RESAMPLED // 40]


@dataclass
class Sides:
    """
    Answers with and without guesses, in turn.

    Each side has governors of its own: passes of answers without guesses would tell the other side what passes take.

    Attributes:
        harness: The engine.
        model: The model.
        text: What it writes.
        figures: Values of each block, by metric and side.
        steps: Seconds of the steps of each side, by their kind.
    """

    harness: Harness
    model: Path
    text: Text
    figures: dict[tuple[Metric, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    steps: dict[str, Steps] = field(default_factory=lambda: {AUTO: defaultdict(list), OFF: defaultdict(list)})
    _governors: dict[str, Governors] = field(default_factory=lambda: {AUTO: Governors(), OFF: Governors()})

    def ratios(self, case: str, seconds: float, least: int) -> list[float]:
        """Return how often the time with guesses fits into that without: of so many blocks at least, and seconds."""
        for side in SPECULATIONS:
            self._written(side, f"{case}/warm")
        for steps in self.steps.values():
            steps.clear()
        ratios: list[float] = []
        end = time.monotonic() + seconds
        while len(ratios) < least or time.monotonic() < end:
            gc.collect()
            ratios.append(self._block(f"{case}/{len(ratios)}", [AUTO, OFF] if len(ratios) % 2 else [OFF, AUTO]))
        return ratios

    @property
    def typical(self) -> float:
        """How often the time with guesses fits into that without, if each step took the median of its kind."""
        seconds = {side: sum(len(took) * median(took) for took in steps.values()) for side, steps in self.steps.items()}
        return seconds[OFF] / seconds[AUTO]

    def _block(self, seed: str, order: list[str]) -> float:
        taken, tokens, accepted = (dict.fromkeys(SPECULATIONS, 0.0) for _ in range(3))
        for half, sides in enumerate((order, order[::-1])):
            for side in sides:
                seconds, written, right = self._written(side, f"{seed}/{half}")
                taken[side] += seconds
                tokens[side] += written
                accepted[side] += right
        for side in SPECULATIONS:
            self.figures[SPEED, side].append(tokens[side] / taken[side])
            self.figures[TOKENS_A_PASS, side].append(tokens[side] / (tokens[side] - accepted[side]))
        return taken[OFF] / taken[AUTO]

    def _written(self, side: str, seed: str) -> tuple[float, int, int]:
        """
        Let a model write texts. A file is changed from its beginning on; a longer one is cut.

        Returns:
            Seconds from the requests to the end of their answers, tokens, and how many of them were guessed.
        """
        texts, harness = self.text.of(seed), self.harness
        harness.events.clear()
        harness.engine._runner.governors = self._governors[side]
        asked = [self._request(prompt, side) for prompt, _ in texts]
        with _writing([answer for _, answer in texts]), _measured(self.steps[side]):
            began = time.perf_counter()
            calls = [harness.begin(request) for request in asked]
            _finish(harness, len(calls))
            seconds = time.perf_counter() - began
        used = [Answer(harness.of(call)).finished.usage for call in calls]
        right = sum(one.accepted for usage in used for one in usage.guesses)
        return seconds, sum(usage.completion_tokens for usage in used), right

    def _request(self, prompt: list[int], side: str) -> pb.GenerateRequest:
        return pb.GenerateRequest(
            model=str(self.model),
            tokens=pb.TokenIds(ids=prompt),
            max_tokens=self.text.tokens,
            stop=pb.Stop(ignore_eos=True),
            sampling=pb.Sampling(temperature=1.0, seed=1),  # a greedy token without a mask would be the argmax
            speculation=SPECULATIONS[side],
            cache=pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS),
        )


def _edit(seed: str) -> tuple[str, str]:
    """Return a file as the prompt, and the file with a few words changed."""
    source, folder = random.Random(seed), Path(__file__).parent
    text = source.choice(sorted(folder.glob("*.py"))).read_text()
    words = text.split(" ")
    changed = [f"x{source.randrange(100)}" if source.random() < CHANGED else word for word in words]
    return text, " ".join(changed)


def _list(seed: str) -> tuple[str, str]:
    """Return a question, and JSON of a list of objects that share their keys."""
    source = random.Random(seed)
    names = [chr(97 + source.randrange(26)) * source.randint(2, 5) for _ in range(60)]
    items = [{"name": name, "size": source.randrange(9999), "used": source.random() < 0.5} for name in names]
    return "Return the files as JSON.", json.dumps(items, indent=1)


def _prose(seed: str) -> tuple[str, str]:
    """Return a question, and prose."""
    source, folder = random.Random(seed), Path(__file__).parents[2] / "docs" / "adr"
    return "Tell what was decided.", source.choice(sorted(folder.glob("0*.md"))).read_text()


TEXTS = {"a file with a few changes": _edit, "JSON of a list": _list, "prose": _prose}


@dataclass(frozen=True, slots=True)
class Text:
    """
    A kind of text that is written.

    Attributes:
        make: Returns a prompt and an answer of a seed.
        tokenizer: Makes tokens of both.
        tokens: Length of an answer.
        streams: Answers that are written at once, each after a prompt of its own.
    """

    make: Callable[[str], tuple[str, str]]
    tokenizer: Tokenizer
    tokens: int
    streams: int

    def of(self, seed: str) -> list[tuple[list[int], list[int]]]:
        """Return the tokens of each prompt and answer."""
        texts = [self.make(f"{seed}/{stream}") for stream in range(self.streams)]
        return [(self._ids(prompt)[: 2 * self.tokens], self._ids(answer)) for prompt, answer in texts]

    def _ids(self, text: str) -> list[int]:
        return [token % 500 for token in self.tokenizer.encode(text).ids]


def _finish(harness: Harness, calls: int) -> None:
    """Step until so many calls have ended, which began just now; each event is looked at once."""
    looked_at = len(harness.events)
    while calls:
        harness.step()
        calls -= sum(map(ends_call, harness.events[looked_at:]))
        looked_at = len(harness.events)


Steps = dict[tuple[int, int, bool], list[float]]
"""Seconds of steps, by rows, guesses of the widest row, and whether the step before guessed or waited for a guess."""


@contextmanager
def _measured(steps: Steps) -> Iterator[None]:
    """Collect the steps that governors are told of."""
    told, guessed = Governor.stepped, False

    def stepped(governor: Governor, seconds: float, rows: int, checks: Sequence[Check], tokens: int) -> None:
        nonlocal guessed
        steps[rows, max((check.guessed for check in checks), default=-1), guessed].append(seconds)
        guessed = bool(checks)
        told(governor, seconds, rows, checks, tokens)

    with patch.object(Governor, "stepped", stepped):
        yield


@contextmanager
def _writing(answers: list[list[int]]) -> Iterator[None]:
    """Let the requests that begin now write these answers, one each."""
    left = iter(answers)
    with patch.object(PreparedRequest, "constraint", lambda _, vocab: Written(next(left), vocab)):
        yield
