"""Scheduling and the ledger: who starts, how much is computed at a time, and what fits."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.engine.memory.memory_budget import DECODE_ROOM, MemoryBudget, Use, kv_need, memory_limit
from daemon.engine.scheduling import policy
from daemon.engine.scheduling.policy import (
    AIM_SECONDS,
    IDLE_CHUNKS,
    MAX_CHUNK,
    MIN_CHUNK,
    MIN_IDLE_CHUNK,
    MOST_PASSED,
    MOST_SHRINKING,
    Allowance,
    ChunkSizer,
    Turns,
)
from daemon.engine.scheduling.prefill_plan import WaitingList
from daemon.shared.errors import Reason, SidecarError


@dataclass(eq=False)
class Request:
    """A request that waits."""

    model_key: str
    salt: str = ""
    program: str = ""
    priority: int = 0
    size: int = 1
    chunks: int = 1
    rows: int = 1
    arrived: float = 0.0

    @property
    def namespace(self) -> tuple[str, str]:
        """Model and salt."""
        return self.model_key, self.salt


def starts(waiting: list[Request], running: dict[str, int] | None = None, fits: int = 10) -> Request | None:
    """Return who starts when two requests of a model may run at once."""
    requests: WaitingList[Request] = WaitingList()
    for request in waiting:
        requests.add(request)
    return next(
        requests.starting(lambda key: (running or {}).get(str(key), 0), 2, lambda request: request.size <= fits), None
    )


def order(waiting: list[Request]) -> list[Request]:
    """Return requests in the order of their turns, a chunk at a time, when nobody else comes."""
    turns: Turns[Request] = Turns()
    waiting = list(waiting)
    done: list[Request] = []
    while (first := turns.first(waiting)) is not None:
        turns.took(first, waiting)
        done.append(first)
        first.chunks -= 1
        if not first.chunks:
            waiting.remove(first)
    return done


def test_request_of_many_rows_waits_for_slots() -> None:
    """It is not passed by later ones of its model, and stops no other model."""
    wide, narrow, other = Request("m", rows=2), Request("m"), Request("free")
    assert starts([wide, narrow, other], {"m": 1}) is other
    assert starts([wide, narrow], {"m": 1}) is None
    assert starts([wide, narrow]) is wide


def test_requests_start_in_order_of_arrival() -> None:
    """One whose model has no free slot lets those of other models pass."""
    a, b, c = Request("full"), Request("free"), Request("free")
    assert starts([a, b, c], {"full": 2, "free": 1}) is b
    assert starts([a], {"full": 2}) is None
    assert starts([]) is None


def test_waiting_request_is_not_overtaken_for_its_size() -> None:
    """Smaller ones would starve it."""
    big, small = Request("m", size=11), Request("m")
    assert starts([big, small]) is None


def test_requests_of_one_salt_start_in_order() -> None:
    """To its end: the next may find in the cache what it computed."""
    requests = [Request("m", chunks=3) for _ in range(3)]
    assert order(requests) == [request for request in requests for _ in range(3)]


def test_salts_and_models_start_in_turn() -> None:
    """Whoever sends a hundred requests holds up one of somebody else by one chunk."""
    flood = [Request("m", "flood", chunks=5) for _ in range(20)]
    other_salt, other_model = Request("m", "other", chunks=2), Request("n", chunks=2)
    turns = order([*flood, other_salt, other_model])
    assert turns[:6] == [flood[0], other_salt, other_model] * 2
    assert turns[6:] == [flood[0]] * 3 + [request for request in flood[1:] for _ in range(5)]


def test_programs_start_in_turn() -> None:
    """Also under one salt; a program with many salts gets no more turns for them."""
    flood = [Request("m", f"salt {number}", program="flood", chunks=5) for number in range(20)]
    other = Request("m", "salt 0", program="other", chunks=5)
    assert order([*flood, other])[:10] == [request for first in flood[:5] for request in (first, other)]


def test_salts_of_one_program_start_in_turn() -> None:
    """Beside another program, too."""
    one, two = (Request("m", salt, program="a", chunks=3) for salt in ("one", "two"))
    other = Request("m", "one", program="b", chunks=6)
    assert order([one, two, other])[::2] == [one, two] * 3


def test_models_and_salts_over_http_take_turns() -> None:
    """All that comes over HTTP is one program: half of the turns beside another, shared by its models and salts."""
    door = [Request(model, salt, program="http", chunks=2) for model in ("m", "n") for salt in ("one", "two")]
    flood = Request("m", program="other", chunks=8)
    turns = order([*door, flood])
    assert turns[1::2] == [flood] * 8
    assert turns[::2] == door * 2


def test_higher_priority_request_starts_first() -> None:
    """Those of equal priority keep their order."""
    low, usual, high, higher = (Request("m", priority=priority) for priority in (-1, 0, 1, 2))
    assert order([low, usual, high, higher]) == [higher, high, usual, low]


@given(st.lists(st.tuples(st.integers(-2, 2), st.sampled_from("abcdef")), min_size=60, max_size=200))
def test_low_priority_request_does_not_starve(arrivals: list[tuple[int, str]]) -> None:
    """However many of whatever priority come later: the last of the first still gets its turn soon."""
    turns: Turns[Request] = Turns()
    waiting = [Request("m", "patient", priority=-2) for _ in range(3)]
    last = waiting[-1]
    served = 0
    for priority, salt in arrivals:
        waiting.append(Request("m", salt, priority=priority))
        first = turns.first(waiting)
        assert first is not None
        turns.took(first, waiting)
        waiting.remove(first)
        served += 1
        if first is last:
            break
    assert served <= MOST_PASSED + 3


def test_scheduler_remembers_bounded_namespaces() -> None:
    """A salt for each request is no leak."""
    turns: Turns[Request] = Turns()
    for number in range(5000):
        request = Request("m", str(number), program=str(number))
        turns.took(request, [request])
    assert len(turns._served) <= 1024
    assert len(turns._programs) <= 1024
    assert not turns._passed


@given(st.floats(1e-5, 10), st.integers(1, 30))
def test_prefill_chunk_size_settles_at_its_time(seconds_per_token: float, rounds: int) -> None:
    """Within a factor of two at each step, between the smallest and the largest."""
    sizer = ChunkSizer()
    last = sizer.size("m")
    for _ in range(rounds):
        sizer.measured("m", last, last * seconds_per_token)
        size = sizer.size("m")
        assert MIN_CHUNK <= size <= MAX_CHUNK
        assert last // MOST_SHRINKING <= size <= 2 * last + 1
        last = size
    if rounds > 12:
        ideal = min(MAX_CHUNK, max(MIN_CHUNK, AIM_SECONDS / seconds_per_token))
        assert last == pytest.approx(ideal, rel=0.1, abs=1)


def test_short_prompts_share_a_pass_within_its_time() -> None:
    sizer = ChunkSizer()
    assert sizer.most_together("m", 10 * AIM_SECONDS) == policy._FIRST_CHUNK
    sizer.measured("m", 32, 2 * AIM_SECONDS)
    assert sizer.most_together("m", 10 * AIM_SECONDS) == pytest.approx(160, abs=1)
    for _ in range(9):
        sizer.stepped("m", 0.5 * AIM_SECONDS)
    assert sizer.most_together("m", 10 * AIM_SECONDS) == pytest.approx(9.5 / 1.5 * 32, abs=1)
    for _ in range(9):
        sizer.stepped("m", 100 * AIM_SECONDS)  # of many rows, say
    assert sizer.most_together("m", 10 * AIM_SECONDS) == pytest.approx(9 * 32, abs=1)
    sizer.measured("m", 32, 100.0)
    assert sizer.most_together("m", AIM_SECONDS) == MIN_CHUNK


def test_prompts_of_a_quick_model_share_passes_no_longer_than_beside_streams() -> None:
    """The first of them decode while the others are computed. A slow model's would hardly go on beside streams."""
    sizer = ChunkSizer()
    sizer.measured("quick", 256, AIM_SECONDS)
    assert sizer.most_together("quick", 10 * AIM_SECONDS) == 256
    sizer.measured("slow", 2 * (MIN_IDLE_CHUNK - 1), 2 * AIM_SECONDS)
    assert sizer.most_together("slow", 10 * AIM_SECONDS) == 10 * (MIN_IDLE_CHUNK - 1)


def test_partial_prefill_chunk_keeps_the_size() -> None:
    """Nor does one model teach another."""
    sizer = ChunkSizer()
    first = sizer.size("m")
    sizer.measured("m", first - 1, 1e-9)
    sizer.measured("other", first, 1e-9)
    assert sizer.size("m") == first == policy._FIRST_CHUNK
    assert sizer.size("other") > first


def test_slow_prefill_chunk_shrinks_the_next() -> None:
    """Down to what fits, or an eighth."""
    sizer = ChunkSizer()
    sizer.measured("m", 64, 2 * AIM_SECONDS)
    assert sizer.size("m") == 32
    sizer.measured("other", 8, 1.0)
    assert sizer.size("other") == policy._FIRST_CHUNK // MOST_SHRINKING


def test_prefill_allowance_is_larger_without_streams() -> None:
    """Twice a first chunk of a model that nobody knows could take half a minute."""
    sizer = ChunkSizer()
    assert sizer.size("m", IDLE_CHUNKS * AIM_SECONDS) == policy._FIRST_CHUNK
    sizer.measured("m", 100, 2 * AIM_SECONDS)
    assert sizer.size("m") == pytest.approx(50, abs=1)
    assert sizer.size("m", IDLE_CHUNKS * AIM_SECONDS) == pytest.approx(100, abs=1)
    for _ in range(8):
        sizer.measured("m", MAX_CHUNK, 1e-3)
    assert sizer.size("m", IDLE_CHUNKS * AIM_SECONDS) == MAX_CHUNK
    for _ in range(8):
        sizer.measured("m", 32, 10.0)
    assert (sizer.size("m"), sizer.size("m", IDLE_CHUNKS * AIM_SECONDS, MIN_IDLE_CHUNK)) == (MIN_CHUNK, MIN_IDLE_CHUNK)


def test_decode_step_time_is_known_beside_prefill() -> None:
    """On a device that works on by itself they take no time; where there are no others, they are all that is known."""
    sizer = ChunkSizer()
    assert sizer.usual_step("m") == 0
    sizer.stepped("m", 0.2, after_prefill=True)
    assert sizer.usual_step("m") == 0.2
    sizer.stepped("m", 0.3)
    for _ in range(100):
        sizer.stepped("m", 0.001, after_prefill=True)
    assert sizer.usual_step("m") == 0.3


def test_usual_step_time_is_a_recent_one() -> None:
    sizer = ChunkSizer()
    for seconds in (9.0,) * 100 + (0.1,) * 20:
        sizer.stepped("m", seconds)
    assert sizer.usual_step("m") == 0.1


@given(st.floats(0, 10), st.floats(1e-5, 1e-2))
def test_prefill_beside_streams_takes_a_chunk_or_two(decode: float, token: float) -> None:
    """So that a stream's gap is at most three of its steps, or one and a chunk; of a long prompt and of short ones."""
    sizer, allowance = ChunkSizer(), Allowance.beside(decode)
    for _ in range(12):
        sizer.measured("m", sizer.size("m"), sizer.size("m") * token)
    wanted = max(AIM_SECONDS, 2 * decode)
    assert allowance.long == pytest.approx(wanted)
    assert allowance.short == allowance.long
    tokens = sizer.size("m", allowance.long, allowance.least)
    assert tokens * token <= 1.1 * wanted or tokens == MIN_CHUNK


def test_prefill_allowance_grows_when_no_token_is_due() -> None:
    idle, beside = Allowance.beside(None), Allowance.beside(0.0)
    assert beside.long < idle.long < idle.short
    assert beside.least < idle.least


def test_kv_need_counts_prompt_and_decode_room() -> None:
    """The cache, and the states at the last end of a block."""

    class Costs:
        state_bytes = 7

        def live_bytes(self, tokens: int, chunk: int, held: int | None = None) -> int:
            assert chunk == MIN_IDLE_CHUNK
            return 8 * tokens

    assert kv_need(Costs(), 100, 10, MIN_IDLE_CHUNK) == 8 * 110 + 7
    assert kv_need(Costs(), 100, 10**6, MIN_IDLE_CHUNK) == 8 * (100 + DECODE_ROOM) + 7


def test_memory_budget_sums_up() -> None:
    """What is left, what is missing, and what can never be."""
    ledger = MemoryBudget(1000)
    use = Use(weights=500, trie=200, live_kv=100)
    assert ledger.headroom(use) == 200
    assert ledger.shortfall(200, use) == 0
    assert ledger.shortfall(201, use) == 1
    assert ledger.shortfall(1, Use(900, 200, 0)) == 101


def test_refusal_says_how_long_a_prompt_would_fit() -> None:
    """Exactly: one token more would not."""
    ledger = MemoryBudget(1000)
    ledger.refuse_if_never(lambda tokens: 100 + 4 * tokens, 100, 500)
    with pytest.raises(SidecarError, match="at most 100 tokens would fit, and this one has 101") as refused:
        ledger.refuse_if_never(lambda tokens: 100 + 4 * tokens, 101, 500)
    assert refused.value.reason is Reason.REQUEST_EXCEEDS_MEMORY
    figures = {"needed_bytes": "504", "available_bytes": "500", "longest_prompt_tokens": "100"}
    assert refused.value.metadata == figures
    with pytest.raises(SidecarError, match="no prompt would fit"):
        ledger.refuse_if_never(lambda tokens: 600 + tokens, 5, 500)


def test_memory_bounds_a_models_passes() -> None:
    """Of one prompt and of several, measured or not; other models keep theirs."""
    sizer = ChunkSizer()
    sizer.limit("a", 100)
    assert (sizer.size("a"), sizer.most_together("a", 9.0)) == (100, 100)
    sizer.measured("a", 256, 0.01)
    sizer.measured("b", 256, 0.01)
    assert (sizer.size("a"), sizer.most("a")) == (100, 100)
    assert sizer.size("b") > 100
    sizer.limit("a", MAX_CHUNK)
    assert sizer.size("a") == sizer.size("b")


def test_memory_limit_is_a_share_of_metal_or_ram() -> None:
    """Never all of it."""
    assert memory_limit(1000) == 900
    assert 0 < memory_limit(None) == memory_limit(0)
