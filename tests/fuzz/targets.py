"""The fuzz targets: functions that take bytes, and raise only for an unexpected exception."""

from __future__ import annotations

import asyncio
import atexit
import json
import struct
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from google.protobuf.message import DecodeError, Message

from daemon.cache.identity import ModelSource, identify
from daemon.cache.resolver import EMBEDDED_PATH
from daemon.cache.weight_files import read_header
from daemon.engine.output.tool_calls import Tool
from daemon.engine.prompt.chat_templates import Templates
from daemon.engine.prompt.preparation import prepare_prompt
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.engine.prompt.tokenizers import Tokenizers
from daemon.engine.template_worker import MAX_RENDERED
from daemon.server.generate_validation import check_generate
from daemon.server.validation import check_invalidate, check_load
from daemon.shared.config import ConfigError
from daemon.shared.config_sources import from_json, load_config
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.frames import FrameError, read_frame
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.answer_checks import markup_of, read
from tests.support.call_writer import HANDS

Target = Callable[[bytes], None]

_MESSAGES = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "é \n <s>"}]

_CHECKS: list[tuple[type[Message], Callable[..., None]]] = [
    (pb.GenerateRequest, check_generate),
    (pb.GetOrLoadRequest, check_load),
    (pb.InvalidateRequest, check_invalidate),
]


def frames(data: bytes) -> None:
    """Read a stream of frames, from either end: messages, the end, or FrameError."""

    async def read(kind: type[ipc.Command] | type[ipc.Event]) -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        while await read_frame(reader, kind) is not None:
            pass

    for kind in (ipc.Command, ipc.Event):
        with suppress(FrameError):
            _loop().run_until_complete(read(kind))


def header(data: bytes) -> None:
    """Check a safetensors file: a description that fits the file, or MODEL_CORRUPT."""
    path = _folder() / "model.safetensors"
    path.write_bytes(data)
    with _only(Reason.MODEL_CORRUPT):
        tensors = json.loads(read_header(path))
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
        assert max(ends, default=0) <= len(data), "a tensor lies beyond the end of its file"


def model_config(data: bytes) -> None:
    """Identify a model with this config.json: what the rest of the daemon asks of it, or a refusal."""
    path = _folder() / "model"
    if not path.is_dir():
        path.mkdir()
        (path / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    (path / "config.json").write_bytes(data)
    with _only(Reason.MODEL_CORRUPT, Reason.MODEL_UNSUPPORTED):
        source = identify("fuzzed", path)
        assert source.architecture
        assert source.context_length >= 0
        assert source.vocab_size >= 0


def settings(data: bytes) -> None:
    """Read config.toml, the engine's JSON and a variable: settings, or ConfigError."""
    state = _folder() / "state"
    state.mkdir(exist_ok=True)
    (state / "config.toml").write_bytes(data)
    with suppress(ConfigError):
        load_config({"state_dir": str(state)}, {}, state)
    with suppress(ConfigError, ValueError):
        text = data.decode()
        with suppress(ConfigError):
            load_config({}, {"MLX_SIDECAR_MODEL_TTL": text, "MLX_SIDECAR_MAX_BATCH": text}, state)
        if isinstance(json.loads(text), dict):
            from_json(text)


def requests(data: bytes) -> None:
    """Validate whatever parses as a request: nothing, or INVALID_ARGUMENT with a field."""
    for kind, check in _CHECKS:
        with suppress(DecodeError), _only(Reason.INVALID_ARGUMENT):
            check(kind.FromString(data))


def prompts(data: bytes) -> None:
    """Render and tokenise whatever is a valid Generate request with the embedded model's tokenizer."""
    with suppress(DecodeError), _only(Reason.INVALID_ARGUMENT, Reason.CONTEXT_LENGTH_EXCEEDED):
        request = pb.GenerateRequest.FromString(data)
        check_generate(request)
        source, tokenizer = _embedded()
        ids = prepare_prompt(request, source, tokenizer).tokens
        assert ids
        assert isinstance(tokenizer.decode(ids), str)


def text(data: bytes) -> None:
    """Tokenise any text, as a prompt and as a message of a conversation."""
    words = data.decode(errors="ignore")
    prompts(pb.GenerateRequest(model="embedded", text=words, max_tokens=1).SerializeToString())
    messages = [pb.ChatMessage(role="user", content=words), pb.ChatMessage(role=words[:8] or "user", content=words[8:])]
    prompts(pb.GenerateRequest(model="embedded", chat=pb.Chat(messages=messages), max_tokens=1).SerializeToString())


def templates(data: bytes) -> None:
    """Render a conversation with any chat template: text, or a refusal, and the next one is rendered as ever."""
    words = data.decode(errors="surrogateescape")  # half characters too: JSON can write them
    with _only(Reason.INVALID_ARGUMENT):
        rendered = _templates().render(words, _MESSAGES, {"add_generation_prompt": True, "bos_token": "<s>"})
        assert len(rendered.encode()) <= 4 * MAX_RENDERED
    assert _templates().render("{{ messages[0].content }}", _MESSAGES, {}) == _MESSAGES[0]["content"]


def calls(data: bytes) -> None:
    """Read an answer in a notation that its first byte picks, whole and in pieces: no character is lost."""
    hand = list(HANDS.values())[(data or b"\0")[0] % len(HANDS)]
    written, marks = data[1:].decode(errors="ignore"), markup_of(hand)
    tools = [Tool("f", "", {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}})]
    for opened in (False, True):
        results = [read(marks, tools, pieces, opened=opened).without_ids() for pieces in ([written], list(written))]
        assert results[0] == results[1]


TARGETS: Mapping[str, Target] = {
    target.__name__: target
    for target in (frames, header, model_config, settings, requests, prompts, text, templates, calls)
}
"""All targets by name."""

CORPUS = Path(__file__).parent / "corpus"
"""A folder for each target, with inputs that reach far into it or once broke it."""


class _only(suppress):  # noqa: N801 - reads as the statement that it is
    """Suppress SidecarErrors of some reasons; those that are the caller's fault name a field."""

    def __init__(self, *reasons: Reason) -> None:
        super().__init__(SidecarError)
        self._reasons = reasons

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        if not isinstance(error, SidecarError):
            return False
        assert error.reason in self._reasons, f"{error.reason}: {error.message}"
        assert error.field or error.reason is not Reason.INVALID_ARGUMENT, f"no field: {error.message}"
        return True


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="mlxs-fuzz-"))


@cache
def _embedded() -> tuple[ModelSource, Tokenizer]:
    source = identify("embedded", EMBEDDED_PATH)
    return source, Tokenizers(_templates()).get(source)


@cache
def _templates() -> Templates:
    one = Templates(time.monotonic)
    atexit.register(one.close)
    return one
