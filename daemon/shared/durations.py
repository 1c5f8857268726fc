"""Converts seconds to protobuf Durations and back."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration


def duration(seconds: float) -> Duration:
    """Return seconds as a Duration, cut to nanoseconds."""
    value = Duration()
    value.FromNanoseconds(int(seconds * 1e9))
    return value


def seconds(value: Duration) -> float:
    """Return a Duration as seconds."""
    return value.ToNanoseconds() / 1e9
