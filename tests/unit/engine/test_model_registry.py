"""What names stood for: everything that is kept is found by them, and nothing grows with what was only seen."""

from __future__ import annotations

from pathlib import Path

from daemon.cache.identity import ModelKey, ModelSource
from daemon.engine.reporting.model_registry import NameRegistry
from daemon.kv.keys import Namespace


def _source(name: str, content: str) -> ModelSource:
    return ModelSource(ModelKey(content), name, Path("/models") / name, 1, {})


def test_model_name_maps_to_all_its_contents() -> None:
    known = NameRegistry(lambda _: True)
    for content in ("one", "two", "one"):
        known.seen(_source("a", content))
    known.seen(_source("b", "three"))
    assert known.keys("a") == {ModelKey("one"), ModelKey("two")}
    assert known.latest("a") == _source("a", "one")
    assert (known.keys("c"), known.latest("c")) == (set(), None)


def test_cache_layouts_belong_to_a_model_content() -> None:
    known = NameRegistry(lambda _: True)
    for layout in ("plain", "windowed", "plain"):
        known.note_layout(Namespace("one", "", layout, "salt"))
    assert known.layouts(ModelKey("one")) == {"plain", "windowed"}
    assert known.layouts(ModelKey("two")) == set()


def test_registry_keeps_used_models_and_is_bounded() -> None:
    kept = ModelKey("kept")
    known = NameRegistry(lambda key: key == kept, most=10)
    known.seen(_source("old", "kept"))
    known.note_layout(Namespace("kept", "", "plain", ""))
    for number in range(1000):
        known.seen(_source("changing", str(number)))
        known.note_layout(Namespace(str(number), "", "plain", ""))
    assert len(known) == 10
    assert known.keys("old") == {kept}
    assert known.layouts(kept) == {"plain"}
    assert known.latest("changing") == _source("changing", "999")
    assert sum(bool(known.layouts(ModelKey(str(number)))) for number in range(1000)) <= 10
