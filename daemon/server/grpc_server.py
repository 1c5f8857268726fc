"""The gRPC server on the private socket: our service, health and reflection."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from daemon.server.admission import Admission
from daemon.server.arrivals import Arrivals, Lane, Way
from daemon.server.call_record import CallRecord
from daemon.server.interceptor import CallInterceptor
from daemon.server.servicer import SidecarService
from daemon.server.singleton import PublishedSocket, private_umask
from daemon.server.stats import Stats
from daemon.server.supervision.call_router import CallRouter
from daemon.server.validation import MAX_REQUEST_BYTES
from mlx_sidecar.v1 import sidecar_pb2, sidecar_pb2_grpc

SERVICE = sidecar_pb2.DESCRIPTOR.services_by_name["SidecarService"].full_name

MAX_MESSAGE_BYTES = 2 * MAX_REQUEST_BYTES
"""What gRPC assembles at most: a request that is somewhat too large should get our error, not gRPC's bare one."""
WINDOW_BYTES = 32 * 1024
"""Of a request that nothing receives yet, so much is taken from its sender."""
SMALL_BYTES = 4 * 1024
"""Of a request that only asks: Stats, health, reflection."""
MAX_STREAMS = 500
"""
Calls of one connection. Without a limit, calls that are opened and reset by the thousand crowd out those of others. A
client that has just connected does not know the limit yet, and gRPC refuses what is beyond it without a reason.
"""

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", 4 * MAX_REQUEST_BYTES),
    ("grpc.server_handshake_timeout_ms", 5_000),
    # Connections without a call are told to go; clients come back by themselves with their next one.
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.max_allowed_incoming_connections", 2_000),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    # Windows of 4 MiB that grow to 16, gRPC's own, are for long lines.
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ("grpc.http2.bdp_probe", 0),
    # Beyond the first, gRPC cancels some that have just come, whichever they are; beyond the second, all.
    ("grpc.server.max_pending_requests", 8_000),
    ("grpc.server.max_pending_requests_hard_limit", 16_000),
]


def _ways() -> dict[str, Way]:
    """Return how the calls of each method come in: small requests have places that large ones cannot take."""
    prompts, questions, reflected = Lane(places=6), Lane(places=6), Lane(places=2)
    ours = f"/{SERVICE}/"
    return {
        **{f"{ours}{name}": Way(prompts, MAX_REQUEST_BYTES, 1_000) for name in ("Generate", "GetOrLoad", "Invalidate")},
        f"{ours}Stats": Way(questions, SMALL_BYTES, 1_000),
        "/grpc.health.v1.Health/Check": Way(questions, SMALL_BYTES, 1_000),
        "/grpc.health.v1.Health/Watch": Way(questions, SMALL_BYTES, 250),
        f"/{reflection.SERVICE_NAME}/ServerReflectionInfo": Way(reflected, SMALL_BYTES, 50),
    }


class Server:
    """
    Serves one daemon's calls.

    Args:
        router: The way to the engine.
        admission: Lets calls in.
        stats: Answers Stats.
        on_cancel: Told of each call that its client cancelled.
        on_end: Told of each call that ends.
    """

    def __init__(
        self,
        router: CallRouter,
        admission: Admission,
        stats: Stats,
        on_cancel: Callable[[], None],
        on_end: Callable[[CallRecord], None],
    ) -> None:
        self._health = HealthServicer()
        arrivals = Arrivals(_ways(), on_refusal=admission.refused)
        interceptor = CallInterceptor(arrivals, on_cancel, on_end)
        self._server = grpc.aio.server(interceptors=[interceptor], options=_OPTIONS)
        servicer = SidecarService(router, admission, stats)
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
