"""
The gRPC server on the daemon's private socket, with three services: the sidecar's own, health and reflection.

The way of a request through the parent, and what refuses it on its way:

    gRPC              HTTP/2 on the socket; takes 32 KiB of a request before a handler asks for more
      |
    interceptor.py    one log line, one span and one status for each call, whatever happens below
      |  arrivals.py          a place to receive the request, in time   QUEUE_FULL, SLOW_SENDER
      |  request_decoder.py   bytes become a message                    INVALID_ARGUMENT
      |
    servicer.py       one method for each RPC
      |  callers.py           the process that calls, for log, Stats and turns
      |  validation.py        ranges, sizes, required fields            INVALID_ARGUMENT
      |  admission.py         a place in the queue                      QUEUE_FULL, SHUTTING_DOWN
      |
    supervision/      call_router.py opens the call in the engine       REQUEST_ or MODEL_QUARANTINED, ENGINE_RESTARTED

Each step refuses by `SidecarError`, which only the interceptor turns into a status. Answers go the same way back:
the router pushes events into an `EngineCall`, the servicer reads them, the interceptor writes them. Stats passes no
queue and asks no engine: the servicer answers it from `stats.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from daemon.server.admission import Admission
from daemon.server.arrivals import Arrivals, Lane, Way
from daemon.server.call_record import CallRecord
from daemon.server.callers import Callers
from daemon.server.field_checks import MAX_REQUEST_BYTES
from daemon.server.group.routes import Routes
from daemon.server.health import Health
from daemon.server.interceptor import CallInterceptor
from daemon.server.servicer import SidecarService
from daemon.server.singleton import PublishedSocket, private_umask
from daemon.server.stats import Stats
from mlx_sidecar.v1 import sidecar_pb2, sidecar_pb2_grpc

SERVICE = sidecar_pb2.DESCRIPTOR.services_by_name["SidecarService"].full_name

MAX_MESSAGE_BYTES = 2 * MAX_REQUEST_BYTES
"""Most bytes that gRPC assembles. A request that is somewhat too large gets our error, not gRPC's bare status."""
WINDOW_BYTES = 32 * 1024
"""Bytes that gRPC takes of a request before a handler receives it."""
SMALL_BYTES = 4 * 1024
"""Most bytes of a request without a prompt: Stats, health, reflection."""
MAX_STREAMS = 500
"""
Most open calls of one connection. Without a limit, a client that opens and resets calls by the thousand crowds out the
others. A client that has just connected does not know the limit yet; gRPC refuses its calls beyond it without a reason.
"""

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", 4 * MAX_REQUEST_BYTES),
    ("grpc.server_handshake_timeout_ms", 5_000),
    # Idle connections are closed; clients connect again by themselves for their next call.
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.max_allowed_incoming_connections", 2_000),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    # gRPC's own windows, of 4 MiB that grow to 16, are for networks with long round trips.
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ("grpc.http2.bdp_probe", 0),
    # Beyond the first limit gRPC cancels some new calls at random, beyond the second all of them.
    ("grpc.server.max_pending_requests", 8_000),
    ("grpc.server.max_pending_requests_hard_limit", 16_000),
]


def _ways() -> dict[str, Way]:
    """Return the limits of each method. Small requests have lanes of their own, so that prompts cannot block them."""
    prompts, questions, reflected = Lane(places=6), Lane(places=6), Lane(places=2)
    ours = f"/{SERVICE}/"
    large, small = ("Generate", "GetOrLoad", "Invalidate", "Tokenize", "Embed"), ("Stats", "ListModels")
    return {
        **{f"{ours}{name}": Way(prompts, MAX_REQUEST_BYTES, 1_000) for name in large},
        **{f"{ours}{name}": Way(questions, SMALL_BYTES, 1_000) for name in small},
        "/grpc.health.v1.Health/Check": Way(questions, SMALL_BYTES, 1_000),
        "/grpc.health.v1.Health/Watch": Way(questions, SMALL_BYTES, 250),
        f"/{reflection.SERVICE_NAME}/ServerReflectionInfo": Way(reflected, SMALL_BYTES, 50),
    }


class Server:
    """
    The server of one daemon.

    Args:
        routes: The ways to the engines.
        admission: Gives places in the queue.
        callers: Tells which process a call came from.
        stats: Answers Stats.
        on_cancel: Called for each call that its client cancelled.
        on_end: Called with each call that ended.
        aliases: The models that short names stand for.
    """

    def __init__(
        self,
        routes: Routes,
        admission: Admission,
        callers: Callers,
        stats: Stats,
        on_cancel: Callable[[], None],
        on_end: Callable[[CallRecord], None],
        aliases: Mapping[str, str],
    ) -> None:
        self._health = Health()
        arrivals = Arrivals(_ways(), on_refusal=admission.refused)
        interceptor = CallInterceptor(arrivals, on_cancel, on_end)
        self._server = grpc.aio.server(interceptors=[interceptor], options=_OPTIONS)
        servicer = SidecarService(routes, admission, callers, stats, aliases)
        sidecar_pb2_grpc.add_SidecarServiceServicer_to_server(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, socket: PublishedSocket, *, serving: bool) -> None:
        """Listen on the private name of the socket. `serving` is the first health of the service."""
        with private_umask():
            self._server.add_insecure_port(f"unix:{socket.private}")
        self.set_health(serving=serving)
        await self._server.start()

    def set_health(self, *, serving: bool) -> None:
        """Set the health of the service: whether it takes calls and makes progress. Watchers are told."""
        self._health.set(SERVICE, serving=serving)

    def drain(self) -> None:
        """Set the health to NOT_SERVING for good. Watchers are told."""
        self._health.drain()

    async def stop(self, seconds: float) -> None:
        """End the server. Open calls have `seconds` to end before they are cut off."""
        await self._server.stop(seconds)
