"""Checks the history of a chaos run: each check returns one sentence for each violation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.chaos.asks import Ask
from tests.chaos.history import CUT, OK, History, Invalidation, Sample, Stream

MIB = 1 << 20
BLOCK = 16
ALLOWED = {
    "UNAVAILABLE ENGINE_RESTARTED",
    "UNAVAILABLE SHUTTING_DOWN",
    "UNAVAILABLE",  # gRPC's own: the parent was killed
    "RESOURCE_EXHAUSTED QUEUE_FULL",
    "RESOURCE_EXHAUSTED BUDGET_IN_USE",
    "FAILED_PRECONDITION MODEL_QUARANTINED",
    "FAILED_PRECONDITION REQUEST_QUARANTINED",
    "DEADLINE_EXCEEDED",  # gRPC's own: the client's deadline
    "CANCELLED 'CANCELLED'",  # gRPC's own: the call had arrived, and nobody took it before the server ended
}
"""Ends that chaos makes likely; any other end of a stream is a violation."""


def violations(history: History, solo: Mapping[Ask, str]) -> list[str]:
    """Return everything that is wrong with a history."""
    settle(history, solo)
    endless = (f"stream {number}: has no end" for number, stream in enumerate(history.streams) if not stream.settled)
    return [*history.notes, *endless, *_reuse_after_invalidate(history)]


def settle(history: History, solo: Mapping[Ask, str]) -> None:
    """Check what has ended, note what is wrong with it, and forget the rest, so that a run may take hours."""
    while history.settled < len(history.streams) and history.streams[history.settled].settled:
        history.settled += 1
    for number, stream in enumerate(history.streams[history.settled :], history.settled):
        if stream.ends and not stream.settled:
            history.notes += [f"stream {number}: {what}" for what in _of_stream(stream, solo, history.kills)]
            stream.settled = True
            stream.events.clear()
    while history.samples:
        history.notes += _over_budget(history.samples.pop())
        history.sampled += 1


def _of_stream(stream: Stream, solo: Mapping[Ask, str], kills: Sequence[float]) -> Iterator[str]:
    kinds = [event.WhichOneof("event") for event in stream.events]
    if [event.seq for event in stream.events] != list(range(len(stream.events))):
        yield f"seq is {[event.seq for event in stream.events]}"
    if len(stream.ends) > 1:
        yield f"has {len(stream.ends)} ends: {stream.ends}"
    elif stream.ends[0] not in ALLOWED | {OK, CUT}:
        yield f"ended with {stream.ends[0]}"
    if kinds and kinds[0] != "started":
        yield f"does not begin with started: {kinds[:3]}"
    if kinds.count("started") > 1 or kinds.count("finished") > 1 or "finished" in kinds[:-1]:
        yield f"has events after its end, or starts twice: {kinds}"
    # The status follows the last event, and a parent that is killed between the two sends none.
    killed = stream.ends == ["UNAVAILABLE"] and any(stream.sent <= kill <= stream.ended for kill in kills)
    complete = stream.ends == [OK] or (killed and "finished" in kinds)
    if complete != ("finished" in kinds) and stream.ends != [CUT]:
        yield f"ended with {stream.ends} and {'a' if 'finished' in kinds else 'no'} finished event"
    expected = solo[stream.ask.answer]
    if (stream.text != expected) if complete else not expected.startswith(stream.text):
        yield f"says {stream.text!r}; alone it says {expected!r}"
    if complete:
        yield from _of_usage(stream)


def _of_usage(stream: Stream) -> Iterator[str]:
    usage = stream.events[-1].finished.usage
    tokens = sum(len(event.delta.token_ids) for event in stream.events)
    asked = (len(stream.ask.prompt), stream.ask.max_tokens, stream.cached)
    if (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) != asked:
        yield f"used {usage}, but {asked} were asked for and reused"
    if tokens != usage.completion_tokens:
        yield f"sent {tokens} token ids of {usage.completion_tokens}"
    if stream.ask.bypass and stream.cached:
        yield "reused a prefix although it bypasses the cache"


def _reuse_after_invalidate(history: History) -> Iterator[str]:
    """
    Whatever a stream reused must have been stored by one that began after the last Invalidate before it.

    What began before the Invalidate was called may store nothing. When a stream began is known from its `started`; one
    whose `started` never came may have begun at any time.
    """
    latest_first = sorted(history.invalidations, key=lambda one: -one.called)
    for number, stream in enumerate(history.streams):
        before = (one for one in latest_first if one.returned <= stream.sent and one.covers(stream.ask))
        if not stream.cached or (last := next(before, None)) is None:
            continue
        untouched = len(last.prefix) // BLOCK * BLOCK  # whole blocks before its end may be shared with other prompts
        if last.prefix and len(last.prefix) % BLOCK == 0:
            untouched -= BLOCK
        if stream.cached > untouched and not any(_may_have_stored(w, stream, last) for w in reversed(history.streams)):
            age = stream.sent - last.returned
            yield f"stream {number}: reused {stream.cached} tokens that were invalidated {age:.3f} s before"


def _may_have_stored(writer: Stream, reader: Stream, invalidation: Invalidation) -> bool:
    if writer is reader or writer.ask.bypass or writer.ask.salt != reader.ask.salt:
        return False
    if writer.ask.model != reader.ask.model or (reader.started is not None and writer.sent > reader.started):
        return False
    shared = _shared(writer.ask.prompt, reader.ask.prompt)
    began_after = writer.started is None or writer.started >= invalidation.called
    return began_after and shared >= reader.cached


def _shared(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _over_budget(sample: Sample) -> Iterator[str]:
    """Compare figures with the settings themselves, not with what the daemon says they are."""
    stats, settings = sample.stats, sample.settings
    memory = stats.memory
    # Dropped while in use: it counts, but its room was given away when it was dropped.
    draining = sum(model.info.size_bytes for model in stats.models if model.state == pb.MODEL_STATE_DRAINING)
    weights = stats.model_cache.total_memory_bytes - draining
    in_use = memory.weights_bytes + memory.trie_bytes + memory.live_kv_bytes
    most_rows = len(stats.models) * int(settings["max_batch"])
    limits = [
        ("prefix bytes", stats.prefix_cache.bytes, int(settings["kv_cache_mb"]) * MIB),
        ("prefix blocks", stats.prefix_cache.blocks, int(settings["max_cache_blocks"])),
        ("disk bytes", stats.prefix_cache.disk_bytes, int(settings["kv_disk_mb"]) * MIB),
        ("models", stats.model_cache.cached_models, int(settings["max_models"])),
        ("weights", weights, int(settings["model_cache_mb"]) * MIB),
        ("waiting requests", stats.engine.queued, int(settings["max_queue"])),
        ("decoding requests", stats.engine.decoding, most_rows),
        ("memory in use", in_use, memory.limit_bytes),
    ]
    yield from (f"{name}: {value} of {most} allowed" for name, value, most in limits if value > most)
