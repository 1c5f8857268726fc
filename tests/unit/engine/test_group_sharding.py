"""How a model is cut for the ranks of a group: each layer where that can be, else between layers."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from daemon.cache.identity import ModelKey, ModelSource
from daemon.engine.group.sharding import Sharding
from daemon.kv.mlx.adapters.base import LayerShape
from daemon.kv.mlx.adapters.kv_cache import KVShape
from daemon.kv.mlx.adapters.rotating import WindowShape
from daemon.kv.mlx.layout import Layout
from daemon.shared.errors import Reason, SidecarError


class Model:
    """
    A model that notes how it is cut.

    Args:
        ways: The ways in which it can be.
        layers: Its number of layers.
    """

    def __init__(self, *ways: str, layers: int = 4) -> None:
        self.model = SimpleNamespace(layers=[None] * layers)
        self.layers: list[None] = []
        self.cut = ""
        if "tensor" in ways:
            self.shard = lambda group: self.__dict__.update(cut="tensor")
        if "pipeline" in ways:
            self.model.pipeline = lambda group: self.__dict__.update(cut="pipeline")


def cut(how: str, model: Model, heads: int = 4, others: tuple[int, ...] = ()) -> str:
    """Cut a model for two ranks, and return how; `others` are values of the other rank."""
    sharding: Any = Sharding(SimpleNamespace(size=lambda: 2), {"m": how}, [].append)  # type: ignore[arg-type]
    sharding.most = lambda value: max(value, *others, value)
    source = ModelSource(ModelKey(""), "m", Path("/m"), 1, {"num_attention_heads": heads})
    sharding.cut(source, model)
    return model.cut


@pytest.mark.parametrize(
    ("how", "ways", "heads", "expected"),
    [
        ("tensor", ["tensor", "pipeline"], 4, "tensor"),
        ("pipeline", ["tensor", "pipeline"], 4, "pipeline"),
        ("auto", ["tensor", "pipeline"], 4, "tensor"),
        ("auto", ["tensor", "pipeline"], 3, "pipeline"),
        ("auto", ["pipeline"], 4, "pipeline"),
    ],
)
def test_model_is_cut_as_asked(how: str, ways: list[str], heads: int, expected: str) -> None:
    """Left to itself, a layer is cut where the model and its heads allow that."""
    assert cut(how, Model(*ways), heads) == expected


@pytest.mark.parametrize(
    ("how", "ways", "heads", "layers", "why"),
    [
        ("tensor", ["pipeline"], 4, 4, "mlx-lm cannot cut the layers of this family"),
        ("tensor", ["tensor", "pipeline"], 3, 4, "its num_attention_heads, 3, cannot be divided by 2 ranks"),
        ("pipeline", ["tensor"], 4, 4, "mlx-lm has no pipeline for this family"),
        ("pipeline", ["pipeline"], 4, 1, "2 ranks are more than its 1 layers"),
        ("auto", ["tensor"], 3, 4, "its num_attention_heads, 3, .* and mlx-lm has no pipeline"),
    ],
)
def test_model_that_cannot_be_cut_is_refused(how: str, ways: list[str], heads: int, layers: int, why: str) -> None:
    """With the reason."""
    with pytest.raises(SidecarError, match=why) as caught:
        cut(how, Model(*ways, layers=layers), heads)
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


def test_ranks_with_other_kinds_of_layers_are_refused() -> None:
    """A window in one half alone: the ranks would evict at other times."""
    with pytest.raises(SidecarError, match="layers of different kinds"):
        cut("pipeline", Model("pipeline"), others=(2**32,))


def full() -> None:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, "full")


def test_error_of_a_rank_is_raised_as_all_ranks_see_it() -> None:
    """With its reason and its rank; a result is this rank's own."""
    source = ModelSource(ModelKey(""), "m", Path("/m"), 1, {})
    troubles: list[str] = []
    sharding = Sharding(mx.distributed.init(), {}, troubles.append)  # a group of one
    assert sharding.together(source, lambda: "a part") == "a part"
    with pytest.raises(SidecarError, match="m cannot be loaded: No space left on device") as caught:
        sharding.together(source, full)
    assert caught.value.reason is Reason.MACHINE_EXHAUSTED
    assert caught.value.metadata["rank"] == "0"
    assert caught.value.retry_after
    with pytest.raises(SidecarError), sharding.noted():
        sharding.together(source, full)  # all ranks have heard of it
    assert not troubles


@pytest.mark.parametrize(
    ("error", "told"), [(OSError(5), "OSError"), (SidecarError(Reason.MODEL_CORRUPT, "m is bad"), "m is bad")]
)
def test_error_that_others_may_not_have_is_told(error: Exception, told: str) -> None:
    """They may wait for this rank."""
    troubles: list[str] = []
    with pytest.raises(type(error)), Sharding(mx.distributed.init(), {}, troubles.append).noted():
        raise error
    assert troubles == [told]


def two_ranks(ask: Callable[[Any, int], object]) -> list[object]:
    """Let two ranks ask each other the same questions, and return what each answers: a result or an error."""
    meeting, values = threading.Barrier(2), [0, 0]

    def rank(number: int) -> object:
        def most(value: int) -> int:
            values[number] = value
            meeting.wait()
            largest = max(values)
            meeting.wait()
            return largest

        troubles: list[str] = []
        sharding: Any = Sharding(mx.distributed.init(), {}, troubles.append)
        sharding.most = most
        sharding.cut(SOURCE, Model("pipeline"))
        try:
            return ask(sharding, number)
        except SidecarError as error:
            return error

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(rank, range(2)))


SOURCE = ModelSource(ModelKey(""), "m", Path("/m"), 1, {})
KV = KVShape(2, 8, 8, mx.float32, mx.float32)
WINDOW = WindowShape(KV, 16)


def layout(*shapes: LayerShape) -> Layout:
    """Return the layout of layers of these shapes, whose groups and states decide nothing here."""
    nbytes = sum(shape.bytes_per_token for shape in shapes)
    groups = tuple(tuple(i for i, one in enumerate(shapes) if one == shape) for shape in dict.fromkeys(shapes))
    return Layout(";".join(map(str, shapes)), nbytes, shapes, groups, billed=shapes)


def test_ranks_bill_the_layers_of_the_largest() -> None:
    """So that they evict and refuse alike."""
    layouts = [layout(KV, KV, KV), layout(KV, KV)]
    large, small = two_ranks(lambda sharding, rank: sharding.alike(SOURCE, layouts[rank]))
    assert isinstance(large, Layout)
    assert isinstance(small, Layout)
    assert large.signature == small.signature
    bills = [
        (
            one.bytes_per_token,
            one.parts,
            one.live_bytes(300, 7),
            one.full_bytes(300),
            one.layer_bytes(300),
            one.undo_bytes(300),
        )
        for one in (large, small, layouts[0])
    ]
    assert bills[0] == bills[1] == bills[2]
    assert (large.bills_own, small.bills_own) == (True, False)


def test_equal_ranks_keep_their_layouts() -> None:
    """Of whatever kinds their layers are."""
    own = layout(KV, WINDOW)
    for one in two_ranks(lambda sharding, _: sharding.alike(SOURCE, own)):
        assert isinstance(one, Layout)
        assert one.signature == f"pipeline 1: {own.signature}"  # the KV of a part is none of the whole model's
        assert replace(one, signature=own.signature) == own


@pytest.mark.parametrize(
    "layouts",
    [
        (layout(KV, WINDOW), layout(KV)),
        (layout(WINDOW, WINDOW), layout(WINDOW)),
        (layout(KV, KV), layout(KV._replace(heads=4))),
        (Layout("Other+Other", 8), Layout("Other", 4)),
    ],
)
def test_ranks_with_other_layers_of_several_kinds_are_refused(layouts: tuple[Layout, Layout]) -> None:
    """Each rank refuses: windows and states are no multiple of each other, and other shapes are none."""
    for error in two_ranks(lambda sharding, rank: sharding.alike(SOURCE, layouts[rank])):
        assert isinstance(error, SidecarError)
        assert "layers of different kinds" in str(error)
