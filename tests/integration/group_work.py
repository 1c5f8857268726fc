"""Random work of a group: calls of all kinds, several at a time. Their answers are those of calls alone."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import grpc
import pytest

from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar import BudgetInUse, Client, RequestExceedsMemory
from mlx_sidecar._failure import failure
from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.integration.group_models import WIDE
from tests.support.daemons import RunningDaemon
from tests.support.models import write_random
from tests.unit.engine.cold_runs import CLOSE, ColdRuns, Sample, scores
from tests.unit.engine.harness import Answer
from tests.unit.engine.random_requests import WORDS, Requests

PATIENCE = 100.0
"""Seconds of a call. Only a group that hangs reaches it, before it ends itself."""
CLOSE_VECTORS = 1e-4
"""Of numbers of vectors that ranks compute together, and one machine by itself."""
NO_ROOM = (BudgetInUse, RequestExceedsMemory)
"""What a call may be told where other calls have all models in use."""
SALTS = ("", "", "", "s", "t")
KEEPS = (500, 3_000, 60_000)
"""Milliseconds for which prompts are kept: some of them end during the work."""
SIZES: dict[str, dict[str, int]] = {
    "first": {},
    "second": {"num_hidden_layers": 5},
    "small": {"num_hidden_layers": 2},
    "large": {"num_hidden_layers": 2, "hidden_size": 1152, "vocab_size": 8000},
}
"""Models that are cut. The weights of the last one are so large that all ranks read them beside their work."""

Check = Callable[[], object]
"""Compares what a call has brought, when no other call runs."""
Call = Callable[[], Check]
"""A call that was chosen. It runs on any thread."""


def write_models(folder: Path) -> list[str]:
    """Write the models of `SIZES`, all but the large one with a copy for a machine alone, and return their paths."""
    models = [
        str(write_random(folder / name, {**WIDE, **sizes}, seed)) for seed, (name, sizes) in enumerate(SIZES.items(), 7)
    ]
    for model in models[:-1]:
        shutil.copytree(model, whole(model))
    return models


def whole(model: str) -> str:
    """Return the copy of a model that is no model of the group."""
    return f"{model}-whole"


class Caller:
    """
    Calls a daemon over a connection of its own. It takes the place of an engine in comparisons with cold runs.

    Args:
        daemon: The daemon.
    """

    def __init__(self, daemon: RunningDaemon) -> None:
        self.events: list[ipc.Event] = []
        self._socket = daemon.serving().socket
        self._channel = grpc.insecure_channel(f"unix:{self._socket}")
        self._stub = SidecarServiceStub(self._channel)

    def run(self, request: pb.GenerateRequest, most: int | None = None) -> Answer:
        """
        Return the answer to a request, or no more than its first events.

        Raises:
            SidecarError: If it has none.
        """
        stream = self._stub.Generate(request, timeout=PATIENCE)
        try:
            return Answer([ipc.Event(generate=response) for response in islice(stream, most)])
        except grpc.RpcError as error:
            raise failure(error, self._socket) from error
        finally:
            stream.cancel()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


class Work:
    """
    Random work.

    Args:
        caller: Asks for answers.
        client: Calls all else.
        chance: Chooses.
        models: The models of `write_models`.

    Attributes:
        counts: Calls that were answered or refused, and tokens of the answers that were reused, restored or guessed.
    """

    def __init__(self, caller: Caller, client: Client, chance: random.Random, models: list[str]) -> None:
        self._models, self._large = models[:-1], models[-1]
        self._caller, self._client, self._chance = caller, client, chance
        self._cold = ColdRuns(caller, CLOSE)
        first, second, small = self._models
        guessing = [(first, small), (first, first), (second, first), (small, "")]
        self._asked = [
            (model, draft, Requests(chance, model, draft, marked=False, head=False)) for model, draft in guessing
        ]
        self.counts: Counter[str] = Counter()

    def several(self) -> None:
        """Begin several calls at once, wait for all of them, and compare what they have brought."""
        kinds = [self.ask] * 12 + [self.cut] * 4 + [self.invalidate] * 3 + [self.embed, self.load] * 2 + [self.read] * 2
        calls = [self.ask(), *(self._chance.choice(kinds)() for _ in range(self._chance.randint(1, 5)))]
        with ThreadPoolExecutor(len(calls)) as threads:
            checks = list(threads.map(self._run, calls))
        for check in checks:
            check()

    def _run(self, call: Call) -> Check:
        try:
            return call()
        except NO_ROOM:
            return lambda: self.counts.update(refused=1)

    def ask(self) -> Call:
        """Ask for an answer."""
        request = self._request()

        def call() -> Check:
            answer = self._caller.run(request)
            return lambda: self._compare(request, answer)

        return call

    def cut(self) -> Call:
        """Ask for an answer, and cancel it after a few events."""
        request, most = self._request(), self._chance.randint(1, 8)

        def call() -> Check:
            self._caller.run(request, most)
            return _nothing

        return call

    def read(self) -> Call:
        """Ask a large model whose weights were written to since: its ranks read them first."""
        os.utime(Path(self._large) / "model.safetensors")
        tokens = pb.TokenIds(ids=[self._chance.randrange(3, 700) for _ in range(20)])
        request = pb.GenerateRequest(model=self._large, tokens=tokens, max_tokens=2, top_logprobs=0)

        def call() -> Check:
            answer = self._caller.run(request)
            return lambda: self._cold.check(request, answer)

        return call

    def embed(self) -> Call:
        """Have texts embedded."""
        model, salt = self._chance.choice(self._models), self._chance.choice(SALTS)
        texts = [" ".join(self._chance.choices(WORDS, k=self._chance.randint(1, 40))) for _ in range(3)]

        def call() -> Check:
            vectors = self._client.embed(model, texts, pooling="mean", salt=salt, timeout=PATIENCE).vectors
            return lambda: self._compare_vectors(model, texts, vectors)

        return call

    def load(self) -> Call:
        """Load a model that may be dropped soon if nothing asks for it."""
        model, ttl = self._chance.choice(self._models), self._chance.choice([0.5, 60.0])

        def call() -> Check:
            self._client.load(model, ttl=ttl, timeout=PATIENCE)
            return _nothing

        return call

    def invalidate(self) -> Call:
        """Drop a beginning, a model or all of them, while others run."""
        client, (model, _, requests) = self._client, self._chance.choice(self._asked)
        history, salt, weights = requests.history(), self._chance.choice(SALTS), self._chance.random() < 0.4
        prefix = history[: self._chance.randint(1, len(history))]
        kinds: list[Callable[[], object]] = [
            lambda: client.invalidate_prefix(model, prefix, salt=salt),
            lambda: client.invalidate_model(model, weights=weights),
            lambda: client.invalidate_model(model, prefixes=False),
            lambda: client.invalidate_all(weights=weights),
        ]
        drop = self._chance.choice(kinds)

        def call() -> Check:
            drop()
            return _nothing

        return call

    def _request(self) -> pb.GenerateRequest:
        """Return a request of a conversation, which may have its prompt kept, or ask for guesses of another model."""
        _, draft, requests = self._chance.choice(self._asked)
        request = requests.some()
        scored = request.HasField("prompt_logprobs") or request.samples > 1
        if draft and not scored and self._chance.random() < 0.2:
            request.draft_model, request.draft_tokens, request.speculation = draft, 3, pb.SPECULATION_DRAFT
        if request.cache.mode == pb.CACHE_MODE_UNSPECIFIED:
            request.cache.salt = self._chance.choice(SALTS)
            if self._chance.random() < 0.3:
                request.cache.keep.FromMilliseconds(self._chance.choice(KEEPS))
        return request

    def _compare(self, request: pb.GenerateRequest, answer: Answer) -> None:
        """Compare an answer with a cold one of the same ranks and with the scores of one machine, then remember it."""
        usage = answer.finished.usage
        self.counts.update(answers=1, reused=answer.cached, restored=answer.started.disk_tokens)
        for guesses in usage.guesses:
            self.counts[pb.Speculation.Name(guesses.source)] += guesses.guessed
        try:
            self._cold.check(request, answer)
            self._compare_scores(request, answer)
        except AssertionError as error:
            error.add_note(f"{answer.cached} tokens reused, {answer.started.disk_tokens} of the disks: {request}")
            raise
        for model, _, requests in self._asked:
            if model == request.model:
                requests.remember(request, answer)

    def _compare_scores(self, request: pb.GenerateRequest, answer: Answer) -> None:
        """
        Compare all scores of an answer to tokens with those that one machine gives the same tokens.

        Two halves are summed in another order than the whole, so that one machine may choose otherwise between tokens
        that are as likely. The tokens are those of a cold run of the same ranks.
        """
        prompt, asked = list(request.tokens.ids), _logprobs(scores(answer))
        for index in range(max(1, request.samples) if prompt else 0):
            sample = Sample(answer, index)
            given = _logprobs(sample.logprobs)
            if given or asked:
                alone = pb.GenerateRequest(
                    model=whole(request.model),
                    tokens=pb.TokenIds(ids=[*prompt, *sample.ids]),
                    prompt_logprobs=0,
                    max_tokens=0,
                    cache=pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS),
                )
                expected = _logprobs(scores(self._caller.run(alone)))
                assert asked == pytest.approx(expected[: len(asked)], abs=CLOSE)
                assert given == pytest.approx(expected[len(prompt) - 1 :][: len(given)], abs=CLOSE)

    def _compare_vectors(self, model: str, texts: list[str], vectors: Sequence[Sequence[float]]) -> None:
        """Compare vectors with those of one machine."""
        alone = self._client.embed(whole(model), texts, pooling="mean", cache_mode="bypass", timeout=PATIENCE).vectors
        for vector, expected in zip(vectors, alone, strict=True):
            assert vector == pytest.approx(expected, abs=CLOSE_VECTORS)
        self.counts.update(vectors=len(vectors))


@contextmanager
def figures_asked_often(daemon: RunningDaemon, chance: random.Random) -> Iterator[None]:
    """Ask for figures again and again at random moments, over another connection, until the block ends."""
    ended = threading.Event()

    def ask() -> None:
        with daemon.client() as client:
            while not ended.wait(chance.uniform(0, 0.1)):
                client.stats()

    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(ask)
        try:
            yield
        finally:
            ended.set()
        asking.result()


def _logprobs(entries: Sequence[pb.TokenLogprob]) -> list[float]:
    return [entry.logprob for entry in entries]


def _nothing() -> None:
    """Compare nothing."""
