"""Bad input gets a typed error that names the field or the file, and a daemon that still serves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import mlx_sidecar
from mlx_sidecar import Client, Message
from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.support.daemons import RunningDaemon
from tests.support.models import copy_of_embedded, truncated, with_config


@pytest.fixture(name="client")
def _client(daemon: RunningDaemon) -> Iterator[Client]:
    """Return a client, and check afterwards that the daemon still serves on the same engine."""
    with daemon.client() as client:
        before = client.stats().engine
        yield client
        assert client.complete("embedded", "The code of the", max_tokens=2).usage.completion_tokens > 0
        after = client.stats().engine
        assert (after.pid, after.restarts) == (before.pid, before.restarts)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"prompt": ""}, "text"),
        ({"prompt": []}, "tokens.ids"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": math.nan}, "sampling.temperature"),
        ({"temperature": -1.0}, "sampling.temperature"),
        ({"temperature": math.inf}, "sampling.temperature"),
        ({"top_p": 0.0}, "sampling.top_p"),
        ({"top_p": 1.5}, "sampling.top_p"),
        ({"top_k": -1}, "sampling.top_k"),
        ({"min_p": 2.0}, "sampling.min_p"),
        ({"repetition_penalty": 0.0}, "sampling.repetition_penalty"),
        ({"logit_bias": {5: 1000.0}}, "sampling.logit_bias[5]"),
        ({"prompt": [1, 2, 1_000_000]}, "tokens.ids[2]"),
        ({"stop_token_ids": [1_000_000]}, "stop.token_ids[0]"),
        ({"logit_bias": {1_000_000: 1.0}}, "sampling.logit_bias[1000000]"),
        ({"stop": [""]}, "stop.strings[0]"),
        ({"stop": ["x"] * 17}, "stop.strings"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"salt": "x" * 129}, "cache.salt"),
        ({"request_id": "two words"}, "request_id"),
        ({"priority": 3}, "priority"),
        ({"priority": -3}, "priority"),
        ({"draft_tokens": 4}, "draft_tokens"),
        ({"draft_model": "embedded", "draft_tokens": 17}, "draft_tokens"),
        ({"draft_model": "x" * 1025}, "draft_model"),
        ({"speculation": "draft"}, "speculation"),
        ({"speculation": "mtp"}, "speculation"),
        ({"draft_model": "embedded", "speculation": "off"}, "speculation"),
        ({"model": ""}, "model"),
        ({"prompt": [Message("", "hello")]}, "chat.messages[0].role"),
    ],
)
def test_out_of_range_value_is_refused_with_its_field(client: Client, options: dict[str, object], field: str) -> None:
    """A value out of range is INVALID_ARGUMENT with the path of its field."""
    request = {"model": "embedded", "prompt": "hello", **options}
    with pytest.raises(mlx_sidecar.InvalidArgument) as caught:
        client.complete(request.pop("model"), request.pop("prompt"), **request)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert caught.value.code == "INVALID_ARGUMENT"


def test_a_missing_prompt_is_refused(daemon: RunningDaemon) -> None:
    """A request without any form of prompt is refused."""
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel, pytest.raises(grpc.RpcError) as caught:
        list(SidecarServiceStub(channel).Generate(pb.GenerateRequest(model="embedded")))
    status = rpc_status.from_call(caught.value)
    info = error_details_pb2.ErrorInfo()
    violation = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(violation)
    assert (info.domain, info.reason) == ("mlx-sidecar", "INVALID_ARGUMENT")
    assert violation.field_violations[0].field == "prompt"


def test_too_long_prompt_is_refused_with_both_lengths(client: Client) -> None:
    """A prompt that leaves no room for max_tokens is refused as well."""
    with pytest.raises(mlx_sidecar.ContextLengthExceeded, match=r"5000.*4096"):
        client.complete("embedded", [7] * 5000)
    with pytest.raises(mlx_sidecar.ContextLengthExceeded, match=r"5000 tokens, but.*4096") as caught:
        client.complete("embedded", [7] * 5000, max_tokens=97)
    assert caught.value.field == "tokens"  # no max_tokens would do
    with pytest.raises(mlx_sidecar.ContextLengthExceeded) as caught:
        client.complete("embedded", [7] * 4000, max_tokens=97)
    figures = {"prompt_tokens": "4000", "max_tokens": "97", "context_length": "4096"}
    assert caught.value.metadata.items() > figures.items()
    assert caught.value.metadata["request_id"].startswith("req-")
    assert caught.value.field == "max_tokens"


def test_a_request_of_ten_megabytes_is_refused(client: Client) -> None:
    """The daemon's own limit refuses a large request with its own error, before anything is tokenized."""
    with pytest.raises(mlx_sidecar.InvalidArgument) as caught:
        client.complete("embedded", "x" * 10_000_000)
    assert caught.value.field == "request"


@pytest.mark.parametrize("name", ["nobody", "../../etc", "org/name/more", "/no/such/directory", "a/..", "file:///x"])
def test_an_unknown_model_is_not_found(client: Client, name: str) -> None:
    """Generate and GetOrLoad both answer NOT_FOUND."""
    with pytest.raises(mlx_sidecar.ModelNotFound):
        client.complete(name, "hello")
    with pytest.raises(mlx_sidecar.ModelNotFound):
        client.load(name)


def test_uncached_hub_model_is_not_downloaded_unasked(client: Client) -> None:
    """If the Hub cannot be reached, or is not to be asked, a permitted download fails with that reason."""
    with pytest.raises(mlx_sidecar.ModelNotCached, match="mlx-sidecar pull"):
        client.complete("nobody/nothing-4bit", "hello")
    with pytest.raises(mlx_sidecar.ModelNotCached, match=r"cannot be reached|HF_HUB_OFFLINE was set"):
        client.load("nobody/nothing-4bit", allow_download=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": 7}', '{"model_type": "llama"}', "[" * 100_000])
def test_a_broken_config_is_corrupt(client: Client, folder: Path, text: str) -> None:
    """The engine survives any broken config.json."""
    with pytest.raises(mlx_sidecar.ModelCorrupt):
        client.load(str(with_config(folder, text)))


def test_truncated_weights_are_corrupt(client: Client, folder: Path) -> None:
    """Truncation is found in the header, before MLX maps the file."""
    with pytest.raises(mlx_sidecar.ModelCorrupt, match="truncated"):
        client.load(str(truncated(folder)))


def test_weights_that_contradict_config_are_corrupt(client: Client, folder: Path) -> None:
    """The shapes of weights are checked against the architecture."""
    with pytest.raises(mlx_sidecar.ModelCorrupt):
        client.load(str(copy_of_embedded(folder, hidden_size=64)))


def test_an_unknown_architecture_is_unsupported(client: Client, folder: Path) -> None:
    """The error names the architecture that mlx-lm does not know."""
    with pytest.raises(mlx_sidecar.ModelUnsupported, match="never_heard_of"):
        client.load(str(copy_of_embedded(folder, model_type="never_heard_of")))


def test_model_with_custom_code_is_refused_unexecuted(client: Client, folder: Path) -> None:
    """`model_file` in config.json would let a downloaded model run Python; it is refused."""
    path = copy_of_embedded(folder, model_file="evil.py")
    proof = folder / "ran"
    (path / "evil.py").write_text(f"open({str(proof)!r}, 'w')")
    with pytest.raises(mlx_sidecar.ModelUnsupported, match="own code"):
        client.load(str(path))
    assert not proof.exists()


def test_a_damaged_tokenizer_is_corrupt(client: Client, folder: Path) -> None:
    """The tokenizer is loaded in the engine, at the first prompt that needs it."""
    path = copy_of_embedded(folder)
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(mlx_sidecar.ModelCorrupt, match="tokenizer"):
        client.complete(str(path), "hello")


def test_undecodable_calls_leave_the_daemon_serving(daemon: RunningDaemon) -> None:
    """gRPC itself answers undecodable bytes and unknown methods."""
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        garbage: Any = channel.unary_unary("/mlx_sidecar.v1.SidecarService/Stats")
        with pytest.raises(grpc.RpcError):
            garbage(b"\xff" * 100)
        unknown: Any = channel.unary_unary("/mlx_sidecar.v1.SidecarService/Nothing")
        with pytest.raises(grpc.RpcError) as caught:
            unknown(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
