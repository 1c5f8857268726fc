"""Models with another size in memory than on disk, and models that are too large to be read."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from daemon.cache.digests import TakesLong
from daemon.cache.identity import ModelKey, ModelSource, identify
from daemon.cache.mlx import loader
from daemon.cache.mlx.module_size import MOST_MODULES
from daemon.cache.resolver import Wanted, Watcher
from daemon.engine.calls.giants import GIANT_BYTES
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.builders import safetensors
from tests.support.models import copy_of_embedded, heavy_model, random_model
from tests.unit.engine.harness import MEASURED, TESTED, Harness

MIB = 1 << 20
BUDGET_MB = 64


@pytest.fixture(name="small")
def _small(tmp_path: Path) -> Iterator[Harness]:
    """Return an engine with a small budget. Check afterwards that it kept the budget and has nothing in use."""
    harness = Harness(state_dir=tmp_path / "state", model_cache_mb=BUDGET_MB)
    harness.run(pb.GetOrLoadRequest(model="embedded"))
    mx.reset_peak_memory()
    yield harness
    harness.settle()
    assert mx.get_peak_memory() < 2 * BUDGET_MB * MIB
    assert harness.run(pb.GetOrLoadRequest(model="embedded")).info.size_bytes > 0
    harness.close()


@contextmanager
def _unread() -> Iterator[None]:
    """Let reading of weights take for ever in a block."""
    endless = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("daemon.cache.digests._sha256", lambda *_: endless.wait())
        try:
            yield
        finally:
            endless.set()


def _adapter(path: Path, rank: int, weights: bytes) -> str:
    path.mkdir()
    lora = {"rank": rank, "scale": 20.0, "dropout": 0.0}
    (path / "adapter_config.json").write_text(json.dumps({"num_layers": 3, "lora_parameters": lora}))
    (path / "adapters.safetensors").write_bytes(weights)
    return str(path)


def _sparse(path: Path, nbytes: int) -> str:
    """Write a model with a single tensor of zeros, which take no place on the disk."""
    copy_of_embedded(path.parent, path.name)
    header = safetensors({"weight": {"dtype": "U8", "shape": [nbytes >> 20, MIB], "data_offsets": [0, nbytes]}})
    (path / "model.safetensors").write_bytes(header)
    os.truncate(path / "model.safetensors", len(header) + nbytes)
    return str(path)


@pytest.mark.parametrize("rank", [150_000, 2**31 - 1])
def test_tiny_adapter_file_allocates_no_gigabytes(small: Harness, tmp_path: Path, rank: int) -> None:
    """Its rank makes it 2.3 GB, or more than 64 bits can count. It is weighed before it takes memory."""
    empty = safetensors({})
    assert len(empty) == 10
    adapter = _adapter(tmp_path / "adapter", rank, empty)

    failure = small.run(pb.GetOrLoadRequest(model="embedded", adapter=adapter)).failure

    assert failure.reason == "MODEL_EXCEEDS_BUDGET"
    assert int(failure.metadata["needed_bytes"]) > rank * 3 * 128 * 2 * 4
    assert int(failure.metadata["budget_bytes"]) == BUDGET_MB * MIB


def test_adapter_without_tensors_is_corrupt(small: Harness, tmp_path: Path) -> None:
    """mlx-lm would leave random numbers in their place, and each load would give another answer."""
    adapter = _adapter(tmp_path / "adapter", 4, safetensors({}))

    failure = small.run(pb.GetOrLoadRequest(model="embedded", adapter=adapter)).failure

    assert failure.reason == "MODEL_CORRUPT"
    assert "lacks" in failure.message


def test_eviction_makes_room_for_an_adapters_real_size(tmp_path: Path) -> None:
    """Most of it is built, and not in a file. The victim is evicted before, so that the peak is within the budget."""
    left = mx.get_active_memory()  # by tests before this one, in the same process
    harness = Harness(state_dir=tmp_path / "state", model_cache_mb=90)
    idle = str(heavy_model(tmp_path, "idle", 1))
    assert harness.run(pb.GetOrLoadRequest(model=idle)).info.size_bytes > 30 * MIB
    adapter = _adapter(tmp_path / "adapter", 4000, safetensors({}))
    mx.reset_peak_memory()

    failure = harness.run(pb.GetOrLoadRequest(model="embedded", adapter=adapter)).failure

    assert failure.reason == "MODEL_CORRUPT", failure  # its tensors are missing: found once there is room for it
    assert harness.models == 0
    assert mx.get_peak_memory() - left < 90 * MIB
    harness.settle()
    harness.close()


@pytest.mark.parametrize(
    "config",
    [
        {"vocab_size": 2**31 - 1},
        {"hidden_size": 2**30},
        {"intermediate_size": 2**31 - 1},
        {"num_attention_heads": 8192, "num_key_value_heads": 8192, "head_dim": 2**20},
        {"vocab_size": 2**31 - 1, "hidden_size": 2**30, "intermediate_size": 2**31 - 1},
        {"model_type": "qwen3_moe", "num_experts": 9_999, "moe_intermediate_size": 2**20, "num_experts_per_tok": 1,
         "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True},
    ],
    ids=lambda config: ",".join(config)[:40],
)  # fmt: skip
def test_giant_config_allocates_no_memory(small: Harness, tmp_path: Path, config: dict[str, Any]) -> None:
    """Its layers take no memory until they are evaluated. Files that do not fit are found before."""
    model = copy_of_embedded(tmp_path, **config)

    failure = small.run(pb.GetOrLoadRequest(model=str(model))).failure

    assert failure.reason == "MODEL_CORRUPT", failure.message
    assert len(failure.message) < 1000


def test_computed_tables_count_toward_a_models_size(small: Harness, tmp_path: Path) -> None:
    """They are not in a file: here, the frequencies of a rotation over more dimensions than a head has."""
    model = random_model(tmp_path, "qwen3_next")
    config = json.loads((model / "config.json").read_text())
    config["rope_scaling"] = {"rope_type": "llama3", "factor": 8.0}
    config["partial_rotary_factor"] = 1e7
    (model / "config.json").write_text(json.dumps(config))
    assert identify("tables", model).size_bytes < 2 * MIB

    failure = small.run(pb.GetOrLoadRequest(model=str(model))).failure

    assert failure.reason == "MODEL_EXCEEDS_BUDGET"
    assert int(failure.metadata["needed_bytes"]) >= 1e7 * 16 / 2 * 4


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 9_999},
        {"num_hidden_layers": 1_000_000},
        {"num_hidden_layers": 2**62},
        {"num_hidden_layers": 1e308},
        {"model_type": "nanbeige", "num_loops": 2**31},
        {"model_type": "deepseek_v41", "hc_mult": 10**6},
        {"text_config": {"num_experts": 2**31}},
    ],
    ids=str,
)
def test_config_of_countless_modules_is_refused(small: Harness, tmp_path: Path, config: dict[str, Any]) -> None:
    """Each layer costs time in Python, before any weight could be compared."""
    model = copy_of_embedded(tmp_path, **config)

    failure = small.run(pb.GetOrLoadRequest(model=str(model))).failure

    assert failure.reason == "MODEL_CORRUPT"
    assert "absurd" in failure.message or f"more than {MOST_MODULES} modules" in failure.message


def test_estimated_model_size_is_the_loaded_size(tmp_path: Path) -> None:
    """The files of this model have exactly the bytes that it takes."""
    harness = Harness(state_dir=tmp_path / "state")
    model = str(heavy_model(tmp_path, "m", 1))
    steps = loader.load(
        identify("m", Path(model)), 0, loader.LoadSetup(lambda: 0.0, measured=MEASURED, verdicts=TESTED)
    )
    (weighed,) = [step.needs for step in steps if step.needs]

    assert harness.run(pb.GetOrLoadRequest(model=model)).info.size_bytes == weighed
    harness.close()


@pytest.mark.parametrize("estimate", [False, True])
def test_huge_weight_files_are_estimated_unread(small: Harness, tmp_path: Path, estimate: bool) -> None:
    """Sizes come from the file system and the header. Reading would take for ever here."""
    model = _sparse(tmp_path / "large", 100 << 30)

    with _unread():
        answer = small.run(pb.GetOrLoadRequest(model=model, estimate_only=estimate))

    if estimate:
        assert answer.info.size_bytes == (Path(model) / "model.safetensors").stat().st_size > 100 << 30
        assert (answer.info.architecture, answer.info.fingerprint) == ("llama", "")
    else:
        assert answer.failure.reason == "MODEL_EXCEEDS_BUDGET"
        assert int(answer.failure.metadata["needed_bytes"]) > 100 << 30


def test_damaged_weight_header_stops_the_read_early(tmp_path: Path) -> None:
    """The last of many files is damaged, and the first are whole."""
    harness = Harness(state_dir=tmp_path / "state")
    model = Path(_sparse(tmp_path / "large", 4 << 30))
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    (model / "model-2.safetensors").write_bytes(b"damaged")

    with _unread():
        failure = harness.run(pb.GetOrLoadRequest(model=str(model))).failure

    assert failure.reason == "MODEL_CORRUPT"
    assert "model-2.safetensors" in failure.message
    harness.close()


class Disk:
    """
    A disk with giant models, which are read until the test lets them end, and a small model.

    Attributes:
        reading: Released for each giant that begins to be read.
        go_on: Lets the giants end.
    """

    def __init__(self, folder: Path) -> None:
        self.reading = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        self._small = identify("small", copy_of_embedded(folder))

    def resolve(self, wanted: Wanted, watcher: Watcher | None = None) -> ModelSource:
        """Find a model. A giant takes until the test lets it end."""
        giant = wanted.name.startswith("/giant")
        if watcher is None:
            raise TakesLong(GIANT_BYTES + 1 if giant else 1 << 30)
        if not giant:
            return self._small
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self.reading.release()
        assert self.go_on.wait(60)
        with self._lock:
            self._now -= 1
        return ModelSource(ModelKey(wanted.name), wanted.name, self._small.path, 1, self._small.config)


def test_small_model_load_does_not_queue_behind_giants(tmp_path: Path) -> None:
    """A thread is left for it, however many giants are read. Each giant gets its turn."""
    harness = Harness(state_dir=tmp_path / "state")
    disk = Disk(tmp_path)
    harness.engine._services.lookup._resolver = disk  # type: ignore[assignment]  # what the finder needs of one
    giants = [harness.begin(pb.GetOrLoadRequest(model=f"/giant{number}", estimate_only=True)) for number in range(6)]
    harness.until(lambda: disk.reading.acquire(blocking=False))

    assert harness.run(pb.GetOrLoadRequest(model="/small")).info.size_bytes > 0

    disk.go_on.set()
    for call in giants:
        assert harness.finish(call)[-1].load.ready.outcome == pb.LOAD_OUTCOME_ESTIMATED
    assert disk.most == 3
    harness.settle()
    harness.close()


def test_abandoned_giant_loads_give_back_their_place(tmp_path: Path) -> None:
    """Both running lookups and waiting ones end."""
    harness = Harness(state_dir=tmp_path / "state")
    disk = Disk(tmp_path)
    harness.engine._services.lookup._resolver = disk  # type: ignore[assignment]  # what the finder needs of one
    for number in range(6):
        harness.cancel(harness.begin(pb.GetOrLoadRequest(model=f"/giant{number}")))
    calls = [harness.begin(pb.GetOrLoadRequest(model=f"/giant{number}", estimate_only=True)) for number in range(6)]
    disk.go_on.set()

    for call in calls:
        assert harness.finish(call)[-1].load.ready.outcome == pb.LOAD_OUTCOME_ESTIMATED
    harness.close()
