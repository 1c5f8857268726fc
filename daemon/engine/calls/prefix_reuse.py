"""What a request reuses of earlier ones: it is read from the disk before the request runs, and begins its KV."""

from __future__ import annotations

from daemon.cache.entry import ModelLease
from daemon.cache.identity import ModelSource
from daemon.cache.mlx.loader import LoadedModel
from daemon.engine.background.task import until
from daemon.engine.calls.driver import Call, Services
from daemon.engine.execution.sequence_kv import SequenceKV
from daemon.kv.disk.restores import Restore
from daemon.kv.keys import Namespace, model_digest
from daemon.shared.durations import seconds
from mlx_sidecar.v1 import sidecar_pb2 as pb


def read_ahead(
    services: Services,
    request: pb.GenerateRequest | pb.EmbedRequest,
    restore: Restore,
    source: ModelSource,
    tokens: list[int],
) -> None:
    """Begin to read what a prompt has on the disk, if it may be reused."""
    digest, salt = model_digest(source.key.weights, source.key.adapter), request.cache.salt
    if reads(request):
        restore.begin(tokens, lambda: services.disk.namespace_of(digest, salt))


def restored(services: Services, salt: str, restores: list[Restore], model: LoadedModel) -> Call:
    """Wait until what prompts have on the disk is in the prefix cache, as far as that goes well."""
    key, layout = model.source.key, model.layout
    if not layout.reusable:  # it may have been, and the disk has pieces of it still
        for restore in restores:
            restore.close()
        return
    namespace = Namespace(key.weights, key.adapter, layout.signature, salt).digest()
    services.disk.knows(namespace, layout.parts, model.source.name)
    for restore in restores:
        restore.go(namespace, layout.parts)
    yield from until(lambda: all(restore.over() for restore in restores))


def reads(request: pb.GenerateRequest | pb.EmbedRequest) -> bool:
    """Whether stored prefixes may be reused: a prompt that is scored is computed as a whole, as KV has no logits."""
    scored = isinstance(request, pb.GenerateRequest) and request.HasField("prompt_logprobs")
    return request.cache.mode != pb.CACHE_MODE_BYPASS and not scored


def kv_of(
    services: Services,
    request: pb.GenerateRequest | pb.EmbedRequest,
    lease: ModelLease[LoadedModel],
    source: ModelSource,
) -> SequenceKV:
    """Return the KV of a request under a model, with nothing computed; Stats remembers the model's namespace."""
    namespace = Namespace(source.key.weights, source.key.adapter, lease.model.layout.signature, request.cache.salt)
    services.note_namespace(namespace, source)
    mode = request.cache.mode
    writes = mode in (pb.CACHE_MODE_UNSPECIFIED, pb.CACHE_MODE_READ_WRITE)
    return SequenceKV(lease, namespace.digest(), reads=reads(request), writes=writes, keep=seconds(request.cache.keep))
