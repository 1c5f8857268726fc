"""Workload "guesses": tokens guessed ahead from n-grams, on texts that repeat themselves much, in part, and little."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import mlx.core as mx
from tokenizers import Tokenizer

from benchmarks.bench import Bench, Figures
from benchmarks.figures import MORE, OURS, SPEED, Metric, Result
from daemon.cache.resolver import EMBEDDED_PATH
from daemon.engine.outbox import ends_call
from daemon.engine.prompt.preparation import PreparedRequest
from daemon.engine.scheduling.governor import Check, Governor
from daemon.engine.structured_output.constraint import Drawn
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Answer, Harness

AUTO, OFF = OURS, "without guesses"
SPECULATIONS = {AUTO: pb.SPECULATION_AUTO, OFF: pb.SPECULATION_OFF}
TOKENS_A_PASS = Metric("tokens a pass", "tokens", MORE)
BESIDE = Metric("throughput beside that of its own passes without guesses", "x", MORE)
"""Of one turn: another program that slows a turn down does not change it."""
LEAST_PLAIN = 32
"""Passes without guesses that tell what they take."""
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
    tokens = bench.size(320, 24)
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
        written = Text(TEXTS[name], tokenizer, int(tokens * share), streams)
        sides: dict[str, Callable[[str], Figures]] = {
            side: partial(_written, harness, model, written, side) for side in SPECULATIONS
        }
        result.rows += bench.take_turns(case, sides)
        result.aim(f"{case}: {AUTO} / {OFF}", result.ratios(case, SPEED, AUTO, OFF), 0.97, MORE)
        if beside := result.find(case, BESIDE, AUTO):
            result.aim(f"{case}: {BESIDE.name}", beside.values, 0.97, MORE)


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


def _written(harness: Harness, model: Path, text: Text, side: str, seed: str) -> Figures:
    """Let a model write texts. A file is changed from its beginning on; a longer one is cut."""
    texts = text.of(seed)
    harness.events.clear()
    asked = [
        pb.GenerateRequest(
            model=str(model),
            tokens=pb.TokenIds(ids=prompt),
            max_tokens=text.tokens,
            stop=pb.Stop(ignore_eos=True),
            sampling=pb.Sampling(temperature=1.0, seed=1),  # a greedy token without a mask would be the argmax
            speculation=SPECULATIONS[side],
            cache=pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS),
        )
        for prompt, _ in texts
    ]
    with _writing([answer for _, answer in texts]), _measured() as steps:
        calls = [harness.begin(request) for request in asked]
        _finish(harness, len(calls))
    ends = [Answer(harness.of(call)).finished for call in calls]
    counts = [end.usage.completion_tokens for end in ends]
    accepted = sum(one.accepted for end in ends for one in end.usage.guesses)
    seconds = [end.timings.decode.seconds + end.timings.decode.nanos / 1e9 for end in ends]
    plain = [step.seconds for step in steps if step.plain]
    usual = sum(plain) / max(len(plain), 1) * sum(step.tokens for step in steps)
    beside = {BESIDE: usual / sum(step.seconds for step in steps)} if len(plain) >= LEAST_PLAIN and side == AUTO else {}
    return {
        **beside,
        SPEED: sum((count - 1) / took for count, took in zip(counts, seconds, strict=True)),
        TOKENS_A_PASS: sum(counts) / (sum(counts) - accepted),
    }


def _finish(harness: Harness, calls: int) -> None:
    """Step until so many calls have ended, which began just now; each event is looked at once."""
    looked_at = len(harness.events)
    while calls:
        harness.step()
        calls -= sum(map(ends_call, harness.events[looked_at:]))
        looked_at = len(harness.events)


@dataclass(frozen=True, slots=True)
class Step:
    """
    A step of the decoder.

    Attributes:
        seconds: How long it took.
        tokens: Tokens that it brought of each row.
        plain: Whether it guessed nothing, and neither did the one before it.
    """

    seconds: float
    tokens: float
    plain: bool


@contextmanager
def _measured() -> Iterator[list[Step]]:
    """Collect the steps that governors are told of."""
    steps: list[Step] = []
    told, guessed = Governor.stepped, False

    def stepped(governor: Governor, seconds: float, rows: int, checks: Sequence[Check], tokens: int) -> None:
        nonlocal guessed
        steps.append(Step(seconds, tokens / rows, not checks and not guessed))
        guessed = bool(checks)
        told(governor, seconds, rows, checks, tokens)

    with patch.object(Governor, "stepped", stepped):
        yield steps


@contextmanager
def _writing(answers: list[list[int]]) -> Iterator[None]:
    """Let the requests that begin now write these answers, one each."""
    left = iter(answers)
    with patch.object(PreparedRequest, "constraint", lambda _, vocab: Written(next(left), vocab)):
        yield
