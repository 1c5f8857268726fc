"""The gRPC server on the private socket: our service, health and reflection."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from daemon.admission import Admission
from daemon.ended_call import EndedCall
from daemon.interceptors import CallInterceptor
from daemon.service import SidecarService
from daemon.singleton import PublishedSocket, private_umask
from daemon.stats import Stats
from daemon.supervisor import Supervisor
from daemon.validation import MAX_REQUEST_BYTES
from mlx_sidecar.v1 import sidecar_pb2, sidecar_pb2_grpc

SERVICE = sidecar_pb2.DESCRIPTOR.services_by_name["SidecarService"].full_name

_OPTIONS = [
    # Four times our own limit: a request that is too large should get our error, not gRPC's bare one.
    ("grpc.max_receive_message_length", 4 * MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", 4 * MAX_REQUEST_BYTES),
    ("grpc.server_handshake_timeout_ms", 5_000),
    # Connections without a call are told to go; clients come back by themselves with their next one.
    ("grpc.max_connection_idle_ms", 600_000),
    # Of one connection. Without it, calls that are opened and reset by the thousand crowd out those of others.
    ("grpc.max_concurrent_streams", 100),
    # Beyond the first, gRPC cancels some that have just come, whoever sent them; beyond the second, all.
    ("grpc.server.max_pending_requests", 4_000),
    ("grpc.server.max_pending_requests_hard_limit", 8_000),
]


class Server:
    """
    Serves one daemon's calls.

    Args:
        supervisor: Has the engine.
        admission: Lets calls in.
        stats: Answers Stats.
        on_cancel: Told of each call that its client cancelled.
        on_end: Told of each call that ends.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        admission: Admission,
        stats: Stats,
        on_cancel: Callable[[], None],
        on_end: Callable[[EndedCall], None],
    ) -> None:
        self._health = HealthServicer()
        self._server = grpc.aio.server(interceptors=[CallInterceptor(on_cancel, on_end)], options=_OPTIONS)
        servicer = SidecarService(supervisor, admission, stats)
        sidecar_pb2_grpc.add_SidecarServiceServicer_to_server(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, socket: PublishedSocket, *, serving: bool) -> None:
        """Listen on the private name of the socket; `serving` is whether the service is healthy from the start."""
        with private_umask():
            self._server.add_insecure_port(f"unix:{socket.private}")
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        await self.set_health(serving=serving)
        await self._server.start()

    async def set_health(self, *, serving: bool) -> None:
        """Tell those who watch whether the service admits work and makes progress."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(SERVICE, status)

    async def drain(self) -> None:
        """Tell those who watch that the end is near, whatever is set from now on."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, seconds: float) -> None:
        """End; calls that are cut off have so long to tell their callers."""
        await self._server.stop(seconds)
