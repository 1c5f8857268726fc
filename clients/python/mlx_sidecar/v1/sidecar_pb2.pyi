import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LoadStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOAD_STAGE_UNSPECIFIED: _ClassVar[LoadStage]
    LOAD_STAGE_QUEUED: _ClassVar[LoadStage]
    LOAD_STAGE_DOWNLOADING: _ClassVar[LoadStage]
    LOAD_STAGE_LOADING: _ClassVar[LoadStage]
    LOAD_STAGE_WARMING_UP: _ClassVar[LoadStage]

class PrefixReuse(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PREFIX_REUSE_UNSPECIFIED: _ClassVar[PrefixReuse]
    PREFIX_REUSE_BLOCKS: _ClassVar[PrefixReuse]
    PREFIX_REUSE_CHECKPOINTS: _ClassVar[PrefixReuse]
    PREFIX_REUSE_NONE: _ClassVar[PrefixReuse]

class LoadOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOAD_OUTCOME_UNSPECIFIED: _ClassVar[LoadOutcome]
    LOAD_OUTCOME_HIT: _ClassVar[LoadOutcome]
    LOAD_OUTCOME_LOADED: _ClassVar[LoadOutcome]
    LOAD_OUTCOME_UNCACHED: _ClassVar[LoadOutcome]
    LOAD_OUTCOME_ESTIMATED: _ClassVar[LoadOutcome]

class Speculation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SPECULATION_UNSPECIFIED: _ClassVar[Speculation]
    SPECULATION_AUTO: _ClassVar[Speculation]
    SPECULATION_OFF: _ClassVar[Speculation]
    SPECULATION_NGRAM: _ClassVar[Speculation]
    SPECULATION_DRAFT: _ClassVar[Speculation]
    SPECULATION_MTP: _ClassVar[Speculation]

class ToolChoice(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOOL_CHOICE_UNSPECIFIED: _ClassVar[ToolChoice]
    TOOL_CHOICE_AUTO: _ClassVar[ToolChoice]
    TOOL_CHOICE_NONE: _ClassVar[ToolChoice]
    TOOL_CHOICE_REQUIRED: _ClassVar[ToolChoice]

class CacheMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CACHE_MODE_UNSPECIFIED: _ClassVar[CacheMode]
    CACHE_MODE_READ_WRITE: _ClassVar[CacheMode]
    CACHE_MODE_READ_ONLY: _ClassVar[CacheMode]
    CACHE_MODE_BYPASS: _ClassVar[CacheMode]

class MissReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MISS_REASON_UNSPECIFIED: _ClassVar[MissReason]
    MISS_REASON_NEVER_SEEN: _ClassVar[MissReason]
    MISS_REASON_DIVERGED: _ClassVar[MissReason]
    MISS_REASON_EVICTED: _ClassVar[MissReason]
    MISS_REASON_INVALIDATED: _ClassVar[MissReason]
    MISS_REASON_OTHER_NAMESPACE: _ClassVar[MissReason]
    MISS_REASON_TOO_SHORT: _ClassVar[MissReason]
    MISS_REASON_RESUME_POINT: _ClassVar[MissReason]

class NamespacePart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NAMESPACE_PART_UNSPECIFIED: _ClassVar[NamespacePart]
    NAMESPACE_PART_WEIGHTS: _ClassVar[NamespacePart]
    NAMESPACE_PART_ADAPTER: _ClassVar[NamespacePart]
    NAMESPACE_PART_LAYOUT: _ClassVar[NamespacePart]
    NAMESPACE_PART_SALT: _ClassVar[NamespacePart]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_TOOL_CALLS: _ClassVar[FinishReason]

class HttpState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HTTP_STATE_UNSPECIFIED: _ClassVar[HttpState]
    HTTP_STATE_OFF: _ClassVar[HttpState]
    HTTP_STATE_STARTING: _ClassVar[HttpState]
    HTTP_STATE_SERVING: _ClassVar[HttpState]
    HTTP_STATE_RESTARTING: _ClassVar[HttpState]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_DRAINING: _ClassVar[ModelState]

class EngineState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENGINE_STATE_UNSPECIFIED: _ClassVar[EngineState]
    ENGINE_STATE_STARTING: _ClassVar[EngineState]
    ENGINE_STATE_READY: _ClassVar[EngineState]
    ENGINE_STATE_STALLED: _ClassVar[EngineState]
    ENGINE_STATE_RESTARTING: _ClassVar[EngineState]
    ENGINE_STATE_STOPPED: _ClassVar[EngineState]

class ModelPlace(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_PLACE_UNSPECIFIED: _ClassVar[ModelPlace]
    MODEL_PLACE_HUB_CACHE: _ClassVar[ModelPlace]
    MODEL_PLACE_ROOT: _ClassVar[ModelPlace]
    MODEL_PLACE_EMBEDDED: _ClassVar[ModelPlace]

class Pooling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POOLING_UNSPECIFIED: _ClassVar[Pooling]
    POOLING_LAST_TOKEN: _ClassVar[Pooling]
    POOLING_MEAN: _ClassVar[Pooling]
    POOLING_CLS: _ClassVar[Pooling]
LOAD_STAGE_UNSPECIFIED: LoadStage
LOAD_STAGE_QUEUED: LoadStage
LOAD_STAGE_DOWNLOADING: LoadStage
LOAD_STAGE_LOADING: LoadStage
LOAD_STAGE_WARMING_UP: LoadStage
PREFIX_REUSE_UNSPECIFIED: PrefixReuse
PREFIX_REUSE_BLOCKS: PrefixReuse
PREFIX_REUSE_CHECKPOINTS: PrefixReuse
PREFIX_REUSE_NONE: PrefixReuse
LOAD_OUTCOME_UNSPECIFIED: LoadOutcome
LOAD_OUTCOME_HIT: LoadOutcome
LOAD_OUTCOME_LOADED: LoadOutcome
LOAD_OUTCOME_UNCACHED: LoadOutcome
LOAD_OUTCOME_ESTIMATED: LoadOutcome
SPECULATION_UNSPECIFIED: Speculation
SPECULATION_AUTO: Speculation
SPECULATION_OFF: Speculation
SPECULATION_NGRAM: Speculation
SPECULATION_DRAFT: Speculation
SPECULATION_MTP: Speculation
TOOL_CHOICE_UNSPECIFIED: ToolChoice
TOOL_CHOICE_AUTO: ToolChoice
TOOL_CHOICE_NONE: ToolChoice
TOOL_CHOICE_REQUIRED: ToolChoice
CACHE_MODE_UNSPECIFIED: CacheMode
CACHE_MODE_READ_WRITE: CacheMode
CACHE_MODE_READ_ONLY: CacheMode
CACHE_MODE_BYPASS: CacheMode
MISS_REASON_UNSPECIFIED: MissReason
MISS_REASON_NEVER_SEEN: MissReason
MISS_REASON_DIVERGED: MissReason
MISS_REASON_EVICTED: MissReason
MISS_REASON_INVALIDATED: MissReason
MISS_REASON_OTHER_NAMESPACE: MissReason
MISS_REASON_TOO_SHORT: MissReason
MISS_REASON_RESUME_POINT: MissReason
NAMESPACE_PART_UNSPECIFIED: NamespacePart
NAMESPACE_PART_WEIGHTS: NamespacePart
NAMESPACE_PART_ADAPTER: NamespacePart
NAMESPACE_PART_LAYOUT: NamespacePart
NAMESPACE_PART_SALT: NamespacePart
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_TOOL_CALLS: FinishReason
HTTP_STATE_UNSPECIFIED: HttpState
HTTP_STATE_OFF: HttpState
HTTP_STATE_STARTING: HttpState
HTTP_STATE_SERVING: HttpState
HTTP_STATE_RESTARTING: HttpState
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_DRAINING: ModelState
ENGINE_STATE_UNSPECIFIED: EngineState
ENGINE_STATE_STARTING: EngineState
ENGINE_STATE_READY: EngineState
ENGINE_STATE_STALLED: EngineState
ENGINE_STATE_RESTARTING: EngineState
ENGINE_STATE_STOPPED: EngineState
MODEL_PLACE_UNSPECIFIED: ModelPlace
MODEL_PLACE_HUB_CACHE: ModelPlace
MODEL_PLACE_ROOT: ModelPlace
MODEL_PLACE_EMBEDDED: ModelPlace
POOLING_UNSPECIFIED: Pooling
POOLING_LAST_TOKEN: Pooling
POOLING_MEAN: Pooling
POOLING_CLS: Pooling

class GetOrLoadRequest(_message.Message):
    __slots__ = ("model", "revision", "adapter", "pin", "ttl", "skip_warmup", "allow_download", "estimate_only", "context_length", "update")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    SKIP_WARMUP_FIELD_NUMBER: _ClassVar[int]
    ALLOW_DOWNLOAD_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    model: str
    revision: str
    adapter: str
    pin: bool
    ttl: _duration_pb2.Duration
    skip_warmup: bool
    allow_download: bool
    estimate_only: bool
    context_length: int
    update: bool
    def __init__(self, model: _Optional[str] = ..., revision: _Optional[str] = ..., adapter: _Optional[str] = ..., pin: bool = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., skip_warmup: bool = ..., allow_download: bool = ..., estimate_only: bool = ..., context_length: _Optional[int] = ..., update: bool = ...) -> None: ...

class GetOrLoadResponse(_message.Message):
    __slots__ = ("progress", "ready")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    progress: LoadProgress
    ready: ModelInfo
    def __init__(self, progress: _Optional[_Union[LoadProgress, _Mapping]] = ..., ready: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...

class LoadProgress(_message.Message):
    __slots__ = ("stage", "bytes_done", "bytes_total", "evicting")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    EVICTING_FIELD_NUMBER: _ClassVar[int]
    stage: LoadStage
    bytes_done: int
    bytes_total: int
    evicting: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, stage: _Optional[_Union[LoadStage, str]] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., evicting: _Optional[_Iterable[str]] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("model", "fingerprint", "architecture", "size_bytes", "num_layers", "context_length", "vocab_size", "kv_bytes_per_token", "prefix_reuse", "outcome", "load_time", "evicted", "warmup_time", "revision", "warnings", "default_sampling", "max_request_tokens")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PREFIX_REUSE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    LOAD_TIME_FIELD_NUMBER: _ClassVar[int]
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    WARMUP_TIME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model: str
    fingerprint: str
    architecture: str
    size_bytes: int
    num_layers: int
    context_length: int
    vocab_size: int
    kv_bytes_per_token: int
    prefix_reuse: PrefixReuse
    outcome: LoadOutcome
    load_time: _duration_pb2.Duration
    evicted: _containers.RepeatedScalarFieldContainer[str]
    warmup_time: _duration_pb2.Duration
    revision: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    default_sampling: Sampling
    max_request_tokens: int
    def __init__(self, model: _Optional[str] = ..., fingerprint: _Optional[str] = ..., architecture: _Optional[str] = ..., size_bytes: _Optional[int] = ..., num_layers: _Optional[int] = ..., context_length: _Optional[int] = ..., vocab_size: _Optional[int] = ..., kv_bytes_per_token: _Optional[int] = ..., prefix_reuse: _Optional[_Union[PrefixReuse, str]] = ..., outcome: _Optional[_Union[LoadOutcome, str]] = ..., load_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., evicted: _Optional[_Iterable[str]] = ..., warmup_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., revision: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ..., default_sampling: _Optional[_Union[Sampling, _Mapping]] = ..., max_request_tokens: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("model", "adapter", "text", "tokens", "chat", "max_tokens", "sampling", "stop", "top_logprobs", "cache", "request_id", "require_loaded", "response_format", "reasoning_budget", "samples", "prompt_logprobs", "speculation", "priority", "draft_model", "draft_tokens")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_LOADED_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    REASONING_BUDGET_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MODEL_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model: str
    adapter: str
    text: str
    tokens: TokenIds
    chat: Chat
    max_tokens: int
    sampling: Sampling
    stop: Stop
    top_logprobs: int
    cache: CacheOptions
    request_id: str
    require_loaded: bool
    response_format: ResponseFormat
    reasoning_budget: int
    samples: int
    prompt_logprobs: int
    speculation: Speculation
    priority: int
    draft_model: str
    draft_tokens: int
    def __init__(self, model: _Optional[str] = ..., adapter: _Optional[str] = ..., text: _Optional[str] = ..., tokens: _Optional[_Union[TokenIds, _Mapping]] = ..., chat: _Optional[_Union[Chat, _Mapping]] = ..., max_tokens: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., stop: _Optional[_Union[Stop, _Mapping]] = ..., top_logprobs: _Optional[int] = ..., cache: _Optional[_Union[CacheOptions, _Mapping]] = ..., request_id: _Optional[str] = ..., require_loaded: bool = ..., response_format: _Optional[_Union[ResponseFormat, _Mapping]] = ..., reasoning_budget: _Optional[int] = ..., samples: _Optional[int] = ..., prompt_logprobs: _Optional[int] = ..., speculation: _Optional[_Union[Speculation, str]] = ..., priority: _Optional[int] = ..., draft_model: _Optional[str] = ..., draft_tokens: _Optional[int] = ...) -> None: ...

class ResponseFormat(_message.Message):
    __slots__ = ("json_schema", "json_object", "regex", "grammar")
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    JSON_OBJECT_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    json_schema: str
    json_object: JsonObject
    regex: str
    grammar: str
    def __init__(self, json_schema: _Optional[str] = ..., json_object: _Optional[_Union[JsonObject, _Mapping]] = ..., regex: _Optional[str] = ..., grammar: _Optional[str] = ...) -> None: ...

class JsonObject(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Chat(_message.Message):
    __slots__ = ("messages", "tools", "add_generation_prompt", "enable_thinking", "tool_choice", "required_tool", "template_args", "reasoning_effort", "continue_final_message", "allowed_tools")
    class TemplateArgsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    ADD_GENERATION_PROMPT_FIELD_NUMBER: _ClassVar[int]
    ENABLE_THINKING_FIELD_NUMBER: _ClassVar[int]
    TOOL_CHOICE_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_TOOL_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_ARGS_FIELD_NUMBER: _ClassVar[int]
    REASONING_EFFORT_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FINAL_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_TOOLS_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    tools: _containers.RepeatedCompositeFieldContainer[Tool]
    add_generation_prompt: bool
    enable_thinking: bool
    tool_choice: ToolChoice
    required_tool: str
    template_args: _containers.ScalarMap[str, str]
    reasoning_effort: str
    continue_final_message: bool
    allowed_tools: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., tools: _Optional[_Iterable[_Union[Tool, _Mapping]]] = ..., add_generation_prompt: bool = ..., enable_thinking: bool = ..., tool_choice: _Optional[_Union[ToolChoice, str]] = ..., required_tool: _Optional[str] = ..., template_args: _Optional[_Mapping[str, str]] = ..., reasoning_effort: _Optional[str] = ..., continue_final_message: bool = ..., allowed_tools: _Optional[_Iterable[str]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    REASONING_CONTENT_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    reasoning_content: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[ToolCall]
    tool_call_id: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ..., reasoning_content: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[ToolCall, _Mapping]]] = ..., tool_call_id: _Optional[str] = ...) -> None: ...

class ToolCall(_message.Message):
    __slots__ = ("id", "name", "arguments_json")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    arguments_json: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., arguments_json: _Optional[str] = ...) -> None: ...

class Tool(_message.Message):
    __slots__ = ("name", "description", "parameters_json")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_JSON_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    parameters_json: str
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., parameters_json: _Optional[str] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "model_defaults")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    MODEL_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    model_defaults: bool
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., model_defaults: bool = ...) -> None: ...

class Stop(_message.Message):
    __slots__ = ("strings", "token_ids", "ignore_eos", "at_tool_call")
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    AT_TOOL_CALL_FIELD_NUMBER: _ClassVar[int]
    strings: _containers.RepeatedScalarFieldContainer[str]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    at_tool_call: bool
    def __init__(self, strings: _Optional[_Iterable[str]] = ..., token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: bool = ..., at_tool_call: bool = ...) -> None: ...

class CacheOptions(_message.Message):
    __slots__ = ("mode", "salt", "keep")
    MODE_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    mode: CacheMode
    salt: str
    keep: _duration_pb2.Duration
    def __init__(self, mode: _Optional[_Union[CacheMode, str]] = ..., salt: _Optional[str] = ..., keep: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("seq", "started", "prefill", "delta", "finished", "prompt_logprobs")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    seq: int
    started: Started
    prefill: PrefillProgress
    delta: Delta
    finished: Finished
    prompt_logprobs: PromptLogprobs
    def __init__(self, seq: _Optional[int] = ..., started: _Optional[_Union[Started, _Mapping]] = ..., prefill: _Optional[_Union[PrefillProgress, _Mapping]] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., prompt_logprobs: _Optional[_Union[PromptLogprobs, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("request_id", "model", "prompt_tokens", "cached_tokens", "warnings", "miss", "disk_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    MISS_FIELD_NUMBER: _ClassVar[int]
    DISK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    prompt_tokens: int
    cached_tokens: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    miss: Miss
    disk_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ..., miss: _Optional[_Union[Miss, _Mapping]] = ..., disk_tokens: _Optional[int] = ...) -> None: ...

class Miss(_message.Message):
    __slots__ = ("reason", "token", "resume_token", "message", "character", "seen", "differs")
    REASON_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CHARACTER_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    DIFFERS_FIELD_NUMBER: _ClassVar[int]
    reason: MissReason
    token: int
    resume_token: int
    message: int
    character: int
    seen: _duration_pb2.Duration
    differs: _containers.RepeatedScalarFieldContainer[NamespacePart]
    def __init__(self, reason: _Optional[_Union[MissReason, str]] = ..., token: _Optional[int] = ..., resume_token: _Optional[int] = ..., message: _Optional[int] = ..., character: _Optional[int] = ..., seen: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., differs: _Optional[_Iterable[_Union[NamespacePart, str]]] = ...) -> None: ...

class PrefillProgress(_message.Message):
    __slots__ = ("done", "total")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class PromptLogprobs(_message.Message):
    __slots__ = ("start", "logprobs")
    START_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    start: int
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, start: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("text", "token_ids", "logprobs", "reasoning", "tool_calls", "tool_call_deltas", "index")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_DELTAS_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    reasoning: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[GeneratedToolCall]
    tool_call_deltas: _containers.RepeatedCompositeFieldContainer[ToolCallDelta]
    index: int
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ..., reasoning: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[GeneratedToolCall, _Mapping]]] = ..., tool_call_deltas: _Optional[_Iterable[_Union[ToolCallDelta, _Mapping]]] = ..., index: _Optional[int] = ...) -> None: ...

class ToolCallDelta(_message.Message):
    __slots__ = ("index", "id", "name", "arguments_json", "withdrawn")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    index: int
    id: str
    name: str
    arguments_json: str
    withdrawn: bool
    def __init__(self, index: _Optional[int] = ..., id: _Optional[str] = ..., name: _Optional[str] = ..., arguments_json: _Optional[str] = ..., withdrawn: bool = ...) -> None: ...

class GeneratedToolCall(_message.Message):
    __slots__ = ("index", "id", "name", "arguments_json")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    index: int
    id: str
    name: str
    arguments_json: str
    def __init__(self, index: _Optional[int] = ..., id: _Optional[str] = ..., name: _Optional[str] = ..., arguments_json: _Optional[str] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token_id", "logprob", "top", "text")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TopLogprob]
    text: str
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TopLogprob, _Mapping]]] = ..., text: _Optional[str] = ...) -> None: ...

class TopLogprob(_message.Message):
    __slots__ = ("token_id", "logprob", "text")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    text: str
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., text: _Optional[str] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason", "stop_match", "usage", "timings", "index", "seed")
    REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_MATCH_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    reason: FinishReason
    stop_match: str
    usage: Usage
    timings: Timings
    index: int
    seed: int
    def __init__(self, reason: _Optional[_Union[FinishReason, str]] = ..., stop_match: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., index: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "cached_tokens", "completion_tokens", "draft_tokens", "accepted_tokens", "reasoning_tokens", "guesses")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASONING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GUESSES_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    draft_tokens: int
    accepted_tokens: int
    reasoning_tokens: int
    guesses: _containers.RepeatedCompositeFieldContainer[GuessCount]
    def __init__(self, prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., draft_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., reasoning_tokens: _Optional[int] = ..., guesses: _Optional[_Iterable[_Union[GuessCount, _Mapping]]] = ...) -> None: ...

class GuessCount(_message.Message):
    __slots__ = ("source", "guessed", "accepted")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    GUESSED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    source: Speculation
    guessed: int
    accepted: int
    def __init__(self, source: _Optional[_Union[Speculation, str]] = ..., guessed: _Optional[int] = ..., accepted: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue", "load", "lookup", "restore", "prefill", "decode", "first_token")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_FIELD_NUMBER: _ClassVar[int]
    RESTORE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    queue: _duration_pb2.Duration
    load: _duration_pb2.Duration
    lookup: _duration_pb2.Duration
    restore: _duration_pb2.Duration
    prefill: _duration_pb2.Duration
    decode: _duration_pb2.Duration
    first_token: _duration_pb2.Duration
    def __init__(self, queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., load: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lookup: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., restore: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., prefill: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., decode: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., first_token: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class InvalidateRequest(_message.Message):
    __slots__ = ("model", "prefix", "all", "dry_run")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    model: ModelTarget
    prefix: PrefixTarget
    all: AllTarget
    dry_run: bool
    def __init__(self, model: _Optional[_Union[ModelTarget, _Mapping]] = ..., prefix: _Optional[_Union[PrefixTarget, _Mapping]] = ..., all: _Optional[_Union[AllTarget, _Mapping]] = ..., dry_run: bool = ...) -> None: ...

class ModelTarget(_message.Message):
    __slots__ = ("model", "weights", "prefixes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    model: str
    weights: bool
    prefixes: bool
    def __init__(self, model: _Optional[str] = ..., weights: bool = ..., prefixes: bool = ...) -> None: ...

class PrefixTarget(_message.Message):
    __slots__ = ("model", "text", "tokens", "salt")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    tokens: TokenIds
    salt: str
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ..., tokens: _Optional[_Union[TokenIds, _Mapping]] = ..., salt: _Optional[str] = ...) -> None: ...

class AllTarget(_message.Message):
    __slots__ = ("weights", "prefixes")
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    weights: bool
    prefixes: bool
    def __init__(self, weights: bool = ..., prefixes: bool = ...) -> None: ...

class InvalidateResponse(_message.Message):
    __slots__ = ("models", "blocks", "bytes_freed", "bytes_in_use")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FREED_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_USE_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedScalarFieldContainer[str]
    blocks: int
    bytes_freed: int
    bytes_in_use: int
    def __init__(self, models: _Optional[_Iterable[str]] = ..., blocks: _Optional[int] = ..., bytes_freed: _Optional[int] = ..., bytes_in_use: _Optional[int] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ("include_history",)
    INCLUDE_HISTORY_FIELD_NUMBER: _ClassVar[int]
    include_history: bool
    def __init__(self, include_history: bool = ...) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("daemon", "model_cache", "models", "prefix_cache", "engine", "memory", "latency", "history", "group")
    DAEMON_FIELD_NUMBER: _ClassVar[int]
    MODEL_CACHE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    daemon: DaemonStats
    model_cache: ModelCacheStats
    models: _containers.RepeatedCompositeFieldContainer[ModelStats]
    prefix_cache: PrefixCacheStats
    engine: EngineStats
    memory: MemoryStats
    latency: LatencyStats
    history: _containers.RepeatedCompositeFieldContainer[HistorySample]
    group: GroupStats
    def __init__(self, daemon: _Optional[_Union[DaemonStats, _Mapping]] = ..., model_cache: _Optional[_Union[ModelCacheStats, _Mapping]] = ..., models: _Optional[_Iterable[_Union[ModelStats, _Mapping]]] = ..., prefix_cache: _Optional[_Union[PrefixCacheStats, _Mapping]] = ..., engine: _Optional[_Union[EngineStats, _Mapping]] = ..., memory: _Optional[_Union[MemoryStats, _Mapping]] = ..., latency: _Optional[_Union[LatencyStats, _Mapping]] = ..., history: _Optional[_Iterable[_Union[HistorySample, _Mapping]]] = ..., group: _Optional[_Union[GroupStats, _Mapping]] = ...) -> None: ...

class GroupStats(_message.Message):
    __slots__ = ("state", "problem", "ranks", "models", "pid", "restarts", "limit_bytes", "used_bytes", "decoding", "generated_tokens", "disk_bytes", "disk_budget_bytes", "disk_tokens_reused", "disk_faults")
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_TOKENS_REUSED_FIELD_NUMBER: _ClassVar[int]
    DISK_FAULTS_FIELD_NUMBER: _ClassVar[int]
    state: EngineState
    problem: str
    ranks: _containers.RepeatedCompositeFieldContainer[RankStats]
    models: _containers.RepeatedCompositeFieldContainer[ModelStats]
    pid: int
    restarts: int
    limit_bytes: int
    used_bytes: int
    decoding: int
    generated_tokens: int
    disk_bytes: int
    disk_budget_bytes: int
    disk_tokens_reused: int
    disk_faults: int
    def __init__(self, state: _Optional[_Union[EngineState, str]] = ..., problem: _Optional[str] = ..., ranks: _Optional[_Iterable[_Union[RankStats, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[ModelStats, _Mapping]]] = ..., pid: _Optional[int] = ..., restarts: _Optional[int] = ..., limit_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., decoding: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., disk_budget_bytes: _Optional[int] = ..., disk_tokens_reused: _Optional[int] = ..., disk_faults: _Optional[int] = ...) -> None: ...

class RankStats(_message.Message):
    __slots__ = ("rank", "address", "problem", "versions")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    rank: int
    address: str
    problem: str
    versions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, rank: _Optional[int] = ..., address: _Optional[str] = ..., problem: _Optional[str] = ..., versions: _Optional[_Iterable[str]] = ...) -> None: ...

class DaemonStats(_message.Message):
    __slots__ = ("version", "pid", "uptime", "draining", "mlx_version", "mlx_lm_version", "device", "http")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    MLX_VERSION_FIELD_NUMBER: _ClassVar[int]
    MLX_LM_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    HTTP_FIELD_NUMBER: _ClassVar[int]
    version: str
    pid: int
    uptime: _duration_pb2.Duration
    draining: bool
    mlx_version: str
    mlx_lm_version: str
    device: str
    http: HttpStats
    def __init__(self, version: _Optional[str] = ..., pid: _Optional[int] = ..., uptime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., draining: bool = ..., mlx_version: _Optional[str] = ..., mlx_lm_version: _Optional[str] = ..., device: _Optional[str] = ..., http: _Optional[_Union[HttpStats, _Mapping]] = ...) -> None: ...

class HttpStats(_message.Message):
    __slots__ = ("state", "address", "pid", "restarts")
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    state: HttpState
    address: str
    pid: int
    restarts: int
    def __init__(self, state: _Optional[_Union[HttpState, str]] = ..., address: _Optional[str] = ..., pid: _Optional[int] = ..., restarts: _Optional[int] = ...) -> None: ...

class ModelCacheStats(_message.Message):
    __slots__ = ("cached_models", "max_models", "total_hits", "total_misses", "hit_rate", "total_memory_bytes", "budget_bytes", "evictions", "oldest_entry_age")
    CACHED_MODELS_FIELD_NUMBER: _ClassVar[int]
    MAX_MODELS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_HITS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MISSES_FIELD_NUMBER: _ClassVar[int]
    HIT_RATE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_ENTRY_AGE_FIELD_NUMBER: _ClassVar[int]
    cached_models: int
    max_models: int
    total_hits: int
    total_misses: int
    hit_rate: float
    total_memory_bytes: int
    budget_bytes: int
    evictions: int
    oldest_entry_age: _duration_pb2.Duration
    def __init__(self, cached_models: _Optional[int] = ..., max_models: _Optional[int] = ..., total_hits: _Optional[int] = ..., total_misses: _Optional[int] = ..., hit_rate: _Optional[float] = ..., total_memory_bytes: _Optional[int] = ..., budget_bytes: _Optional[int] = ..., evictions: _Optional[int] = ..., oldest_entry_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ModelStats(_message.Message):
    __slots__ = ("info", "state", "in_use", "use_count", "age", "idle", "expires_in", "pinned", "names")
    INFO_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    USE_COUNT_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    info: ModelInfo
    state: ModelState
    in_use: int
    use_count: int
    age: _duration_pb2.Duration
    idle: _duration_pb2.Duration
    expires_in: _duration_pb2.Duration
    pinned: bool
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, info: _Optional[_Union[ModelInfo, _Mapping]] = ..., state: _Optional[_Union[ModelState, str]] = ..., in_use: _Optional[int] = ..., use_count: _Optional[int] = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., idle: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., expires_in: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., pinned: bool = ..., names: _Optional[_Iterable[str]] = ...) -> None: ...

class PrefixCacheStats(_message.Message):
    __slots__ = ("blocks", "max_blocks", "block_tokens", "bytes", "budget_bytes", "buffers", "lookups", "hits", "hit_rate", "tokens_looked_up", "tokens_reused", "inserts", "evictions", "leases", "checkpoints", "namespaces", "total_namespaces", "kept", "misses", "total_kept", "kept_bytes", "kept_budget_bytes", "kept_yielded", "evictable_bytes", "most_bytes", "disk_bytes", "disk_blocks", "disk_budget_bytes", "disk_hits", "disk_tokens_reused", "disk_written_bytes", "disk_faults", "shared_prefixes", "shared_readers", "shared_bytes", "tokens_shared", "shared_copied_tokens", "tails", "tail_tokens_reused")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUFFERS_FIELD_NUMBER: _ClassVar[int]
    LOOKUPS_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    HIT_RATE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_LOOKED_UP_FIELD_NUMBER: _ClassVar[int]
    TOKENS_REUSED_FIELD_NUMBER: _ClassVar[int]
    INSERTS_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_KEPT_FIELD_NUMBER: _ClassVar[int]
    KEPT_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEPT_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEPT_YIELDED_FIELD_NUMBER: _ClassVar[int]
    EVICTABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DISK_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_HITS_FIELD_NUMBER: _ClassVar[int]
    DISK_TOKENS_REUSED_FIELD_NUMBER: _ClassVar[int]
    DISK_WRITTEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FAULTS_FIELD_NUMBER: _ClassVar[int]
    SHARED_PREFIXES_FIELD_NUMBER: _ClassVar[int]
    SHARED_READERS_FIELD_NUMBER: _ClassVar[int]
    SHARED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_SHARED_FIELD_NUMBER: _ClassVar[int]
    SHARED_COPIED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TAILS_FIELD_NUMBER: _ClassVar[int]
    TAIL_TOKENS_REUSED_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    max_blocks: int
    block_tokens: int
    bytes: int
    budget_bytes: int
    buffers: int
    lookups: int
    hits: int
    hit_rate: float
    tokens_looked_up: int
    tokens_reused: int
    inserts: int
    evictions: int
    leases: int
    checkpoints: int
    namespaces: _containers.RepeatedCompositeFieldContainer[NamespaceStats]
    total_namespaces: int
    kept: _containers.RepeatedCompositeFieldContainer[KeptPrefix]
    misses: MissCounts
    total_kept: int
    kept_bytes: int
    kept_budget_bytes: int
    kept_yielded: int
    evictable_bytes: int
    most_bytes: int
    disk_bytes: int
    disk_blocks: int
    disk_budget_bytes: int
    disk_hits: int
    disk_tokens_reused: int
    disk_written_bytes: int
    disk_faults: int
    shared_prefixes: int
    shared_readers: int
    shared_bytes: int
    tokens_shared: int
    shared_copied_tokens: int
    tails: int
    tail_tokens_reused: int
    def __init__(self, blocks: _Optional[int] = ..., max_blocks: _Optional[int] = ..., block_tokens: _Optional[int] = ..., bytes: _Optional[int] = ..., budget_bytes: _Optional[int] = ..., buffers: _Optional[int] = ..., lookups: _Optional[int] = ..., hits: _Optional[int] = ..., hit_rate: _Optional[float] = ..., tokens_looked_up: _Optional[int] = ..., tokens_reused: _Optional[int] = ..., inserts: _Optional[int] = ..., evictions: _Optional[int] = ..., leases: _Optional[int] = ..., checkpoints: _Optional[int] = ..., namespaces: _Optional[_Iterable[_Union[NamespaceStats, _Mapping]]] = ..., total_namespaces: _Optional[int] = ..., kept: _Optional[_Iterable[_Union[KeptPrefix, _Mapping]]] = ..., misses: _Optional[_Union[MissCounts, _Mapping]] = ..., total_kept: _Optional[int] = ..., kept_bytes: _Optional[int] = ..., kept_budget_bytes: _Optional[int] = ..., kept_yielded: _Optional[int] = ..., evictable_bytes: _Optional[int] = ..., most_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., disk_blocks: _Optional[int] = ..., disk_budget_bytes: _Optional[int] = ..., disk_hits: _Optional[int] = ..., disk_tokens_reused: _Optional[int] = ..., disk_written_bytes: _Optional[int] = ..., disk_faults: _Optional[int] = ..., shared_prefixes: _Optional[int] = ..., shared_readers: _Optional[int] = ..., shared_bytes: _Optional[int] = ..., tokens_shared: _Optional[int] = ..., shared_copied_tokens: _Optional[int] = ..., tails: _Optional[int] = ..., tail_tokens_reused: _Optional[int] = ...) -> None: ...

class KeptPrefix(_message.Message):
    __slots__ = ("namespace", "tokens", "bytes", "expires_in")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    tokens: int
    bytes: int
    expires_in: _duration_pb2.Duration
    def __init__(self, namespace: _Optional[str] = ..., tokens: _Optional[int] = ..., bytes: _Optional[int] = ..., expires_in: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class MissCounts(_message.Message):
    __slots__ = ("never_seen", "diverged", "evicted", "invalidated", "other_namespace", "too_short", "resume_point")
    NEVER_SEEN_FIELD_NUMBER: _ClassVar[int]
    DIVERGED_FIELD_NUMBER: _ClassVar[int]
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    INVALIDATED_FIELD_NUMBER: _ClassVar[int]
    OTHER_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TOO_SHORT_FIELD_NUMBER: _ClassVar[int]
    RESUME_POINT_FIELD_NUMBER: _ClassVar[int]
    never_seen: int
    diverged: int
    evicted: int
    invalidated: int
    other_namespace: int
    too_short: int
    resume_point: int
    def __init__(self, never_seen: _Optional[int] = ..., diverged: _Optional[int] = ..., evicted: _Optional[int] = ..., invalidated: _Optional[int] = ..., other_namespace: _Optional[int] = ..., too_short: _Optional[int] = ..., resume_point: _Optional[int] = ...) -> None: ...

class NamespaceStats(_message.Message):
    __slots__ = ("namespace", "model", "adapter", "salted", "blocks", "branches", "hits", "tokens_reused")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    SALTED_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_REUSED_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    model: str
    adapter: str
    salted: bool
    blocks: int
    branches: int
    hits: int
    tokens_reused: int
    def __init__(self, namespace: _Optional[str] = ..., model: _Optional[str] = ..., adapter: _Optional[str] = ..., salted: bool = ..., blocks: _Optional[int] = ..., branches: _Optional[int] = ..., hits: _Optional[int] = ..., tokens_reused: _Optional[int] = ...) -> None: ...

class EngineStats(_message.Message):
    __slots__ = ("state", "restarts", "step_age", "queued", "prefilling", "decoding", "prompt_tokens", "generated_tokens", "rejected", "cancelled", "pid", "step_time_p50", "step_time_p99", "token_gap_p50", "token_gap_p99", "batch_size_p50", "batch_size_p99", "stuck", "callers", "guesses")
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    STEP_AGE_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    PREFILLING_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STEP_TIME_P50_FIELD_NUMBER: _ClassVar[int]
    STEP_TIME_P99_FIELD_NUMBER: _ClassVar[int]
    TOKEN_GAP_P50_FIELD_NUMBER: _ClassVar[int]
    TOKEN_GAP_P99_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_P50_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_P99_FIELD_NUMBER: _ClassVar[int]
    STUCK_FIELD_NUMBER: _ClassVar[int]
    CALLERS_FIELD_NUMBER: _ClassVar[int]
    GUESSES_FIELD_NUMBER: _ClassVar[int]
    state: EngineState
    restarts: int
    step_age: _duration_pb2.Duration
    queued: int
    prefilling: int
    decoding: int
    prompt_tokens: int
    generated_tokens: int
    rejected: int
    cancelled: int
    pid: int
    step_time_p50: _duration_pb2.Duration
    step_time_p99: _duration_pb2.Duration
    token_gap_p50: _duration_pb2.Duration
    token_gap_p99: _duration_pb2.Duration
    batch_size_p50: int
    batch_size_p99: int
    stuck: _containers.RepeatedCompositeFieldContainer[StuckWork]
    callers: _containers.RepeatedCompositeFieldContainer[CallerStats]
    guesses: _containers.RepeatedCompositeFieldContainer[GuessStats]
    def __init__(self, state: _Optional[_Union[EngineState, str]] = ..., restarts: _Optional[int] = ..., step_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., queued: _Optional[int] = ..., prefilling: _Optional[int] = ..., decoding: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., rejected: _Optional[int] = ..., cancelled: _Optional[int] = ..., pid: _Optional[int] = ..., step_time_p50: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., step_time_p99: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., token_gap_p50: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., token_gap_p99: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., batch_size_p50: _Optional[int] = ..., batch_size_p99: _Optional[int] = ..., stuck: _Optional[_Iterable[_Union[StuckWork, _Mapping]]] = ..., callers: _Optional[_Iterable[_Union[CallerStats, _Mapping]]] = ..., guesses: _Optional[_Iterable[_Union[GuessStats, _Mapping]]] = ...) -> None: ...

class GuessStats(_message.Message):
    __slots__ = ("model", "source", "guessed", "accepted", "gain", "parked")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    GUESSED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    GAIN_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    model: str
    source: Speculation
    guessed: int
    accepted: int
    gain: float
    parked: bool
    def __init__(self, model: _Optional[str] = ..., source: _Optional[_Union[Speculation, str]] = ..., guessed: _Optional[int] = ..., accepted: _Optional[int] = ..., gain: _Optional[float] = ..., parked: bool = ...) -> None: ...

class CallerStats(_message.Message):
    __slots__ = ("pid", "program", "declared", "waiting", "running", "calls", "last_call")
    PID_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    DECLARED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    LAST_CALL_FIELD_NUMBER: _ClassVar[int]
    pid: int
    program: str
    declared: bool
    waiting: int
    running: int
    calls: int
    last_call: _duration_pb2.Duration
    def __init__(self, pid: _Optional[int] = ..., program: _Optional[str] = ..., declared: bool = ..., waiting: _Optional[int] = ..., running: _Optional[int] = ..., calls: _Optional[int] = ..., last_call: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class StuckWork(_message.Message):
    __slots__ = ("work", "model", "silent")
    WORK_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    work: str
    model: str
    silent: _duration_pb2.Duration
    def __init__(self, work: _Optional[str] = ..., model: _Optional[str] = ..., silent: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class MemoryStats(_message.Message):
    __slots__ = ("active_bytes", "cache_bytes", "peak_bytes", "weights_bytes", "trie_bytes", "live_kv_bytes", "headroom_bytes", "limit_bytes")
    ACTIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRIE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIVE_KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    HEADROOM_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    active_bytes: int
    cache_bytes: int
    peak_bytes: int
    weights_bytes: int
    trie_bytes: int
    live_kv_bytes: int
    headroom_bytes: int
    limit_bytes: int
    def __init__(self, active_bytes: _Optional[int] = ..., cache_bytes: _Optional[int] = ..., peak_bytes: _Optional[int] = ..., weights_bytes: _Optional[int] = ..., trie_bytes: _Optional[int] = ..., live_kv_bytes: _Optional[int] = ..., headroom_bytes: _Optional[int] = ..., limit_bytes: _Optional[int] = ...) -> None: ...

class LatencyStats(_message.Message):
    __slots__ = ("queue", "load", "prefill", "first_token", "per_token", "total")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    queue: LatencyHistogram
    load: LatencyHistogram
    prefill: LatencyHistogram
    first_token: LatencyHistogram
    per_token: LatencyHistogram
    total: LatencyHistogram
    def __init__(self, queue: _Optional[_Union[LatencyHistogram, _Mapping]] = ..., load: _Optional[_Union[LatencyHistogram, _Mapping]] = ..., prefill: _Optional[_Union[LatencyHistogram, _Mapping]] = ..., first_token: _Optional[_Union[LatencyHistogram, _Mapping]] = ..., per_token: _Optional[_Union[LatencyHistogram, _Mapping]] = ..., total: _Optional[_Union[LatencyHistogram, _Mapping]] = ...) -> None: ...

class LatencyHistogram(_message.Message):
    __slots__ = ("bounds", "counts", "sum")
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    bounds: _containers.RepeatedCompositeFieldContainer[_duration_pb2.Duration]
    counts: _containers.RepeatedScalarFieldContainer[int]
    sum: _duration_pb2.Duration
    def __init__(self, bounds: _Optional[_Iterable[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]]] = ..., counts: _Optional[_Iterable[int]] = ..., sum: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class HistorySample(_message.Message):
    __slots__ = ("age", "lookups", "hits", "tokens_looked_up", "tokens_reused", "prompt_tokens", "generated_tokens", "in_flight", "weights_bytes", "trie_bytes", "live_kv_bytes", "disk_tokens_reused")
    AGE_FIELD_NUMBER: _ClassVar[int]
    LOOKUPS_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_LOOKED_UP_FIELD_NUMBER: _ClassVar[int]
    TOKENS_REUSED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRIE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIVE_KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_TOKENS_REUSED_FIELD_NUMBER: _ClassVar[int]
    age: _duration_pb2.Duration
    lookups: int
    hits: int
    tokens_looked_up: int
    tokens_reused: int
    prompt_tokens: int
    generated_tokens: int
    in_flight: int
    weights_bytes: int
    trie_bytes: int
    live_kv_bytes: int
    disk_tokens_reused: int
    def __init__(self, age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lookups: _Optional[int] = ..., hits: _Optional[int] = ..., tokens_looked_up: _Optional[int] = ..., tokens_reused: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., in_flight: _Optional[int] = ..., weights_bytes: _Optional[int] = ..., trie_bytes: _Optional[int] = ..., live_kv_bytes: _Optional[int] = ..., disk_tokens_reused: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "unread", "fits_bytes", "truncated", "aliases")
    class AliasesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODELS_FIELD_NUMBER: _ClassVar[int]
    UNREAD_FIELD_NUMBER: _ClassVar[int]
    FITS_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ListedModel]
    unread: _containers.RepeatedCompositeFieldContainer[UnreadPlace]
    fits_bytes: int
    truncated: bool
    aliases: _containers.ScalarMap[str, str]
    def __init__(self, models: _Optional[_Iterable[_Union[ListedModel, _Mapping]]] = ..., unread: _Optional[_Iterable[_Union[UnreadPlace, _Mapping]]] = ..., fits_bytes: _Optional[int] = ..., truncated: bool = ..., aliases: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListedModel(_message.Message):
    __slots__ = ("model", "aliases", "place", "loaded", "complete", "size_bytes", "disk_bytes", "fits", "architecture", "context_length", "quantization_bits", "revision", "can", "problem", "path", "last_used_unix_seconds")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    FITS_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_BITS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CAN_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    place: ModelPlace
    loaded: bool
    complete: bool
    size_bytes: int
    disk_bytes: int
    fits: bool
    architecture: str
    context_length: int
    quantization_bits: int
    revision: str
    can: ModelAbilities
    problem: str
    path: str
    last_used_unix_seconds: int
    def __init__(self, model: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., place: _Optional[_Union[ModelPlace, str]] = ..., loaded: bool = ..., complete: bool = ..., size_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., fits: bool = ..., architecture: _Optional[str] = ..., context_length: _Optional[int] = ..., quantization_bits: _Optional[int] = ..., revision: _Optional[str] = ..., can: _Optional[_Union[ModelAbilities, _Mapping]] = ..., problem: _Optional[str] = ..., path: _Optional[str] = ..., last_used_unix_seconds: _Optional[int] = ...) -> None: ...

class ModelAbilities(_message.Message):
    __slots__ = ("chat", "tools", "reasoning", "embeddings")
    CHAT_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    chat: bool
    tools: bool
    reasoning: bool
    embeddings: bool
    def __init__(self, chat: bool = ..., tools: bool = ..., reasoning: bool = ..., embeddings: bool = ...) -> None: ...

class UnreadPlace(_message.Message):
    __slots__ = ("path", "reason")
    PATH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    path: str
    reason: str
    def __init__(self, path: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("model", "text", "tokens", "chat", "count_only")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    COUNT_ONLY_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    tokens: TokenIds
    chat: Chat
    count_only: bool
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ..., tokens: _Optional[_Union[TokenIds, _Mapping]] = ..., chat: _Optional[_Union[Chat, _Mapping]] = ..., count_only: bool = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("ids", "count", "text", "context_length", "vocab_size")
    IDS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    count: int
    text: str
    context_length: int
    vocab_size: int
    def __init__(self, ids: _Optional[_Iterable[int]] = ..., count: _Optional[int] = ..., text: _Optional[str] = ..., context_length: _Optional[int] = ..., vocab_size: _Optional[int] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("model", "adapter", "texts", "prompt_name", "prompt", "dimensions", "normalize", "pooling", "cache", "request_id", "require_loaded", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_NAME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_LOADED_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    adapter: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    prompt_name: str
    prompt: str
    dimensions: int
    normalize: bool
    pooling: Pooling
    cache: CacheOptions
    request_id: str
    require_loaded: bool
    priority: int
    def __init__(self, model: _Optional[str] = ..., adapter: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., prompt_name: _Optional[str] = ..., prompt: _Optional[str] = ..., dimensions: _Optional[int] = ..., normalize: bool = ..., pooling: _Optional[_Union[Pooling, str]] = ..., cache: _Optional[_Union[CacheOptions, _Mapping]] = ..., request_id: _Optional[str] = ..., require_loaded: bool = ..., priority: _Optional[int] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("embedding", "finished")
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    embedding: Embedding
    finished: EmbedFinished
    def __init__(self, embedding: _Optional[_Union[Embedding, _Mapping]] = ..., finished: _Optional[_Union[EmbedFinished, _Mapping]] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("index", "values")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    index: int
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, index: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class EmbedFinished(_message.Message):
    __slots__ = ("model", "dimensions", "pooling", "normalized", "usage", "time")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    model: str
    dimensions: int
    pooling: Pooling
    normalized: bool
    usage: Usage
    time: _duration_pb2.Duration
    def __init__(self, model: _Optional[str] = ..., dimensions: _Optional[int] = ..., pooling: _Optional[_Union[Pooling, str]] = ..., normalized: bool = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
