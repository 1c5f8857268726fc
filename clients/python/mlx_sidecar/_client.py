"""`Client`, the synchronous client: one method for each call of the API."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

import grpc

from mlx_sidecar._address import resolve, socket_exists, target
from mlx_sidecar._channel import (
    CONNECT_TIMEOUT,
    PING,
    POLL_INTERVAL,
    SYNC_CHANNEL_OPTIONS,
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
from mlx_sidecar._stats import Stats
from mlx_sidecar.v1 import sidecar_pb2 as pb

if TYPE_CHECKING:  # short programs call `stats`; other methods import what they need
    from mlx_sidecar._listing import ModelList
    from mlx_sidecar._messages import Prompt
    from mlx_sidecar._model_info import ModelInfo
    from mlx_sidecar._options import GenerateOptions, LoadOptions
    from mlx_sidecar._results import Completion, Invalidated
    from mlx_sidecar._streams import GenerateStream, LoadStream
    from mlx_sidecar._texts import Embeddings, EmbedOptions, TokenizeOptions, Tokens


class Client:
    """
    A connection to the daemon.

    It connects at the first call, over one channel, and waits up to two seconds for a daemon that is
    starting. It may be used from several threads. Close it, or use it in a `with` block. Every method
    raises `SidecarError` or one of its subclasses when the call fails, and RuntimeError when the client
    is closed.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None, *, timeout: float = 10.0) -> None:
        """
        Store the socket path. Nothing is opened yet.

        Args:
            socket: The daemon's socket. Default: `default_socket_path()`.
            timeout: Seconds for each call that returns no stream, and for connecting if it is less than 2.
        """
        self._socket = resolve(socket)
        self._timeout = seconds(timeout)
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._stub: Any = None
        self._connected = False
        self._closed = False

    @property
    def socket(self) -> Path:
        """The daemon's socket."""
        return self._socket

    def get_or_load(self, model: str, *, timeout: float | None = None, **options: Unpack[LoadOptions]) -> LoadStream:
        """
        Load a model, if it is not in memory yet, and stream the progress.

        Args:
            model: Hub id ("org/name"), absolute directory, or "embedded".
            timeout: Seconds for the whole call; None waits as long as it takes.
            options: See `LoadOptions`.
        """
        from mlx_sidecar import _requests as requests
        from mlx_sidecar._streams import LoadStream
        from mlx_sidecar._transcript import LoadTranscript

        call = self._start("GetOrLoad", requests.load_request(model, **options), timeout)
        return LoadStream(call, LoadTranscript(), self._failed)

    def load(self, model: str, *, timeout: float | None = None, **options: Unpack[LoadOptions]) -> ModelInfo:
        """Load a model and return its description; the arguments are those of `get_or_load`."""
        with self.get_or_load(model, timeout=timeout, **options) as stream:
            return stream.result()

    def generate(
        self, model: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> GenerateStream:
        """
        Run a prompt through a model and stream the completion. A model that is not in memory is loaded first.

        Args:
            model: Hub id ("org/name"), absolute directory, or "embedded".
            prompt: Text, token ids, or the messages of a conversation.
            timeout: Seconds for the whole call; None waits as long as it takes.
            options: See `GenerateOptions`.
        """
        from mlx_sidecar import _requests as requests
        from mlx_sidecar._streams import GenerateStream
        from mlx_sidecar._transcript import GenerateTranscript

        request = requests.generate_request(model, prompt, **options)
        return GenerateStream(
            self._start("Generate", request, timeout), GenerateTranscript(request.samples), self._failed
        )

    def complete(
        self, model: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Completion:
        """
        Run a prompt through a model and return the completion; the arguments are those of `generate`.

        Raises:
            InvalidArgument: If several samples are asked for, which `complete_samples` returns.
        """
        from mlx_sidecar._requests import refuse_samples

        refuse_samples(options)
        with self.generate(model, prompt, timeout=timeout, **options) as stream:
            return stream.result()

    def complete_samples(
        self, model: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> tuple[Completion, ...]:
        """Run a prompt through a model and return the completion of each of its `samples`, as `complete` does."""
        with self.generate(model, prompt, timeout=timeout, **options) as stream:
            return stream.results()

    def list_models(self) -> ModelList:
        """List the models of this machine: in memory, in the Hub's cache, below `model_roots`, and aliases."""
        from mlx_sidecar._listing import ModelList

        return decode(ModelList, self._unary("ListModels", pb.ListModelsRequest()))

    def tokenize(
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
        from mlx_sidecar import _requests as requests
        from mlx_sidecar._texts import Tokens

        request = requests.tokenize_request(model, prompt, count_only=count_only, **options)
        return decode(Tokens, self._unary("Tokenize", request))

    def embed(
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
        from mlx_sidecar import _requests as requests
        from mlx_sidecar._streams import Stream
        from mlx_sidecar._texts import EmbedTranscript

        call = self._start("Embed", requests.embed_request(model, texts, **options), timeout)
        with Stream(call, EmbedTranscript(), self._failed) as stream:
            return stream.result()

    def invalidate_model(
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
        from mlx_sidecar import _requests as requests

        return self._invalidate(
            requests.invalidate_model_request(model, weights=weights, prefixes=prefixes, dry_run=dry_run)
        )

    def invalidate_prefix(
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
        from mlx_sidecar import _requests as requests

        return self._invalidate(requests.invalidate_prefix_request(model, prefix, salt=salt, dry_run=dry_run))

    def invalidate_all(self, *, weights: bool = True, prefixes: bool = True, dry_run: bool = False) -> Invalidated:
        """Drop all weights, all cached prefixes, or both; the arguments are those of `invalidate_model`."""
        from mlx_sidecar import _requests as requests

        return self._invalidate(requests.invalidate_all_request(weights=weights, prefixes=prefixes, dry_run=dry_run))

    def stats(self, *, history: bool = False) -> Stats:
        """
        Return the state of the daemon. It also answers while its engine loads a model, hangs or restarts.

        Args:
            history: Include the figures of the last hour.
        """
        return decode(Stats, self._unary("Stats", pb.StatsRequest(include_history=history)))

    def close(self) -> None:
        """Cancel the running calls and close the channel. Closing twice is no error."""
        self._closed = True
        self._connected = False
        if self._channel is not None:
            self._channel.close()

    def _invalidate(self, request: pb.InvalidateRequest) -> Invalidated:
        from mlx_sidecar._results import Invalidated

        return decode(Invalidated, self._unary("Invalidate", request))

    def _unary(self, method: str, request: Any) -> Any:
        try:
            return self._start(method, request, self._timeout)
        except grpc.RpcError as error:
            raise self._failed(error) from error

    def _start(self, method: str, request: Any, timeout: float | None) -> Any:
        """Send a call, and return its answer or, of a stream, its running call."""
        refuse_too_large(request)
        longest = limit(timeout)
        rpc = getattr(self._connect(), method)
        try:
            return rpc(request, timeout=longest, metadata=metadata())
        except ValueError:  # gRPC's word for a channel that is closed
            if self._closed:
                raise closed_meanwhile() from None
            raise

    def _connect(self) -> Any:
        # Before the lock: calls that wait for another one's connection wait for the daemon all the while.
        deadline = time.monotonic() + min(self._timeout, CONNECT_TIMEOUT)
        with self._lock:
            if self._closed:
                raise RuntimeError("this client is closed")
            if not self._connected:
                self._open(deadline)
                self._connected = not self._closed
            return self._stub

    def _open(self, deadline: float) -> None:
        while not socket_exists(self._socket):
            if self._closed:
                raise closed_meanwhile()
            if time.monotonic() >= deadline:
                raise not_running(self._socket, "there is no such socket")
            time.sleep(POLL_INTERVAL)
        if self._channel is None:
            self._channel = grpc.insecure_channel(target(self._socket), SYNC_CHANNEL_OPTIONS)
            self._stub = stub(self._channel)
            if self._closed:  # a `close` in another thread has seen no channel, or closes it as well
                self._channel.close()
        ping: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(PING)
        try:
            ping(b"", timeout=max(0.0, deadline - time.monotonic()), wait_for_ready=True)
        except (grpc.RpcError, ValueError) as error:
            if self._closed:
                raise closed_meanwhile() from error
            if isinstance(error, ValueError):
                raise
            if not answered(error):
                raise unanswered(self._socket, "nothing listens on it", "it does not answer in time") from error

    def _failed(self, error: grpc.RpcError) -> SidecarError:
        problem = failure(error, self._socket)
        if isinstance(problem, (DaemonNotRunning, ConnectionLost)):
            # The next call checks the socket and waits for the daemon again, as the first call did.
            self._connected = False
        return problem

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Without a channel there is nothing to leak. `__init__` can have failed before it set the attribute.
        # At interpreter exit gRPC's threads are gone, and closing would wait for them for ever.
        if getattr(self, "_channel", None) is not None and not self._closed and not sys.is_finalizing():
            text = f"unclosed {self!r}"
            self.close()
            warnings.warn(text, ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self._connected else "idle"
        return f"<mlx_sidecar.Client socket={str(self._socket)!r} {state}>"
