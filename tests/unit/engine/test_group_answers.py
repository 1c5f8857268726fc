"""Work of ranks: all act on it in the same turn, once each has a result; an error that one alone has ends the group."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import pytest

from daemon.cache.resolver import Resolver, Wanted
from daemon.engine.background.answers import WorkTicket
from daemon.engine.background.background import Background
from daemon.engine.group.answers import FirstAnswers, RankAnswers, fingerprint
from daemon.engine.group.connection import Connection
from daemon.engine.group.digest import DigestingWire, NoWire
from daemon.engine.group.disk import least_wanted, together
from daemon.engine.prompt.chat_templates import Templates
from daemon.engine.prompt.preparation import PreparedRequest, prepare_request
from daemon.engine.prompt.tokenizers import Tokenizers
from daemon.kv.disk.agreement import told
from daemon.kv.disk.limits import Space
from daemon.shared.errors import Reason, SidecarError
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.daemons import wait_until
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import generate
from tests.unit.engine.two_ranks import Pair, Two


def full() -> None:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, "No space left on device")


def no_post(action: Callable[[], None]) -> None:
    """Take nothing: ranks act on what the first one tells."""
    raise AssertionError(action)


def no_difference(why: str) -> None:
    """Ranks did the same work."""
    raise AssertionError(why)


def work(answers: RankAnswers, acted: list[Any], what: str = "lookup") -> WorkTicket:
    """Begin work whose end goes into a list."""
    return answers.ticket(what, acted.append, lambda: False)


def prepared(path: Path, templates: Templates) -> PreparedRequest:
    """Return a request as a rank with these files prepares it."""
    source = Resolver([]).resolve(Wanted(str(path)))
    request = generate("Once upon a time", model=str(path), sampling=pb.Sampling(model_defaults=True))
    return prepare_request(request, source, Tokenizers(templates).get(source))


def test_ranks_act_when_all_have_a_result(pair: Pair) -> None:
    """A result of the first rank alone settles nothing."""
    two = Two(pair)
    acted: list[object] = []
    one, other = work(two.answers, acted), work(two.other_answers, acted)
    two.answers.done(one, lambda: acted.append("first"), None)
    assert two.settled == []
    two.other_answers.done(other, lambda: acted.append("other"), None)
    wait_until(lambda: bool(two.settled), "all ranks have reported")
    two.rank.act(two.settled[0])
    wait_until(lambda: len(acted) == 2, "both ranks have acted")
    pair[0].close()
    two.thread.join()
    assert sorted(map(str, acted)) == ["first", "other"]


def test_failure_of_one_rank_fails_the_work_everywhere(pair: Pair) -> None:
    """With that rank's error, under its name."""
    two = Two(pair)
    acted: list[SidecarError] = []
    one, other = work(two.answers, acted), work(two.other_answers, acted)
    two.answers.done(one, lambda: None, None)
    two.other_answers.failed(other, acted.append, SidecarError(Reason.MODEL_NOT_FOUND, "it is not there"))
    wait_until(lambda: bool(two.settled), "all ranks have reported")
    two.rank.act(two.settled[0])
    wait_until(lambda: len(acted) == 2, "both ranks have acted")
    pair[0].close()
    two.thread.join()
    assert [error.message for error in acted] == ["a rank: it is not there"] * 2


@pytest.mark.parametrize("small", [{"temperature": 0.5, "do_sample": True}, {"eos_token_id": [2, 9]}])
def test_ranks_whose_small_files_differ_refuse_the_request(
    pair: Pair, tmp_path: Path, templates: Templates, small: dict[str, Any]
) -> None:
    """They have the same weights and the same prompt, and would sample other tokens, or end at another one."""
    two = Two(pair)
    acted: list[SidecarError] = []
    one, other = work(two.answers, acted, "prompt"), work(two.other_answers, acted, "prompt")
    first = copy_of_embedded(tmp_path)
    second = shutil.copytree(first, tmp_path / "other")
    results = [prepared(first, templates), prepared(second, templates)]
    (second / "generation_config.json").write_text(json.dumps(small))
    results.append(prepared(second, templates))
    assert results[0].source.key == results[2].source.key
    assert fingerprint(results[0]) == fingerprint(results[1])
    two.answers.done(one, lambda: None, results[0])
    two.other_answers.done(other, lambda: None, results[2])
    wait_until(lambda: bool(two.settled), "all ranks have reported")
    two.rank.act(two.settled[0])
    wait_until(lambda: len(acted) == 2, "both ranks have acted")
    pair[0].close()
    two.thread.join()
    assert {error.reason for error in acted} == {Reason.MODEL_CORRUPT}
    assert all(error.message.startswith("a rank has other files of this model than rank 0") for error in acted)


@pytest.mark.parametrize(
    ("first", "other", "expected"),
    [
        (lambda: 7, lambda: 9, [9, 9]),
        (lambda: Space(200, 50), lambda: Space(100, 60), [Space(200, 50), Space(200, 50)]),
        (lambda: 7, lambda: None, ["the ranks did other work"] * 2),
        (lambda: 7, full, ["a rank: OSError: ENOSPC, No space left on device"] * 2),
        (full, lambda: 7, ["rank 0: OSError: ENOSPC, No space left on device"] * 2),
    ],
)
def test_ranks_act_on_what_their_disks_have_in_common(
    pair: Pair, first: Callable[[], object], other: Callable[[], object], expected: list[object]
) -> None:
    """Each has another result of its own, and an error of one is that of both."""
    two = Two(pair)
    acted: list[object] = []
    for rank, answers, work in ((0, two.answers, first), (1, two.other_answers, other)):
        background = Background(no_post, lambda: 0.0, answers=answers)
        together(background, rank, f"/kv{rank}", repeat("writes"), "write a.kv", work, acted.append)
    wait_until(lambda: bool(two.settled), "all ranks have reported")
    two.rank.act(two.settled[0])
    wait_until(lambda: len(acted) == 2, "both ranks have acted")
    pair[0].close()
    two.thread.join()
    assert [str(each) if isinstance(each, SidecarError) else each for each in acted] == expected
    for error in acted:
        if isinstance(error, SidecarError):
            own = f"/kv{error.metadata['rank']}"
            assert error.metadata.get("directory", own) == own
            assert ("directory" in error.metadata) == ("OSError" in error.message)


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ("kv_disk read a.kv", "kv_disk read b.kv"),
        ("kv_disk read a.kv", "kv_disk write a.kv"),
        ("lookup", "prompt"),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_ranks_that_did_other_work_end_the_group(pair: Pair, first: str, other: str, fails: bool) -> None:
    """Work of one number has to be the same: no rank may take another piece for what it reads, failed or not."""
    two = Two(pair)
    acted: list[object] = []
    one, its = work(two.answers, acted, first), work(two.other_answers, acted, other)
    two.answers.done(one, lambda: acted.append("first"), None)
    if fails:
        two.other_answers.failed(its, acted.append, SidecarError(Reason.MACHINE_FAULT, "it cannot be read"))
    else:
        two.other_answers.done(its, lambda: acted.append("other"), None)
    wait_until(lambda: bool(two.ended), "the first rank notices")
    assert two.ended == [f"a rank did other work than rank 0: '{other}', not '{first}'"]
    assert (two.settled, acted) == ([], [])
    pair[0].close()
    two.thread.join()


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([None, None], None),
        ([None, 0], 0),
        ([5 << 20, 3 << 20], 3 << 20),
        ([None, 3 << 20], 3 << 20),
        ([9 << 30, None], None),
        ([8 << 30, None], None),
        ([8 << 30, 9 << 30], 8 << 30),
    ],
)
def test_smallest_budget_of_the_disks_counts(ranks: list[int | None], expected: int | None) -> None:
    """What suits a disk is 8 GiB at most."""
    assert least_wanted(ranks) == expected


@pytest.mark.parametrize("value", [b"not JSON", b'["scan"]', b'["write", []]', b'["index", null]'])
def test_work_ends_if_a_rank_tells_what_cannot_be_read(value: bytes) -> None:
    """All would wait for it."""
    settled: list[ipc.GroupOutcome] = []
    first = FirstAnswers([cast("Connection", None)], settled.append, no_difference)
    first.reported(0, ipc.GroupOutcome(ticket=1, value=told(7)))
    first.reported(1, ipc.GroupOutcome(ticket=1, value=value))
    (outcome,) = settled
    assert outcome.failure.reason == Reason.MACHINE_FAULT


def test_work_of_a_call_that_ended_is_forgotten(pair: Pair) -> None:
    """Its result holds a prompt, which would stay in memory."""
    answers = RankAnswers(lambda _: None)
    over = [False]
    ticket = answers.ticket("prompt", lambda _: None, lambda: over[0])
    over[0] = True
    work(answers, [])
    answers.act(ipc.GroupOutcome(ticket=ticket.number))
    assert answers.open == [2]


def test_report_of_work_that_another_rank_left_out_is_forgotten() -> None:
    """Its call ended when the threads of one rank had begun it, and those of another had not: they never report it."""
    first = FirstAnswers([cast("Connection", None)], no_post, no_difference)  # type: ignore[arg-type]
    over = [False]
    ticket = first.ticket("prompt", lambda _: None, lambda: over[0])
    first.done(ticket, lambda: None, None)
    over[0] = True
    later = work(first, [], "prompt")
    assert not first.half
    first.reported(1, ipc.GroupOutcome(ticket=later.number, work="prompt"))
    assert first.half == [later.number]


@pytest.mark.parametrize(
    ("reason", "rank", "ends"),
    [
        (Reason.INTERNAL, "", True),
        (Reason.MACHINE_EXHAUSTED, "", True),
        (Reason.MACHINE_FAULT, "", True),
        (Reason.MACHINE_FAULT, "1", False),
        (Reason.MODEL_CORRUPT, "", False),
    ],
)
def test_error_that_one_rank_alone_has_ends_it(reason: Reason, rank: str, ends: bool) -> None:
    """The others wait for its part of a pass, and would for minutes. What all ranks have heard of is harmless."""
    ended: list[str] = []
    failure = ipc.Failure(reason=reason, message="no memory", metadata={"rank": rank} if rank else {})
    DigestingWire(NoWire(), ended.append).send(ipc.Event(call_id=1, failure=failure))
    assert bool(ended) == ends
