"""
A grpc.aio server without a line of the daemon: what it keeps of cancelled calls is gRPC's.

Generate is answered as the fake engine's model "hold" does, with two messages and then nothing; Stats with nothing.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import grpc

from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1 import sidecar_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class Bare(sidecar_pb2_grpc.SidecarServiceServicer):
    """The two calls."""

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # noqa: N802
        """Write twice and wait to be cancelled."""
        await context.write(pb.GenerateResponse(started=pb.Started(model=request.model)))
        await context.write(pb.GenerateResponse(delta=pb.Delta(text=request.text)))
        await asyncio.Event().wait()

    async def Stats(self, request: pb.StatsRequest, context: Context) -> pb.StatsResponse:  # noqa: N802
        """Tell that nothing runs."""
        return pb.StatsResponse()


async def serve(socket: Path) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server()
    sidecar_pb2_grpc.add_SidecarServiceServicer_to_server(Bare(), server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(Path(os.environ["MLX_SIDECAR_SOCKET"])))
