"""The health service of gRPC: which services of the daemon serve, asked once or watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

Context = grpc.aio.ServicerContext[Any, Any]


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the library has no types
    """
    Which services serve. The empty name is the process, which serves until it drains.

    The library's servicer for asyncio (grpcio-health-checking 1.81) cannot be used. The end of one watch cuts the other
    watches of that service off from all changes. A watch that is not read keeps a lock, which each change waits for.
    """

    def __init__(self) -> None:
        self._statuses = {"": SERVING}
        self._draining = False
        self._changed = asyncio.Event()
        """Set at the next change; then another one takes its place."""

    def set(self, service: str, *, serving: bool) -> None:
        """Set whether a service serves, and tell the watches. It has no effect after `drain`."""
        if not self._draining:
            self._statuses[service] = SERVING if serving else NOT_SERVING
            self._tell()

    def drain(self) -> None:
        """Set all services to NOT_SERVING for good, and tell the watches."""
        self._draining = True
        self._statuses = dict.fromkeys(self._statuses, NOT_SERVING)
        self._tell()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Return the status of a service; NOT_FOUND if there is none of that name."""
        if request.service not in self._statuses:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service has the name {request.service!r}")
        return health_pb2.HealthCheckResponse(status=self._statuses[request.service])

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yield the status of a service now and after each change; of changes that follow quickly, the last."""
        told = None
        while True:
            changed, status = self._changed, self._statuses.get(request.service, _UNKNOWN)
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            await changed.wait()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
