"""What the tests of the command line share: a fake client, and how to run the program against it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from daemon.cli import main
from daemon.cli.session import Session
from mlx_sidecar import (
    Client,
    Completion,
    DaemonStats,
    Delta,
    Embeddings,
    EngineStats,
    Finished,
    HttpStats,
    Invalidated,
    ListedModel,
    MemoryStats,
    Miss,
    ModelAbilities,
    ModelCacheStats,
    ModelInfo,
    ModelList,
    ModelStats,
    PrefixCacheStats,
    Started,
    Stats,
    Timings,
    Tokens,
    Usage,
)

MIB = 2**20
GIB = 2**30
INFO = ModelInfo(
    model="org/name",
    fingerprint="f" * 64,
    architecture="qwen3",
    size_bytes=3 * GIB,
    num_layers=8,
    context_length=4096,
    max_request_tokens=4096,
    vocab_size=32000,
    kv_bytes_per_token=2048,
    prefix_reuse="blocks",
    outcome="loaded",
    load_time=2.5,
    evicted=(),
    warmup_time=0.25,
)
USAGE = Usage(prompt_tokens=1426, cached_tokens=1408, completion_tokens=11)
TIMINGS = Timings(queue=0.0, load=0.0, lookup=0.001, restore=0.002, prefill=0.09, decode=0.5, first_token=0.1)
MODEL_STATS = ModelStats(
    info=INFO, state="ready", in_use=0, use_count=3, age=60.0, idle=30.0, expires_in=240.0, pinned=False
)
STATS = Stats(
    daemon=DaemonStats(
        "0.1.0", 77, 7200.0, False, "0.32.4", "0.32.2", "cpu", HttpStats("serving", "127.0.0.1:8080", 78)
    ),
    model_cache=ModelCacheStats(1, 4, 3, 1, 0.75, 3 * GIB, 24 * GIB, 0, None),
    models=(MODEL_STATS,),
    prefix_cache=PrefixCacheStats(1234, 262144, 16, GIB, 4 * GIB, 9, 10, 8, 0.8, 1000, 870, 50, 0, 0, 0),
    engine=EngineStats("ready", 0, 0.0, 0, 0, 0, 100, 200, 0, 0, 78),
    memory=MemoryStats(1, 2, 3, 4, 5, 6, 7, 8),
)
LISTED = ListedModel(
    model="org/name",
    aliases=("fast",),
    place="hub_cache",
    loaded=False,
    complete=True,
    size_bytes=3 * GIB,
    disk_bytes=4 * GIB,
    fits=True,
    architecture="qwen3",
    context_length=4096,
    quantization_bits=4,
    revision="c" * 40,
    can=ModelAbilities(chat=True, tools=True, reasoning=False, embeddings=False),
    problem="",
    path="/hub/models--org--name/snapshots/c",
    last_used_unix_seconds=0,
)
NOTHING = Invalidated(models=(), blocks=0, bytes_freed=0, bytes_in_use=0)


class FakeStream:
    """Yields events, raising those that are exceptions; then has a result."""

    def __init__(self, events: list[Any], result: Any) -> None:
        self._events = iter(events)
        self._result = result
        self.closed = False

    def __iter__(self) -> Iterator[Any]:
        for event in self._events:
            if isinstance(event, BaseException):
                raise event
            yield event

    def close(self) -> None:
        self.closed = True

    def result(self) -> Any:
        for _ in self:
            pass
        return self._result

    def results(self) -> Any:
        self.result()
        return self._result if isinstance(self._result, tuple) else (self._result,)

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed = True


class FakeClient:
    """Answers from attributes and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.socket: Path | None = None
        self.error: Exception | None = None
        self.progress: list[Any] = []
        self.info = INFO
        self.miss: Miss | None = None
        self.disk_tokens = 0
        self.warnings: tuple[str, ...] = ()
        self.deltas: list[Any] = ["Hel", "lo"]
        self.reason = "stop"
        self.state = STATS
        self.dropped = Invalidated(("org/name",), 12, 3 * GIB, 0)
        self.streams: list[FakeStream] = []
        self.answer: FakeStream | None = None
        self.listed = ModelList((LISTED,), (), 24 * GIB, truncated=False, aliases={"fast": "org/name"})

    def called(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, options) for called, args, options in self.calls if called == name]

    def _note(self, name: str, *args: Any, **options: Any) -> None:
        self.calls.append((name, args, options))
        if self.error is not None:
            raise self.error

    def get_or_load(self, model: str, **options: Any) -> FakeStream:
        self._note("get_or_load", model, **options)
        return FakeStream(self.progress, self.info)

    def generate(self, model: str, prompt: Any, **options: Any) -> FakeStream:
        self._note("generate", model, prompt, **options)
        text = "".join(one for one in self.deltas if isinstance(one, str))
        events = [Delta(one, (), ()) if isinstance(one, str) else one for one in self.deltas]
        begin, end = Started("r-1", model, 1426, 1408), Finished(self.reason, "", USAGE, TIMINGS)
        reasoning = "".join(one.reasoning for one in self.deltas if isinstance(one, Delta))
        said = {"reasoning": reasoning, "miss": self.miss, "warnings": self.warnings, "disk_tokens": self.disk_tokens}
        result = Completion(text, (1, 2), (), self.reason, "", USAGE, TIMINGS, "r-1", model, **said)  # type: ignore[arg-type]
        self.streams.append(self.answer or FakeStream([begin, *events, end], result))
        return self.streams[-1]

    def invalidate_model(self, model: str, **options: Any) -> Invalidated:
        self._note("invalidate_model", model, **options)
        return self.dropped

    def invalidate_prefix(self, model: str, prefix: str, **options: Any) -> Invalidated:
        self._note("invalidate_prefix", model, prefix, **options)
        return self.dropped

    def invalidate_all(self, **options: Any) -> Invalidated:
        self._note("invalidate_all", **options)
        return self.dropped

    def load(self, model: str, **options: Any) -> ModelInfo:
        self._note("load", model, **options)
        return self.info

    def list_models(self) -> ModelList:
        self._note("list_models")
        return self.listed

    def tokenize(self, model: str, prompt: Any, **options: Any) -> Tokens:
        self._note("tokenize", model, prompt, **options)
        return Tokens((5, 6, 7), 3, "a text", 4096, 737)

    def embed(self, model: str, texts: Any, **options: Any) -> Embeddings:
        self._note("embed", model, texts, **options)
        vectors = tuple((0.5, float(number)) for number, _ in enumerate(texts))
        return Embeddings(vectors, model, 2, "last_token", True, USAGE, 0.1)

    def stats(self, **options: Any) -> Stats:
        self._note("stats", **options)
        return self.state

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


@pytest.fixture(name="client")
def client_fixture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeClient:
    """A fake client, in an empty home that is also the working directory."""
    for name in [name for name in os.environ if name.startswith("MLX_SIDECAR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    return FakeClient()


def run_cli(client: FakeClient, *args: str, stdin: str | bytes = "") -> Result:
    """Run the program against the fake client."""

    def connect(socket: Path) -> Client:
        client.socket = socket
        return cast("Client", client)

    return CliRunner().invoke(main, args, input=stdin, obj=Session(connect, lambda session, socket, ask: None))


def pretend_terminal(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make "stdin", "stdout" or "stderr" a terminal in the eyes of the commands."""
    for module in (
        "commands.run",
        "commands.invalidate",
        "commands.launch",
        "commands.rm",
        "output.answer",
        "output.progress",
        "commands.top",
    ):
        for name in names:
            monkeypatch.setattr(f"daemon.cli.{module}.{name}_is_terminal", lambda: True, raising=False)


def pretend_typing(monkeypatch: pytest.MonkeyPatch, *lines: str) -> list[Path | None]:
    """Hold conversations on a terminal where these lines are typed, then Ctrl-D; return where their histories are."""
    pretend_terminal(monkeypatch, "stdin", "stdout")
    histories: list[Path | None] = []
    typed = iter(lines)

    class Typed:
        def __init__(self, history: Path | None) -> None:
            histories.append(history)

        def ask(self) -> str | None:
            return next(typed, None)

    monkeypatch.setattr("daemon.cli.terminal.prompt.Terminal", Typed)
    return histories
