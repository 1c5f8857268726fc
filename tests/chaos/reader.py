"""
A client in a process of its own, to be killed or stopped: `reader.py SOCKET REQUEST`, the request in hex.

It writes each event as a line of hex, and its end as a line that begins with "end".
"""

from __future__ import annotations

import sys

import grpc

from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.chaos.calls import CHANNEL, ending


def main() -> None:
    """Read one stream."""
    socket, request = sys.argv[1:]
    with grpc.insecure_channel(f"unix:{socket}", options=CHANNEL) as channel:
        call = SidecarServiceStub(channel).Generate(pb.GenerateRequest.FromString(bytes.fromhex(request)), timeout=60)
        try:
            for event in call:
                sys.stdout.write(event.SerializeToString().hex() + "\n")
                sys.stdout.flush()
            end = "OK"
        except grpc.RpcError:
            end = ending(call)
    sys.stdout.write(f"end {end}\n")


if __name__ == "__main__":
    main()
