import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from mlx_sidecar.v1 import sidecar_pb2 as _sidecar_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Command(_message.Message):
    __slots__ = ("call_id", "load", "generate", "invalidate", "cancel", "shutdown", "hold", "recall", "embed", "tokenize", "list_models", "program")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    INVALIDATE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    SHUTDOWN_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    EMBED_FIELD_NUMBER: _ClassVar[int]
    TOKENIZE_FIELD_NUMBER: _ClassVar[int]
    LIST_MODELS_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    load: _sidecar_pb2.GetOrLoadRequest
    generate: _sidecar_pb2.GenerateRequest
    invalidate: _sidecar_pb2.InvalidateRequest
    cancel: Cancel
    shutdown: Shutdown
    hold: Hold
    recall: _sidecar_pb2.GetOrLoadRequest
    embed: _sidecar_pb2.EmbedRequest
    tokenize: _sidecar_pb2.TokenizeRequest
    list_models: _sidecar_pb2.ListModelsRequest
    program: str
    def __init__(self, call_id: _Optional[int] = ..., load: _Optional[_Union[_sidecar_pb2.GetOrLoadRequest, _Mapping]] = ..., generate: _Optional[_Union[_sidecar_pb2.GenerateRequest, _Mapping]] = ..., invalidate: _Optional[_Union[_sidecar_pb2.InvalidateRequest, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., shutdown: _Optional[_Union[Shutdown, _Mapping]] = ..., hold: _Optional[_Union[Hold, _Mapping]] = ..., recall: _Optional[_Union[_sidecar_pb2.GetOrLoadRequest, _Mapping]] = ..., embed: _Optional[_Union[_sidecar_pb2.EmbedRequest, _Mapping]] = ..., tokenize: _Optional[_Union[_sidecar_pb2.TokenizeRequest, _Mapping]] = ..., list_models: _Optional[_Union[_sidecar_pb2.ListModelsRequest, _Mapping]] = ..., program: _Optional[str] = ...) -> None: ...

class Hold(_message.Message):
    __slots__ = ("held",)
    HELD_FIELD_NUMBER: _ClassVar[int]
    held: bool
    def __init__(self, held: bool = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Shutdown(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Event(_message.Message):
    __slots__ = ("call_id", "hello", "heartbeat", "accepted", "load", "generate", "invalidate", "failure", "snapshot", "embed", "tokenize", "list_models", "group_end", "more")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    INVALIDATE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    EMBED_FIELD_NUMBER: _ClassVar[int]
    TOKENIZE_FIELD_NUMBER: _ClassVar[int]
    LIST_MODELS_FIELD_NUMBER: _ClassVar[int]
    GROUP_END_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    hello: Hello
    heartbeat: Heartbeat
    accepted: Accepted
    load: _sidecar_pb2.GetOrLoadResponse
    generate: _sidecar_pb2.GenerateResponse
    invalidate: _sidecar_pb2.InvalidateResponse
    failure: Failure
    snapshot: _sidecar_pb2.StatsResponse
    embed: _sidecar_pb2.EmbedResponse
    tokenize: _sidecar_pb2.TokenizeResponse
    list_models: _sidecar_pb2.ListModelsResponse
    group_end: str
    more: bool
    def __init__(self, call_id: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., load: _Optional[_Union[_sidecar_pb2.GetOrLoadResponse, _Mapping]] = ..., generate: _Optional[_Union[_sidecar_pb2.GenerateResponse, _Mapping]] = ..., invalidate: _Optional[_Union[_sidecar_pb2.InvalidateResponse, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., snapshot: _Optional[_Union[_sidecar_pb2.StatsResponse, _Mapping]] = ..., embed: _Optional[_Union[_sidecar_pb2.EmbedResponse, _Mapping]] = ..., tokenize: _Optional[_Union[_sidecar_pb2.TokenizeResponse, _Mapping]] = ..., list_models: _Optional[_Union[_sidecar_pb2.ListModelsResponse, _Mapping]] = ..., group_end: _Optional[str] = ..., more: bool = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("mlx_version", "mlx_lm_version", "device", "warming")
    MLX_VERSION_FIELD_NUMBER: _ClassVar[int]
    MLX_LM_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    WARMING_FIELD_NUMBER: _ClassVar[int]
    mlx_version: str
    mlx_lm_version: str
    device: str
    warming: bool
    def __init__(self, mlx_version: _Optional[str] = ..., mlx_lm_version: _Optional[str] = ..., device: _Optional[str] = ..., warming: bool = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("steps", "step_age", "stuck")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_AGE_FIELD_NUMBER: _ClassVar[int]
    STUCK_FIELD_NUMBER: _ClassVar[int]
    steps: int
    step_age: _duration_pb2.Duration
    stuck: int
    def __init__(self, steps: _Optional[int] = ..., step_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., stuck: _Optional[int] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("prompt_tokens",)
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("reason", "message", "metadata", "retry_after", "field")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    retry_after: _duration_pb2.Duration
    field: str
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., field: _Optional[str] = ...) -> None: ...

class GroupFrame(_message.Message):
    __slots__ = ("readings", "command", "turn", "outcome", "setup", "member", "digest", "ready", "beat", "end", "trouble", "part", "last_part")
    READINGS_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    SETUP_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    LAST_PART_FIELD_NUMBER: _ClassVar[int]
    readings: GroupReadings
    command: Command
    turn: int
    outcome: GroupOutcome
    setup: GroupSetup
    member: GroupMember
    digest: GroupDigest
    ready: GroupOutcome
    beat: int
    end: str
    trouble: str
    part: bytes
    last_part: bytes
    def __init__(self, readings: _Optional[_Union[GroupReadings, _Mapping]] = ..., command: _Optional[_Union[Command, _Mapping]] = ..., turn: _Optional[int] = ..., outcome: _Optional[_Union[GroupOutcome, _Mapping]] = ..., setup: _Optional[_Union[GroupSetup, _Mapping]] = ..., member: _Optional[_Union[GroupMember, _Mapping]] = ..., digest: _Optional[_Union[GroupDigest, _Mapping]] = ..., ready: _Optional[_Union[GroupOutcome, _Mapping]] = ..., beat: _Optional[int] = ..., end: _Optional[str] = ..., trouble: _Optional[str] = ..., part: _Optional[bytes] = ..., last_part: _Optional[bytes] = ...) -> None: ...

class GroupReadings(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class GroupOutcome(_message.Message):
    __slots__ = ("ticket", "fingerprint", "failure", "value", "work")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    ticket: int
    fingerprint: bytes
    failure: Failure
    value: bytes
    work: str
    def __init__(self, ticket: _Optional[int] = ..., fingerprint: _Optional[bytes] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., value: _Optional[bytes] = ..., work: _Optional[str] = ...) -> None: ...

class GroupMember(_message.Message):
    __slots__ = ("limit_bytes", "memory_bytes", "ring", "jaccl", "kv_disk_bytes")
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    RING_FIELD_NUMBER: _ClassVar[int]
    JACCL_FIELD_NUMBER: _ClassVar[int]
    KV_DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    limit_bytes: int
    memory_bytes: int
    ring: str
    jaccl: bool
    kv_disk_bytes: int
    def __init__(self, limit_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., ring: _Optional[str] = ..., jaccl: bool = ..., kv_disk_bytes: _Optional[int] = ...) -> None: ...

class GroupSetup(_message.Message):
    __slots__ = ("ring", "limit_bytes", "memory_bytes", "settings", "devices")
    RING_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    ring: _containers.RepeatedScalarFieldContainer[str]
    limit_bytes: int
    memory_bytes: int
    settings: str
    devices: str
    def __init__(self, ring: _Optional[_Iterable[str]] = ..., limit_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., settings: _Optional[str] = ..., devices: _Optional[str] = ...) -> None: ...

class GroupDigest(_message.Message):
    __slots__ = ("turn", "digest")
    TURN_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    turn: int
    digest: int
    def __init__(self, turn: _Optional[int] = ..., digest: _Optional[int] = ...) -> None: ...

class GroupGreeting(_message.Message):
    __slots__ = ("nonce", "proof", "versions", "ranks", "rank", "refusal")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    proof: bytes
    versions: _containers.RepeatedScalarFieldContainer[str]
    ranks: int
    rank: int
    refusal: str
    def __init__(self, nonce: _Optional[bytes] = ..., proof: _Optional[bytes] = ..., versions: _Optional[_Iterable[str]] = ..., ranks: _Optional[int] = ..., rank: _Optional[int] = ..., refusal: _Optional[str] = ...) -> None: ...

class GroupModels(_message.Message):
    __slots__ = ("models", "problem")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[GroupModel]
    problem: str
    def __init__(self, models: _Optional[_Iterable[_Union[GroupModel, _Mapping]]] = ..., problem: _Optional[str] = ...) -> None: ...

class GroupModel(_message.Message):
    __slots__ = ("model", "fingerprint", "size_bytes", "problem")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    model: str
    fingerprint: str
    size_bytes: int
    problem: str
    def __init__(self, model: _Optional[str] = ..., fingerprint: _Optional[str] = ..., size_bytes: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...

class GroupStart(_message.Message):
    __slots__ = ("rank", "address", "connections")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    rank: int
    address: str
    connections: _containers.RepeatedCompositeFieldContainer[GroupConnection]
    def __init__(self, rank: _Optional[int] = ..., address: _Optional[str] = ..., connections: _Optional[_Iterable[_Union[GroupConnection, _Mapping]]] = ...) -> None: ...

class GroupConnection(_message.Message):
    __slots__ = ("fd", "up", "down", "name")
    FD_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    DOWN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    fd: int
    up: bytes
    down: bytes
    name: str
    def __init__(self, fd: _Optional[int] = ..., up: _Optional[bytes] = ..., down: _Optional[bytes] = ..., name: _Optional[str] = ...) -> None: ...
