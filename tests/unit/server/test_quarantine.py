"""Quarantine: requests and models of too many deaths are refused for ten minutes, and no others are."""

from __future__ import annotations

import pytest

from daemon.server.supervision.quarantine import WINDOW_SECONDS, Quarantine, Suspect
from daemon.shared.errors import Reason, SidecarError
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb

A = Suspect("model", "a")


class Clock:
    """Time that tests move."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(name="clock")
def _clock() -> Clock:
    """Return a clock."""
    return Clock()


@pytest.fixture(name="quarantine")
def _quarantine(clock: Clock) -> Quarantine:
    """Return an empty quarantine."""
    return Quarantine(clock)


def refused(quarantine: Quarantine, suspect: Suspect) -> Reason | None:
    """Return why a call is refused, if it is."""
    try:
        quarantine.check(suspect)
    except SidecarError as error:
        return error.reason
    return None


def test_request_is_quarantined_after_two_deaths(quarantine: Quarantine) -> None:
    """Another request for the same model is not."""
    quarantine.died([A])
    assert refused(quarantine, A) is None
    quarantine.died([A])
    assert refused(quarantine, A) is Reason.REQUEST_QUARANTINED
    assert refused(quarantine, Suspect("model", "b")) is None


def test_model_is_quarantined_after_three_deaths(quarantine: Quarantine) -> None:
    """For any requests; other models are not refused."""
    for digest in "abc":
        quarantine.died([Suspect("model", digest)])
    assert refused(quarantine, Suspect("model", "d")) is Reason.MODEL_QUARANTINED
    assert refused(quarantine, Suspect("other", "d")) is None


def test_engine_death_counts_once_per_request(quarantine: Quarantine) -> None:
    """Eight requests for one model that die together are one death of the model."""
    quarantine.died([Suspect("model", digest) for digest in "abcdefgh"] + [A, A])
    assert refused(quarantine, A) is None


def test_quarantine_ends_after_ten_minutes(quarantine: Quarantine, clock: Clock) -> None:
    """To the second, and only deaths of the last ten minutes add up."""
    quarantine.died([A])
    clock.now += 1
    quarantine.died([A])
    clock.now += WINDOW_SECONDS - 1.1
    assert refused(quarantine, A) is Reason.REQUEST_QUARANTINED
    clock.now += 0.1
    assert refused(quarantine, A) is None
    quarantine.died([A])
    assert refused(quarantine, A) is Reason.REQUEST_QUARANTINED


def test_invalidation_ends_a_quarantine(quarantine: Quarantine) -> None:
    """That of a model lifts the model's; that of everything lifts all."""
    for digest in "aab":
        quarantine.died([Suspect("model", digest), Suspect("other", digest + "o")])
    quarantine.lift("model")
    assert refused(quarantine, Suspect("model", "c")) is None
    assert refused(quarantine, A) is Reason.REQUEST_QUARANTINED
    assert refused(quarantine, Suspect("other", "c")) is Reason.MODEL_QUARANTINED
    quarantine.lift()
    assert refused(quarantine, A) is None
    assert refused(quarantine, Suspect("other", "c")) is None


def test_request_id_does_not_change_the_quarantine() -> None:
    """Everything else does."""

    def of(call_id: int, request_id: str, text: str, **fields: object) -> Suspect:
        request = pb.GenerateRequest(model="m", text=text, request_id=request_id, **fields)  # type: ignore[arg-type]
        return Suspect.of(ipc.Command(call_id=call_id, generate=request), "m")

    assert of(1, "one", "text") == of(2, "two", "text")
    assert of(1, "one", "text") != of(1, "one", "other text")
    assert of(1, "one", "text") != of(1, "one", "text", max_tokens=3)
    bias = {token: float(token) for token in range(50)}
    backwards = dict(reversed(bias.items()))
    assert of(1, "", "t", sampling=pb.Sampling(logit_bias=bias)) == of(
        1, "", "t", sampling=pb.Sampling(logit_bias=backwards)
    )
