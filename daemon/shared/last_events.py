"""Which event of the engine is the last one of its call: the engine and its parent have to agree."""

from __future__ import annotations

from daemon.v1 import ipc_pb2 as ipc


def ends_call(event: ipc.Event) -> bool:
    """Return whether an event is the last one of its call. The engine sends nothing for the call after it."""
    kind = event.WhichOneof("body")
    if kind == "generate":
        return event.generate.HasField("finished") and not event.more
    if kind == "load":
        return event.load.HasField("ready")
    if kind == "embed":
        return event.embed.HasField("finished")
    return kind in ("invalidate", "tokenize", "list_models", "failure")
