"""A day of an agent on one daemon: the same calls from both Python clients and from Node, and nothing is left of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as Proto

from mlx_sidecar import AsyncClient, Client, Message, ModelList, Stats, Tool, _requests
from mlx_sidecar._decode import decode
from mlx_sidecar._texts import EmbedTranscript, Tokens
from mlx_sidecar._transcript import GenerateTranscript
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.faults.watch import Held, back_to
from tests.support.agents_day import CALLS, QUESTION, THOUGHTS, Ask, Day, a_day, model
from tests.support.daemons import RunningDaemon, wait_until
from tests.support.models import embedding_model

ROOT = Path(__file__).resolve().parents[2]
NODE = ROOT / "tests" / "node"


@pytest.fixture(name="served", scope="module")
def _served() -> Iterator[RunningDaemon]:
    """Return a daemon with a model to talk to and one for embeddings below a root, both loaded."""
    with tempfile.TemporaryDirectory(prefix="mlxs-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "roots").mkdir()
        model(folder / "roots" / "chat")
        embedding_model(folder / "roots" / "vectors")
        daemon = RunningDaemon.start(folder, model_roots=str(folder / "roots"), warmup_tokens="0")
        with daemon.client() as client:
            for one in models(daemon):
                client.load(one)
            client.embed(models(daemon)[1], "a ship")
            client.tokenize(models(daemon)[0], [{"role": "user", "content": "Say it."}])
        yield daemon
        assert daemon.stop() == 0


def models(daemon: RunningDaemon) -> tuple[str, str]:
    """Return the model to talk to, and the one for embeddings."""
    return str(daemon.folder / "roots" / "chat"), str(daemon.folder / "roots" / "vectors")


@contextmanager
def nothing_left(daemon: RunningDaemon) -> Iterator[None]:
    """Check that a daemon holds afterwards what it held before."""
    before = Held.by(daemon)
    yield
    back_to(before, daemon)


def drive(day: Day, answer: Callable[[Ask], Any]) -> None:
    """Make the calls of a day."""
    ask = next(day, None)
    while ask is not None:
        try:
            ask = day.send(answer(ask))
        except StopIteration:
            return


def test_agents_day_from_python(served: RunningDaemon) -> None:
    def answer(ask: Ask) -> Any:
        answered = getattr(client, ask.method)(*ask.arguments, **ask.options)
        if ask.method != "generate":
            return answered
        with answered as stream:
            return list(stream)

    with nothing_left(served), Client(served.socket) as client:
        drive(a_day(*models(served), "sync"), answer)


async def test_agents_day_from_asyncio(served: RunningDaemon) -> None:
    async def answer(client: AsyncClient, ask: Ask) -> Any:
        answered = getattr(client, ask.method)(*ask.arguments, **ask.options)
        if ask.method != "generate":
            assert isinstance(answered, Awaitable)
            return await answered
        async with answered as stream:
            return [event async for event in stream]

    with nothing_left(served):
        async with AsyncClient(served.socket) as client:
            day = a_day(*models(served), "async")
            ask: Ask | None = next(day)
            while ask is not None:
                reply = await answer(client, ask)
                try:
                    ask = day.send(reply)
                except StopIteration:
                    ask = None


def test_agents_day_from_node(served: RunningDaemon, tmp_path: Path) -> None:
    """The program in Node has nothing but the proto file and stock gRPC."""
    if "CI" not in os.environ and not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node or npm is not installed")
    for name in ("package.json", "package-lock.json", "agent.mjs"):
        shutil.copy(NODE / name, tmp_path)
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    command = ["node", "agent.mjs", str(served.socket), str(ROOT / "protos")]
    with (
        nothing_left(served),
        subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program,
    ):
        drive(a_day(*models(served), "node"), lambda ask: by_node(program, ask))
        program.communicate(timeout=60)
    assert program.returncode == 0


def test_program_of_the_guide_answers(served: RunningDaemon, tmp_path: Path) -> None:
    """The program of docs/agents.md, copied out."""
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "agents.md").read_text(), re.DOTALL)
    (tmp_path / "agent.py").write_text(program)
    done = run([sys.executable, "agent.py", models(served)[0], QUESTION], served, tmp_path)
    assert (done.returncode, done.stdout) == (0, "All are found.\n"), done.stderr
    assert re.match(r"\d+ of 4096 tokens\n", done.stderr)
    assert done.stderr.count('{"word": "') == CALLS
    assert done.stderr.count("reused") >= 1


def test_warning_is_told_and_logged(served: RunningDaemon) -> None:
    """The warning names the field; the log counts it, because it quotes the request."""
    loose = Tool("mix", "", {"type": "object", "properties": {"colors": {"type": "array", "uniqueItems": True}}})
    with Client(served.socket) as client:
        talk = [Message("user", "Say it.")]
        answer = client.complete(models(served)[0], talk, tools=[loose], request_id="loose")
    assert answer.text == "That is said."
    (warning,) = answer.warnings
    assert warning.startswith("chat.tools[0].parameters_json is not kept to: ")
    wait_until(lambda: any(line.get("request_id") == "loose" for line in served.log()), "the call is logged")
    (line,) = (line for line in served.log() if line.get("request_id") == "loose")
    assert line["warnings"] == 1


@pytest.mark.parametrize("json_", [False, True])
def test_run_prints_samples_of_limited_thoughts(served: RunningDaemon, tmp_path: Path, json_: bool) -> None:
    """Options of `run` together: each sample has its own thoughts, end and usage."""
    asked = ["run", models(served)[0], "Think about it.", "--samples", "2", "--temperature", "1", "--think-budget", "2"]
    done = run([sys.executable, "-m", "daemon", *asked, *(["--json"] if json_ else [])], served, tmp_path)
    assert done.returncode == 0, done.stderr
    if json_:
        samples = json.loads(done.stdout)
        assert [sample["text"] for sample in samples] == ["It is done."] * 2
        assert [sample["usage"]["reasoning_tokens"] for sample in samples] == [THOUGHTS + 2] * 2
        assert len({sample["seed"] for sample in samples}) == 2
    else:
        lines = done.stdout.splitlines()
        assert lines[1::2] == ["It is done."] * 2
        assert all(re.fullmatch(rf"--- sample {index}, seed \d+ ---", lines[2 * index]) for index in (0, 1))


def run(command: list[str], served: RunningDaemon, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that finds the daemon by itself."""
    environ = {**served.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )


def by_node(program: subprocess.Popen[str], ask: Ask) -> Any:
    """Have the program in Node make a call, and return what the Python client would."""
    method, kind, request = request_of(ask)
    assert program.stdin is not None
    assert program.stdout is not None
    print(json.dumps({"method": method, "request": to_node(request)}), file=program.stdin, flush=True)
    messages = [from_node(kind(), message) for message in json.loads(program.stdout.readline())]
    if ask.method == "generate":
        transcript = GenerateTranscript(request.samples)
        return [transcript.add(message) for message in messages]
    if ask.method == "embed":
        vectors = EmbedTranscript()
        for message in messages:
            vectors.add(message)
        return vectors.result()
    result = {"list_models": ModelList, "tokenize": Tokens, "stats": Stats}[ask.method]
    return decode(result, *messages)


def request_of(ask: Ask) -> tuple[str, type[Proto], Any]:
    """Return the RPC of a call, the kind of its responses, and its request."""
    arguments, options = ask.arguments, ask.options
    match ask.method:
        case "generate":
            return "Generate", pb.GenerateResponse, _requests.generate_request(*arguments, **options)
        case "tokenize":
            return "Tokenize", pb.TokenizeResponse, _requests.tokenize_request(*arguments, **options)
        case "embed":
            return "Embed", pb.EmbedResponse, _requests.embed_request(*arguments, **options)
        case "list_models":
            return "ListModels", pb.ListModelsResponse, pb.ListModelsRequest()
    return "Stats", pb.StatsResponse, pb.StatsRequest()


def to_node(message: Proto) -> dict[str, Any]:
    """Return a message as Node's loader of proto files takes it."""

    def plain(field: FieldDescriptor, value: Any) -> Any:
        return to_node(value) if field.message_type else value

    fields: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type and field.message_type.GetOptions().map_entry:
            fields[field.name] = dict(value)
        else:
            fields[field.name] = [plain(field, one) for one in value] if field.is_repeated else plain(field, value)
    return fields


def from_node(message: Any, fields: dict[str, Any]) -> Any:
    """Fill a message with the fields that Node read, and return it."""
    for name, value in fields.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        if field.message_type and field.message_type.GetOptions().map_entry:
            getattr(message, name).update(value)
        elif field.message_type and field.is_repeated:
            for one in value:
                from_node(getattr(message, name).add(), one)
        elif field.message_type:
            getattr(message, name).SetInParent()
            from_node(getattr(message, name), value)
        elif field.is_repeated:
            getattr(message, name).extend(scalar(field, one) for one in value)
        else:
            setattr(message, name, scalar(field, value))
    return message


def scalar(field: FieldDescriptor, value: Any) -> Any:
    """Return a value as the field takes it: Node writes 64-bit integers as text, and values of enums as names."""
    if field.enum_type:
        return field.enum_type.values_by_name[value].number
    whole = field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
    return int(value) if whole else value
