"""`list_models`, `tokenize` and `embed` of both clients: what they send, and what they make of the answers."""

from __future__ import annotations

from concurrent import futures
from typing import Any

import grpc
import pytest

from mlx_sidecar import Embeddings, EmbedOptions, InvalidArgument, ModelList, ProtocolError, TokenizeOptions, Tokens
from mlx_sidecar import _requests as requests
from mlx_sidecar._texts import EmbedTranscript
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.client.scripted import FakeDaemon, finish

LISTED = pb.ListModelsResponse(
    models=[pb.ListedModel(model="org/name", can=pb.ModelAbilities(tools=True), place=pb.MODEL_PLACE_HUB_CACHE)],
    aliases={"fast": "org/name"},
)
VECTORS = [
    pb.EmbedResponse(embedding=pb.Embedding(index=0, values=[1.0, 0.5])),
    pb.EmbedResponse(embedding=pb.Embedding(index=1, values=[0.0, 0.25])),
    pb.EmbedResponse(
        finished=pb.EmbedFinished(model="m", dimensions=2, pooling=pb.POOLING_MEAN, usage=pb.Usage(prompt_tokens=9))
    ),
]


def test_list_models_comes_back_as_a_tree(fake: FakeDaemon) -> None:
    """Places are lower-case names, and aliases a mapping."""
    with futures.ThreadPoolExecutor() as pool:
        call = pool.submit(fake.client.list_models)
        _, rpc = fake.take_unary("ListModels")
        rpc.terminate(LISTED, (), grpc.StatusCode.OK, "")
        found = call.result()
    assert isinstance(found, ModelList)
    assert (found.models[0].place, found.models[0].can.tools, found.aliases) == (
        "hub_cache",
        True,
        {"fast": "org/name"},
    )


@pytest.mark.parametrize(
    ("prompt", "options", "fields"),
    [
        ("Hi", {}, {"text": "Hi"}),
        ([1, 2], {"count_only": True}, {"tokens": pb.TokenIds(ids=[1, 2]), "count_only": True}),
        (
            [{"role": "user", "content": "Hi"}],
            {"tools": [{"name": "t"}], "enable_thinking": False},
            {
                "chat": pb.Chat(
                    messages=[pb.ChatMessage(role="user", content="Hi")],
                    tools=[pb.Tool(name="t")],
                    enable_thinking=False,
                )
            },
        ),
    ],
)
def test_tokenize_sends_a_prompt_as_generate_does(prompt: Any, options: Any, fields: Any) -> None:
    """The same messages, so that both render alike."""
    assert requests.tokenize_request("m", prompt, **options) == pb.TokenizeRequest(model="m", **fields)


def test_embed_collects_the_vectors_in_order(fake: FakeDaemon) -> None:
    """A single text is a batch of one; the result has what `finished` said."""
    with futures.ThreadPoolExecutor() as pool:
        call = pool.submit(fake.client.embed, "m", "a ship", dimensions=2, pooling="mean", salt="s")
        request, rpc = fake.take_stream("Embed")
        for message in VECTORS:
            rpc.send_response(message)
        finish(rpc)
        result = call.result()
    assert isinstance(result, Embeddings)
    assert result.vectors == ((1.0, 0.5), (0.0, 0.25))
    assert (result.pooling, result.usage.prompt_tokens, result.dimensions) == ("mean", 9, 2)
    cache = pb.CacheOptions(mode=pb.CACHE_MODE_READ_WRITE, salt="s")
    assert request == pb.EmbedRequest(model="m", texts=["a ship"], dimensions=2, pooling=pb.POOLING_MEAN, cache=cache)


def test_embedding_without_end_is_a_protocol_error() -> None:
    """Vectors without `finished` may be too few."""
    transcript = EmbedTranscript()
    transcript.add(VECTORS[0])
    with pytest.raises(ProtocolError):
        transcript.result()


def test_wrong_pooling_is_refused_by_name() -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidArgument, match="'max' is none of last_token, mean, cls"):
        requests.embed_request("m", ["a"], pooling="max")


def test_options_of_texts_are_documented_and_built() -> None:
    """Each option has a line, and reaches the request."""
    for options in (EmbedOptions, TokenizeOptions):
        assert all(f"        {name}: " in str(options.__doc__) for name in options.__annotations__)
    built = set(requests.embed_request.__kwdefaults__ or ())
    assert built == set(EmbedOptions.__annotations__)
    assert set(TokenizeOptions.__annotations__) <= set(requests.generate_request.__kwdefaults__ or ())
    assert Tokens.__dataclass_params__.frozen  # type: ignore[attr-defined]
