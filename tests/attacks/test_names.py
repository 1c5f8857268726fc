"""Endless names: the memory and the messages for names of models stay small."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sized
from itertools import islice, product
from pathlib import Path
from typing import Any, cast

import pytest

from daemon.cache.entry import MOST_NAMES, Entry
from daemon.cache.identity import ModelKey, ModelSource
from daemon.cache.mlx.loader import LoadedModel
from daemon.cache.resolver import EMBEDDED_PATH, MOST_REVISIONS, Resolver, Wanted
from daemon.engine.reporting.model_registry import CHOICE_SECONDS, MOST_SHOWN, NAMES, NameRegistry, NamespaceRegistry
from daemon.engine.reporting.snapshot import MOST_LOADS, MOST_MODELS, StatsCollector
from daemon.engine.scheduling import policy
from daemon.engine.scheduling.policy import ChunkSizer
from daemon.kv.keys import Namespace
from daemon.kv.mlx.layout import Layout
from daemon.kv.nodes import NamespaceCounters
from daemon.server.field_checks import MAX_NAME_BYTES, MAX_REQUEST_BYTES
from daemon.shared.frames import MAX_FRAME_BYTES, encode_frame
from daemon.shared.model_names import climbs, plain
from daemon.shared.model_overrides import MOST_CHOICES, ModelOverrides
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.builders import Clock, FakeModels
from tests.support.daemons import RunningDaemon

Start = Callable[..., RunningDaemon]
SPELLINGS = 2_000
EVEN_MORE = 65_000


@pytest.fixture(name="models")
def _models(folder: Path) -> Path:
    """Return a directory with a model in it, and with two links to the directory itself."""
    shutil.copytree(EMBEDDED_PATH, folder / "models" / "m")
    for link in ("a", "b"):
        (folder / "models" / link).symlink_to(".")
    return folder / "models"


def _by_slashes(models: Path) -> Iterator[str]:
    """Yield spellings of a path that differ only in redundant slashes and dots."""
    for parts in product(["/", "//", "/./", "/m/../", "/a/../models/"], repeat=6):
        yield str(models) + "".join(parts) + "m" + "/" * len(parts[0])


def _by_links(models: Path) -> Iterator[str]:
    """Yield spellings each of which goes through other links, and may lead elsewhere tomorrow."""
    for parts in product("ab", repeat=14):
        yield str(models.joinpath(*parts, "m"))


def test_spellings_of_one_path_are_one_model_name(start_daemon: Start, models: Path) -> None:
    """A slash too much, a dot, a way up: Stats is as small as ever, and the name is the plain one."""
    daemon = start_daemon(warmup_tokens="0")
    with daemon.client() as client:
        client.load(str(models / "m"))
        before = client._connect().Stats(pb.StatsRequest()).ByteSize()
        for name in islice(_by_slashes(models), 0, None, 7):  # 2,233 of 15,625, with each part at each place
            assert client.load(name).model == str(models / "m")
        after = client._connect().Stats(pb.StatsRequest())
        assert [list(model.names) for model in after.models] == [[str(models / "m")]]
        assert after.ByteSize() < before + 100
        assert list(client.invalidate_model(f"{models}//b/../models/./m/").models) == [str(models / "m")]
    assert daemon.stop() == 0


def test_model_registry_bounds_names_of_one_model(start_daemon: Start, models: Path) -> None:
    """Names through links stay apart, because links change. The latest are known, and drop the model when asked."""
    daemon = start_daemon(warmup_tokens="0")
    names = list(islice(_by_links(models), SPELLINGS))
    with daemon.client() as client:
        for name in names:
            assert client.load(name).model == name
        stats = client._connect().Stats(pb.StatsRequest())
        (model,) = stats.models
        assert list(model.names) == [names[0], *names[-MOST_NAMES + 1 :]]
        assert stats.ByteSize() < 64 * 1024
        assert len(client.invalidate_model(names[-NAMES]).models) == MOST_NAMES
        assert not client.stats().models
    assert daemon.stop() == 0


def test_dotdot_after_a_symlink_follows_its_target(start_daemon: Start, models: Path) -> None:
    """A `..` behind a link goes up from the link's target, not from its name."""
    elsewhere = models.parent / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    (models / "out").symlink_to(elsewhere)
    shutil.copytree(EMBEDDED_PATH, models.parent / "elsewhere" / "m")
    daemon = start_daemon(warmup_tokens="0")
    with daemon.client() as client:
        assert client.load(f"{models}/out/../m").model == str(models.parent / "elsewhere" / "m")
        assert client.complete(f"{models}/out/../m", "The", max_tokens=1).model == str(
            models.parent / "elsewhere" / "m"
        )
        assert client.invalidate_model(f"{models}/out/../m").models
        assert not client.invalidate_model(f"{models}/out/../../nothing").models
        assert not client.invalidate_model(f"{models}/loop\n/../..").models
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("/models/m", "/models/m"),
        ("//models///m/", "/models/m"),
        ("/./models/././m/.", "/models/m"),
        ("/models/../m", "/models/../m"),
        ("/", "/"),
        ("/models/.hidden/...", "/models/.hidden/..."),
        ("org//name", "org//name"),
        ("org/name/", "org/name/"),
        ("embedded", "embedded"),
        ("./m", "./m"),
    ],
)
def test_plain_model_name_is_left_unchanged(name: str, wanted: str) -> None:
    """Only of a path, and without asking the file system."""
    assert plain(name) == wanted
    assert climbs(name) == (".." in wanted.split("/"))


def _source(name: str, content: str = "content") -> ModelSource:
    return ModelSource(ModelKey(content), name, Path("/models"), 1, {"model_type": "llama"})


def test_model_registry_bounds_names_of_one_content() -> None:
    """Although it is kept: the last names lead to it, the first no longer do."""
    known = NameRegistry(lambda _: True)
    for number in range(EVEN_MORE):
        known.seen(_source(f"/models/{number}"))
    assert len(known) == NAMES
    assert known.keys(f"/models/{EVEN_MORE - NAMES}") == {ModelKey("content")}
    assert known.latest(f"/models/{EVEN_MORE - 1}") is not None
    assert known.keys(f"/models/{EVEN_MORE - NAMES - 1}") == set()


def test_model_registry_is_swept_only_now_and_then() -> None:
    """Not at each request: with more of them than are remembered anyway, that would be their square."""
    asked = 0

    def kept(_: ModelKey) -> bool:
        nonlocal asked
        asked += 1
        return True

    known = NameRegistry(kept)
    for number in range(10_000):
        known.seen(_source("/models/m", str(number)))
    assert len(known.keys("/models/m")) == 10_000
    assert asked < 30_000


def test_loaded_model_keeps_its_first_and_latest_names() -> None:
    models = FakeModels()
    for number in range(EVEN_MORE // 10):
        entry = models.load("first").lease
        assert entry is not None
        entry.entry.used_as(f"name {number}")
        entry.release()
    (entry_,) = [one for one in models.cache.entries() if one.name == "first"]
    assert entry_.names[0] == "first"
    assert entry_.names[1:] == [f"name {EVEN_MORE // 10 - back}" for back in range(MOST_NAMES - 1, 0, -1)]
    models.cache.check_integrity()


def test_model_name_in_use_stays_registered() -> None:
    entry = Entry("key", ["first"], None, 1, 1.0, 0.0, 0.0, 0.0)
    for number in range(1000):
        entry.used_as("favourite")
        entry.used_as(f"other {number}")
    assert entry.names[:2] == ["first", "favourite"]
    assert len(entry.names) == MOST_NAMES


def test_hub_revisions_remembered_are_bounded() -> None:
    """A file system that ignores case finds one model under any number of ids."""
    resolver = Resolver((), fetch=lambda *_, **__: Path("/"), plan=lambda *_: 0)
    for number in range(EVEN_MORE):
        resolver.prefer(f"org/{number}", "main")
    assert len(resolver._revisions) == MOST_REVISIONS
    assert resolver._revision(Wanted(f"org/{EVEN_MORE - 1}")) == "main"


def test_model_overrides_remembered_are_bounded() -> None:
    overrides, sizer = ModelOverrides(), ChunkSizer()
    for number in range(EVEN_MORE):
        overrides.apply(ipc.Command(load=pb.GetOrLoadRequest(model=f"/models/{number}", pin=True)))
        sizer.measured(number, 10_000, 10.0)
        sizer.stepped(number, 0.1)
    assert len(overrides.recalls()) == MOST_CHOICES
    tables: list[Sized] = [sizer._times]
    assert [len(table) for table in tables] == [policy._MOST_REMEMBERED]


def test_largest_snapshot_fits_a_frame_and_a_message() -> None:
    """The most models, each with the most names, each of the greatest length."""
    long = "/" + "m" * (MAX_NAME_BYTES - 1)
    config = {"model_type": "l" * 64}
    source = ModelSource(ModelKey("w" * 64, "a" * 64), long, Path(long), 2**62, config, Path(long), (), "r" * 64)
    loaded = LoadedModel(source, None, Layout("KVCache", 2**40, warning="w" * 1000), 2**62, 7)
    entry = Entry(source.key, [f"{long}{n}" for n in range(MOST_NAMES)], loaded, 2**62, 1e9, 0.0, 0.0, 0.0)
    figures = StatsCollector.__new__(StatsCollector)
    figures._clock = lambda: 1e6
    figures._context_length = lambda model, adapter: None
    model = figures._model(entry)
    namespaces = [pb.NamespaceStats(namespace="n" * 16, model=long, adapter=long) for _ in range(64)]
    stats = pb.StatsResponse(models=[model] * (MOST_MODELS + MOST_LOADS))
    stats.prefix_cache.namespaces.extend(namespaces)
    assert len(encode_frame(ipc.Event(snapshot=stats))) < MAX_FRAME_BYTES / 2
    assert stats.ByteSize() < 2 * MAX_REQUEST_BYTES


class _Prefixes:
    """A prefix cache with a namespace for each salt there is, which counts how often all are looked through."""

    def __init__(self) -> None:
        self.tree = {
            Namespace("w", "", "KVCache", str(n)).digest(): (NamespaceCounters("w"), 1) for n in range(EVEN_MORE)
        }
        for number, (tally, _) in enumerate(self.tree.values()):
            tally.blocks = number
        self.looked = 0
        self.trie = self

    @property
    def namespaces(self) -> list[str]:
        return list(self.tree)

    def tallies(self) -> dict[str, tuple[NamespaceCounters, int]]:
        self.looked += 1
        return self.tree

    def tally(self, namespace: str) -> tuple[NamespaceCounters, int] | None:
        return self.tree.get(namespace)


def test_cache_salts_are_swept_only_now_and_then() -> None:
    """The figures of the largest namespaces are up to date in any case."""
    prefixes, clock = _Prefixes(), Clock()
    book = NamespaceRegistry(cast("Any", prefixes), clock)
    for number in range(3000):
        book.note(Namespace("w", "", "KVCache", str(number)), _source("/models/m"))
    assert prefixes.looked < 10
    prefixes.looked = 0
    for _ in range(100):
        shown = book.stats()
    assert prefixes.looked == 1
    assert [one.blocks for one in shown] == [EVEN_MORE - back for back in range(1, MOST_SHOWN + 1)]
    last = list(prefixes.tree)[-1]
    prefixes.tree[last][0].blocks = 7
    assert book.stats()[0].blocks == 7
    clock.pass_(CHOICE_SECONDS)
    assert book.stats()[0].blocks == EVEN_MORE - 2
