"""`AsyncClient`, the client for asyncio, with the same methods as `Client`."""
# ruff: noqa: ASYNC109 - `timeout` becomes the call's deadline, which the daemon has to know

from __future__ import annotations

import asyncio
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

import grpc
import grpc.aio

from mlx_sidecar import _requests as requests
from mlx_sidecar._address import resolve, socket_exists, target
from mlx_sidecar._aio_streams import AsyncGenerateStream, AsyncLoadStream, AsyncStream, task_is_cancelled
from mlx_sidecar._channel import (
    CHANNEL_OPTIONS,
    CONNECT_TIMEOUT,
    PING,
    POLL_INTERVAL,
    answered,
    closed_meanwhile,
    limit,
    metadata,
    refuse_too_large,
    seconds,
    stub,
)
from mlx_sidecar._decode import decode
from mlx_sidecar._exceptions import ConnectionLost, DaemonNotRunning, SidecarError
from mlx_sidecar._failure import failure, not_running, unanswered
from mlx_sidecar._listing import ModelList
from mlx_sidecar._messages import Prompt
from mlx_sidecar._model_info import ModelInfo
from mlx_sidecar._options import GenerateOptions, LoadOptions
from mlx_sidecar._results import Completion, Invalidated
from mlx_sidecar._stats import Stats
from mlx_sidecar._texts import Embeddings, EmbedOptions, EmbedTranscript, TokenizeOptions, Tokens
from mlx_sidecar._transcript import GenerateTranscript, LoadTranscript
from mlx_sidecar.v1 import sidecar_pb2 as pb


class AsyncClient:
    """
    A connection to the daemon, for one event loop.

    It connects at the first call, over one channel, and waits up to two seconds for a daemon that is
    starting. Close it, or use it in an `async with` block. Every method raises `SidecarError` or one of
    its subclasses when the call fails, and RuntimeError when the client is closed.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None, *, timeout: float = 10.0) -> None:
        """
        Store the socket path. Nothing is opened yet, and no event loop is needed.

        Args:
            socket: The daemon's socket. Default: `default_socket_path()`.
            timeout: Seconds for each call that returns no stream, and for connecting if it is less than 2.
        """
        self._socket = resolve(socket)
        self._timeout = seconds(timeout)
        self._lock = asyncio.Lock()
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._connected = False
        self._closed = False

    @property
    def socket(self) -> Path:
        """The daemon's socket."""
        return self._socket

    def get_or_load(
        self, model: str, *, timeout: float | None = None, **options: Unpack[LoadOptions]
    ) -> AsyncLoadStream:
        """
        Load a model, if it is not in memory yet, and stream the progress.

        The call is sent when the stream is entered or first read.

        Args:
            model: Hub id ("org/name"), absolute directory, or "embedded".
            timeout: Seconds for the whole call; None waits as long as it takes.
            options: See `LoadOptions`.
        """
        request = requests.load_request(model, **options)
        return AsyncLoadStream(lambda: self._start("GetOrLoad", request, timeout), LoadTranscript(), self._failed)

    async def load(self, model: str, *, timeout: float | None = None, **options: Unpack[LoadOptions]) -> ModelInfo:
        """Load a model and return its description; the arguments are those of `get_or_load`."""
        async with self.get_or_load(model, timeout=timeout, **options) as stream:
            return await stream.result()

    def generate(
        self, model: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerateStream:
        """
        Run a prompt through a model and stream the completion. A model that is not in memory is loaded first.

        The call is sent when the stream is entered or first read.

        Args:
            model: Hub id ("org/name"), absolute directory, or "embedded".
            prompt: Text, token ids, or the messages of a conversation.
            timeout: Seconds for the whole call; None waits as long as it takes.
            options: See `GenerateOptions`.
        """
        request = requests.generate_request(model, prompt, **options)
        return AsyncGenerateStream(
            lambda: self._start("Generate", request, timeout), GenerateTranscript(request.samples), self._failed
        )

    async def complete(
        self, model: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Completion:
        """
        Run a prompt through a model and return the completion; the arguments are those of `generate`.

        Raises:
            InvalidArgument: If several samples are asked for, which `complete_samples` returns.
        """
        requests.refuse_samples(options)
        async with self.generate(model, prompt, timeout=timeout, **options) as stream:
            return await stream.result()

    async def complete_samples(
        self, model: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> tuple[Completion, ...]:
        """Run a prompt through a model and return the completion of each of its `samples`, as `complete` does."""
        async with self.generate(model, prompt, timeout=timeout, **options) as stream:
            return await stream.results()

    async def list_models(self) -> ModelList:
        """List the models of this machine: in memory, in the Hub's cache, below `model_roots`, and aliases."""
        return decode(ModelList, await self._unary("ListModels", pb.ListModelsRequest()))

    async def tokenize(
        self, model: str, prompt: Prompt, *, count_only: bool = False, **options: Unpack[TokenizeOptions]
    ) -> Tokens:
        """
        Turn a prompt into token ids, as `generate` does, or token ids into text. It loads no weights.

        Args:
            model: Hub id ("org/name"), absolute directory, or "embedded".
            prompt: Text, token ids, or the messages of a conversation.
            count_only: Leave ids and text out of the result.
            options: See `TokenizeOptions`.
        """
        request = requests.tokenize_request(model, prompt, count_only=count_only, **options)
        return decode(Tokens, await self._unary("Tokenize", request))

    async def embed(
        self, model: str, texts: str | Sequence[str], *, timeout: float | None = None, **options: Unpack[EmbedOptions]
    ) -> Embeddings:
        """
        Turn texts into vectors, with a model that is made for that. A model that is not in memory is loaded first.

        Args:
            model: Hub id ("org/name"), absolute directory, or "embedded".
            texts: A text, or up to 256 of them.
            timeout: Seconds for the whole call; None waits as long as it takes.
            options: See `EmbedOptions`.
        """
        request = requests.embed_request(model, texts, **options)
        stream = AsyncStream(lambda: self._start("Embed", request, timeout), EmbedTranscript(), self._failed)
        async with stream:
            return await stream.result()

    async def invalidate_model(
        self, model: str, *, weights: bool = True, prefixes: bool = True, dry_run: bool = False
    ) -> Invalidated:
        """
        Drop a model's weights, its cached prefixes, or both, for all its revisions and adapters.

        Args:
            model: The model's name.
            weights: Drop its weights, pinned or not.
            prefixes: Drop its cached prefixes, under every salt.
            dry_run: Only count what would be dropped.
        """
        return await self._invalidate(
            requests.invalidate_model_request(model, weights=weights, prefixes=prefixes, dry_run=dry_run)
        )

    async def invalidate_prefix(
        self, model: str, prefix: str | Sequence[int], *, salt: str = "", dry_run: bool = False
    ) -> Invalidated:
        """
        Drop the cached blocks of all prompts that begin with a prefix.

        Args:
            model: The model's name.
            prefix: Text or token ids, at least one token.
            salt: The salt under which the prompts were cached.
            dry_run: Only count what would be dropped.
        """
        return await self._invalidate(requests.invalidate_prefix_request(model, prefix, salt=salt, dry_run=dry_run))

    async def invalidate_all(
        self, *, weights: bool = True, prefixes: bool = True, dry_run: bool = False
    ) -> Invalidated:
        """Drop all weights, all cached prefixes, or both; the arguments are those of `invalidate_model`."""
        return await self._invalidate(
            requests.invalidate_all_request(weights=weights, prefixes=prefixes, dry_run=dry_run)
        )

    async def stats(self, *, history: bool = False) -> Stats:
        """
        Return the state of the daemon. It also answers while its engine loads a model, hangs or restarts.

        Args:
            history: Include the figures of the last hour.
        """
        return decode(Stats, await self._unary("Stats", pb.StatsRequest(include_history=history)))

    async def aclose(self) -> None:
        """Cancel the running calls and close the channel. Closing twice is no error."""
        self._closed = True
        self._connected = False
        if self._channel is not None:
            await self._channel.close()

    async def _invalidate(self, request: pb.InvalidateRequest) -> Invalidated:
        return decode(Invalidated, await self._unary("Invalidate", request))

    async def _unary(self, method: str, request: Any) -> Any:
        call = await self._start(method, request, self._timeout)
        try:
            return await call
        except grpc.RpcError as error:
            raise self._failed(error) from error
        except asyncio.CancelledError:
            if task_is_cancelled():
                raise
            raise closed_meanwhile() from None

    async def _start(self, method: str, request: Any, timeout: float | None) -> Any:
        """Send a call, and return it."""
        refuse_too_large(request)
        longest = limit(timeout)
        return getattr(await self._connect(), method)(request, timeout=longest, metadata=metadata())

    async def _connect(self) -> Any:
        # Before the lock: calls that wait for another one's connection wait for the daemon all the while.
        deadline = time.monotonic() + min(self._timeout, CONNECT_TIMEOUT)
        async with self._lock:
            if self._closed:
                raise RuntimeError("this client is closed")
            if not self._connected:
                await self._open(deadline)
                if self._closed:
                    raise closed_meanwhile()
                self._connected = True
            return self._stub

    async def _open(self, deadline: float) -> None:
        while not socket_exists(self._socket):
            if time.monotonic() >= deadline:
                raise not_running(self._socket, "there is no such socket")
            await asyncio.sleep(POLL_INTERVAL)
        if self._closed:
            return
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(target(self._socket), CHANNEL_OPTIONS)
            self._stub = stub(self._channel)
        ping: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(PING)
        try:
            await ping(b"", timeout=max(0.0, deadline - time.monotonic()), wait_for_ready=True)
        except grpc.RpcError as error:
            if not answered(error):
                raise unanswered(self._socket, "nothing listens on it", "it does not answer in time") from error
        except asyncio.CancelledError:
            if task_is_cancelled() or not self._closed:
                raise

    def _failed(self, error: grpc.RpcError) -> SidecarError:
        problem = failure(error, self._socket)
        if isinstance(problem, (DaemonNotRunning, ConnectionLost)):
            # The next call checks the socket and waits for the daemon again, as the first call did.
            self._connected = False
        return problem

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Without a channel there is nothing to leak. `__init__` can have failed before it set the attribute.
        if getattr(self, "_channel", None) is not None and not self._closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self._connected else "idle"
        return f"<mlx_sidecar.AsyncClient socket={str(self._socket)!r} {state}>"
