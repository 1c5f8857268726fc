import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from mlx_sidecar.v1 import sidecar_pb2 as _sidecar_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
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
    __slots__ = ("call_id", "hello", "heartbeat", "accepted", "load", "generate", "invalidate", "failure", "snapshot", "embed", "tokenize", "list_models", "more")
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
    more: bool
    def __init__(self, call_id: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., load: _Optional[_Union[_sidecar_pb2.GetOrLoadResponse, _Mapping]] = ..., generate: _Optional[_Union[_sidecar_pb2.GenerateResponse, _Mapping]] = ..., invalidate: _Optional[_Union[_sidecar_pb2.InvalidateResponse, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., snapshot: _Optional[_Union[_sidecar_pb2.StatsResponse, _Mapping]] = ..., embed: _Optional[_Union[_sidecar_pb2.EmbedResponse, _Mapping]] = ..., tokenize: _Optional[_Union[_sidecar_pb2.TokenizeResponse, _Mapping]] = ..., list_models: _Optional[_Union[_sidecar_pb2.ListModelsResponse, _Mapping]] = ..., more: bool = ...) -> None: ...

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
