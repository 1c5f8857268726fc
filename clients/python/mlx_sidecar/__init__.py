"""
Client of mlx-sidecar: calls language models of the local daemon over a Unix socket.

    >>> from mlx_sidecar import Client
    >>> with Client() as client:
    ...     print(client.complete("embedded", "Hello").text)

`AsyncClient` is the same for asyncio. Importing this package imports no submodule: each exported name is imported at
its first use (PEP 562), and grpc with the first client.

The exported names are listed three times: the `TYPE_CHECKING` imports for type checkers, `_HOMES` for the interpreter,
`__all__` for both. Type checkers run no code, so no list can be computed from another. A test in
tests/client/test_client_imports.py fails if the lists differ.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlx_sidecar._version import __version__

if TYPE_CHECKING:
    from mlx_sidecar._address import default_socket_path
    from mlx_sidecar._aio import AsyncClient
    from mlx_sidecar._aio_streams import AsyncGenerateStream, AsyncLoadStream
    from mlx_sidecar._cache_stats import (
        KeptPrefix,
        MissCounts,
        ModelCacheStats,
        ModelStats,
        NamespaceStats,
        PrefixCacheStats,
    )
    from mlx_sidecar._client import Client
    from mlx_sidecar._exceptions import (
        BudgetInUse,
        Cancelled,
        ConnectionLost,
        ContextLengthExceeded,
        DaemonNotRunning,
        DeadlineExceeded,
        EngineRestarted,
        InternalError,
        InvalidArgument,
        MachineExhausted,
        MachineFault,
        ModelCorrupt,
        ModelExceedsBudget,
        ModelGated,
        ModelNotCached,
        ModelNotFound,
        ModelNotResponding,
        ModelQuarantined,
        ModelUnsupported,
        NanLogits,
        ProtocolError,
        QueueFull,
        RequestExceedsMemory,
        RequestQuarantined,
        ShuttingDown,
        SidecarError,
        SlowConsumer,
        SlowSender,
        UntrustedSocket,
    )
    from mlx_sidecar._group import GroupStats, RankStats
    from mlx_sidecar._latency import LatencyHistogram, LatencyStats
    from mlx_sidecar._listing import ListedModel, ModelAbilities, ModelList, UnreadPlace
    from mlx_sidecar._logprobs import PromptLogprobs, TokenLogprob, TopLogprob
    from mlx_sidecar._messages import Message, Prompt, Tool, ToolCall
    from mlx_sidecar._model_info import DefaultSampling, ModelInfo
    from mlx_sidecar._options import GenerateOptions, LoadOptions
    from mlx_sidecar._results import (
        Completion,
        Delta,
        Finished,
        GeneratedToolCall,
        GenerateEvent,
        GuessCount,
        Invalidated,
        LoadProgress,
        Miss,
        PrefillProgress,
        Started,
        Timings,
        ToolCallDelta,
        Usage,
    )
    from mlx_sidecar._stats import (
        CallerStats,
        DaemonStats,
        EngineStats,
        GuessStats,
        HistorySample,
        HttpStats,
        MemoryStats,
        Stats,
        StuckWork,
    )
    from mlx_sidecar._streams import GenerateStream, LoadStream
    from mlx_sidecar._texts import Embeddings, EmbedOptions, TokenizeOptions, Tokens

_HOMES = {
    "_address": "default_socket_path",
    "_aio": "AsyncClient",
    "_aio_streams": "AsyncGenerateStream AsyncLoadStream",
    "_cache_stats": "KeptPrefix MissCounts ModelCacheStats ModelStats NamespaceStats PrefixCacheStats",
    "_client": "Client",
    "_exceptions": (
        "BudgetInUse Cancelled ConnectionLost ContextLengthExceeded DaemonNotRunning DeadlineExceeded "
        "EngineRestarted InternalError InvalidArgument MachineExhausted MachineFault ModelCorrupt "
        "ModelExceedsBudget ModelGated ModelNotCached ModelNotFound ModelNotResponding ModelQuarantined "
        "ModelUnsupported NanLogits ProtocolError QueueFull RequestExceedsMemory RequestQuarantined "
        "ShuttingDown SidecarError SlowConsumer SlowSender "
        "UntrustedSocket"
    ),
    "_group": "GroupStats RankStats",
    "_latency": "LatencyHistogram LatencyStats",
    "_listing": "ListedModel ModelAbilities ModelList UnreadPlace",
    "_logprobs": "PromptLogprobs TokenLogprob TopLogprob",
    "_messages": "Message Prompt Tool ToolCall",
    "_model_info": "DefaultSampling ModelInfo",
    "_options": "GenerateOptions LoadOptions",
    "_results": (
        "Completion Delta Finished GenerateEvent GeneratedToolCall GuessCount Invalidated LoadProgress Miss "
        "PrefillProgress Started Timings ToolCallDelta Usage"
    ),
    "_stats": "CallerStats DaemonStats EngineStats GuessStats HistorySample HttpStats MemoryStats Stats StuckWork",
    "_streams": "GenerateStream LoadStream",
    "_texts": "EmbedOptions Embeddings TokenizeOptions Tokens",
}
"""The names that each submodule defines."""
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}
"""The submodule of each name."""

__all__ = [
    "AsyncClient",
    "AsyncGenerateStream",
    "AsyncLoadStream",
    "BudgetInUse",
    "CallerStats",
    "Cancelled",
    "Client",
    "Completion",
    "ConnectionLost",
    "ContextLengthExceeded",
    "DaemonNotRunning",
    "DaemonStats",
    "DeadlineExceeded",
    "DefaultSampling",
    "Delta",
    "EmbedOptions",
    "Embeddings",
    "EngineRestarted",
    "EngineStats",
    "Finished",
    "GenerateEvent",
    "GenerateOptions",
    "GenerateStream",
    "GeneratedToolCall",
    "GroupStats",
    "GuessCount",
    "GuessStats",
    "HistorySample",
    "HttpStats",
    "InternalError",
    "InvalidArgument",
    "Invalidated",
    "KeptPrefix",
    "LatencyHistogram",
    "LatencyStats",
    "ListedModel",
    "LoadOptions",
    "LoadProgress",
    "LoadStream",
    "MachineExhausted",
    "MachineFault",
    "MemoryStats",
    "Message",
    "Miss",
    "MissCounts",
    "ModelAbilities",
    "ModelCacheStats",
    "ModelCorrupt",
    "ModelExceedsBudget",
    "ModelGated",
    "ModelInfo",
    "ModelList",
    "ModelNotCached",
    "ModelNotFound",
    "ModelNotResponding",
    "ModelQuarantined",
    "ModelStats",
    "ModelUnsupported",
    "NamespaceStats",
    "NanLogits",
    "PrefillProgress",
    "PrefixCacheStats",
    "Prompt",
    "PromptLogprobs",
    "ProtocolError",
    "QueueFull",
    "RankStats",
    "RequestExceedsMemory",
    "RequestQuarantined",
    "ShuttingDown",
    "SidecarError",
    "SlowConsumer",
    "SlowSender",
    "Started",
    "Stats",
    "StuckWork",
    "Timings",
    "TokenLogprob",
    "TokenizeOptions",
    "Tokens",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "TopLogprob",
    "UnreadPlace",
    "UntrustedSocket",
    "Usage",
    "__version__",
    "default_socket_path",
]


def __getattr__(name: str) -> Any:
    """Import an exported name at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    """List all exported names, imported or not."""
    return sorted({*globals(), *__all__})
