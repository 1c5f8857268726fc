"""Results mirror the messages field for field, and say in plain values what the messages say."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message as Proto

import mlx_sidecar
from mlx_sidecar import Stats, _texts
from mlx_sidecar._decode import decode
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.client.scripted import FakeDaemon

MIRRORS: list[tuple[type[Any], type[Proto]]] = [
    (mlx_sidecar.DaemonStats, pb.DaemonStats),
    (mlx_sidecar.Delta, pb.Delta),
    (mlx_sidecar.EngineStats, pb.EngineStats),
    (mlx_sidecar.Finished, pb.Finished),
    (mlx_sidecar.GeneratedToolCall, pb.GeneratedToolCall),
    (mlx_sidecar.Invalidated, pb.InvalidateResponse),
    (mlx_sidecar.KeptPrefix, pb.KeptPrefix),
    (mlx_sidecar.GroupStats, pb.GroupStats),
    (mlx_sidecar.ListedModel, pb.ListedModel),
    (mlx_sidecar.LoadProgress, pb.LoadProgress),
    (mlx_sidecar.MemoryStats, pb.MemoryStats),
    (mlx_sidecar.Miss, pb.Miss),
    (mlx_sidecar.MissCounts, pb.MissCounts),
    (mlx_sidecar.ModelAbilities, pb.ModelAbilities),
    (mlx_sidecar.ModelCacheStats, pb.ModelCacheStats),
    (mlx_sidecar.ModelInfo, pb.ModelInfo),
    (mlx_sidecar.ModelList, pb.ListModelsResponse),
    (mlx_sidecar.ModelStats, pb.ModelStats),
    (mlx_sidecar.PrefillProgress, pb.PrefillProgress),
    (mlx_sidecar.PrefixCacheStats, pb.PrefixCacheStats),
    (mlx_sidecar.PromptLogprobs, pb.PromptLogprobs),
    (mlx_sidecar.RankStats, pb.RankStats),
    (mlx_sidecar.Started, pb.Started),
    (mlx_sidecar.Stats, pb.StatsResponse),
    (mlx_sidecar.StuckWork, pb.StuckWork),
    (mlx_sidecar.Timings, pb.Timings),
    (mlx_sidecar.TokenLogprob, pb.TokenLogprob),
    (mlx_sidecar.Tokens, pb.TokenizeResponse),
    (mlx_sidecar.TopLogprob, pb.TopLogprob),
    (mlx_sidecar.UnreadPlace, pb.UnreadPlace),
    (mlx_sidecar.Usage, pb.Usage),
    (_texts.EmbedFinished, pb.EmbedFinished),
    (_texts.Embedding, pb.Embedding),
]


@pytest.mark.parametrize(("result", "message"), MIRRORS, ids=[result.__name__ for result, _ in MIRRORS])
def test_a_result_has_every_field_of_its_message(result: type[Any], message: type[Proto]) -> None:
    """In the same order, with nothing left out, and each one documented."""
    names = [field.name for field in dataclasses.fields(result)]
    assert names == [field.name for field in message.DESCRIPTOR.fields]
    assert all(f"{name}: " in str(result.__doc__) for name in names)


@pytest.mark.parametrize(("result", "message"), MIRRORS, ids=[result.__name__ for result, _ in MIRRORS])
def test_a_result_has_the_types_that_it_declares(result: type[Any], message: type[Proto]) -> None:
    """Also when the message is empty, as it may be from an older daemon."""
    value = decode(result, message())
    for name, hint in typing.get_type_hints(result).items():
        origin = typing.get_origin(hint)
        expected = origin if origin in (tuple, Mapping) else hint
        assert isinstance(getattr(value, name), expected)


@pytest.mark.parametrize("result", [result for result, _ in MIRRORS], ids=lambda result: result.__name__)
def test_a_result_is_frozen_and_slotted(result: type[Any]) -> None:
    """Nobody can change what the daemon said."""
    assert result.__dataclass_params__.frozen
    assert "__dict__" not in dir(result)


def test_stats_come_back_as_a_tree(fake: FakeDaemon) -> None:
    """Durations are seconds, enums lower-case names, and what is unset is None."""
    response = ParseDict(
        {
            "daemon": {"version": "1.2", "pid": 5, "uptime": "90.5s", "draining": True},
            "modelCache": {"totalHits": 2**40, "hitRate": 0.75},
            "models": [{"info": {"model": "m", "evicted": ["o"]}, "state": "MODEL_STATE_READY", "idle": "0s"}],
            "prefixCache": {"bytes": 7},
            "engine": {"state": "ENGINE_STATE_STALLED", "stepAge": "2s"},
            "memory": {"limitBytes": 9},
        },
        pb.StatsResponse(),
    )
    with futures.ThreadPoolExecutor(1) as pool:
        call = pool.submit(fake.client.stats)
        request, rpc = fake.take_unary("Stats")
        rpc.terminate(response, (), grpc.StatusCode.OK, "")
    stats = call.result()
    assert isinstance(stats, Stats)
    assert request == pb.StatsRequest()
    assert (stats.daemon.version, stats.daemon.uptime, stats.daemon.draining) == ("1.2", 90.5, True)
    assert (stats.model_cache.total_hits, stats.model_cache.hit_rate) == (2**40, 0.75)
    assert stats.model_cache.oldest_entry_age is None
    (model,) = stats.models
    assert (model.info.model, model.info.evicted, model.state) == ("m", ("o",), "ready")
    assert (model.idle, model.expires_in, model.info.outcome) == (0.0, None, "unspecified")
    assert (stats.prefix_cache.bytes, stats.engine.state, stats.engine.step_age) == (7, "stalled", 2.0)
    assert stats.memory.limit_bytes == 9


def test_results_compare_hash_and_convert_to_dicts() -> None:
    """They are values."""
    one, other = (decode(Stats, pb.StatsResponse(engine={"queued": 3})) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert dataclasses.asdict(one)["engine"]["queued"] == 3
