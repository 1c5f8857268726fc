"""Retries come from gRPC's service config, and never keep a caller waiting for a daemon that is gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from mlx_sidecar import Client, SidecarError
from mlx_sidecar._address import target
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceServicer, add_SidecarServiceServicer_to_server


class _Leaving(SidecarServiceServicer):
    """Refuses each Generate as UNAVAILABLE, and says so at the third."""

    def __init__(self) -> None:
        self.calls = 0
        self.third = threading.Event()

    def Generate(self, request: object, context: grpc.ServicerContext) -> Iterator[object]:  # noqa: N802
        self.calls += 1
        if self.calls == 3:
            self.third.set()
        context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        yield


def test_closed_daemon_ends_a_stream_between_retries(socket: Path) -> None:
    """With gRPC's default way to read streams it waits for ever, whatever its deadline (grpcio 1.80 to 1.85.1)."""
    servicer = _Leaving()
    with futures.ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        add_SidecarServiceServicer_to_server(servicer, server)
        server.add_insecure_port(target(socket))
        server.start()
        with Client(socket) as client:
            leave = threading.Thread(target=lambda: (servicer.third.wait(), server.stop(0).wait()))
            leave.start()
            with pytest.raises(SidecarError):
                client.complete("m", "hello", timeout=20)
            leave.join()
    assert servicer.calls >= 3
