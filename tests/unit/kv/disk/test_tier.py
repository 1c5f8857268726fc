"""The disk tier: what is written and when, what an invalidation removes, and what the limits allow."""

from __future__ import annotations

import pytest

from daemon.kv.disk import write_behind
from daemon.kv.disk.limits import Space
from daemon.kv.disk.tier import INDEX_SECONDS
from daemon.kv.disk.write_behind import MOST_REST
from daemon.kv.keys import BLOCK_TOKENS, block_keys
from daemon.kv.spec import PrefixSpec
from tests.unit.kv.disk.fake_disk import NAME, TOKENS, FakeDisk, written
from tests.unit.kv.fake_kv import ALL, HYBRID, LAYOUTS, PLAIN, WINDOWED, FakePrefixes, prompt


@pytest.mark.parametrize("parts", LAYOUTS)
def test_prefix_used_twice_outlives_a_restart(parts: PrefixSpec) -> None:
    """Whatever it consists of; one that was used once does not."""
    first = written(TOKENS, parts=parts)
    first.prefixes.store(NAME, prompt(5, 6))
    first.settle()
    again = FakeDisk(FakePrefixes(parts=parts), first.files)
    again.settle()
    assert again.restore(NAME, [*TOKENS, 9]) == TOKENS
    assert again.restore(NAME, [*prompt(5, 6), 9]) == []
    assert again.restore("n/two", [*TOKENS, 9]) == []


@pytest.mark.parametrize("tail", [1, 15])
@pytest.mark.parametrize("parts", LAYOUTS)
def test_tail_outlives_a_restart_where_it_is_needed(parts: PrefixSpec, tail: int) -> None:
    """With full attention alone, the blocks are enough: at most 15 tokens are computed again."""
    tokens = [*TOKENS, *prompt(5)[:tail]]
    first = written(tokens, parts=parts)
    again = FakeDisk(FakePrefixes(parts=parts), first.files)
    again.settle()
    assert again.restore(NAME, prompt(1, 2, 3, 4, 6)) == (TOKENS if parts is PLAIN else [])
    assert again.restore(NAME, [*tokens, 9]) == (TOKENS if parts is PLAIN else tokens)


@pytest.mark.parametrize("restarted", [False, True])
def test_invalidated_tail_is_not_found_again(restarted: bool) -> None:
    """Another prompt goes on from the same block, and stays."""
    tokens, other = [*TOKENS, *prompt(5)[:5]], prompt(1, 2, 3, 4, 6, 7)
    disk = written(tokens, other, parts=HYBRID)
    disk.prefixes.cache.forget_prefix(NAME, prompt(1, 2, 3, 4, 5))
    disk.work()
    assert disk.tier.settled
    if restarted:
        disk = FakeDisk(FakePrefixes(parts=HYBRID), disk.files)
        disk.settle()
    assert disk.restore(NAME, [*tokens, 9]) == []
    assert disk.restore(NAME, [*other, 9]) == other


def test_resume_piece_is_written_where_the_last_is_far() -> None:
    """Else each turn of a conversation would write its states; a kept one is exact all the same."""
    letters = [*range(1, 9)]
    disk = FakeDisk(FakePrefixes(parts=HYBRID))
    disk.settle()
    disk.knows(NAME)

    def used(blocks: int) -> int:
        disk.prefixes.store(NAME, prompt(*letters[:blocks]))
        disk.prefixes.reuse(NAME, [*prompt(*letters[:blocks]), 9])
        disk.settle()
        return sum(entry.piece.resume for entry in disk.tier.catalog)

    assert [used(blocks) for blocks in (4, 5, 6, 7)] == [1, 1, 2, 2]
    assert disk.tier.catalog.blocks == 7
    disk.prefixes.cache.keep(NAME, [*prompt(*letters[:7]), 9], HYBRID, 60)
    disk.settle()
    assert used(7) == 3
    again = FakeDisk(FakePrefixes(parts=HYBRID), disk.files)
    again.settle()
    assert again.restore(NAME, [*prompt(*letters[:5]), 9]) == prompt(*letters[:4])
    assert again.restore(NAME, [*prompt(*letters[:7]), 9]) == prompt(*letters[:7])


def test_kept_prefix_is_written_at_once() -> None:
    """It need not be used again."""
    disk = FakeDisk(FakePrefixes())
    disk.settle()
    disk.knows(NAME)
    disk.prefixes.store(NAME, TOKENS)
    assert disk.prefixes.cache.keep(NAME, [*TOKENS, 9], PLAIN, 60)
    disk.settle()
    assert disk.tier.catalog.blocks == 4


def test_writing_rests_while_prompts_are_computed() -> None:
    """For a while: what waited so long is written, even if prompts are computed all the time."""
    disk = FakeDisk(FakePrefixes())
    disk.settle()
    disk.knows(NAME)
    disk.prefixes.store(NAME, TOKENS)
    disk.prefixes.reuse(NAME, [*TOKENS, 9])
    for waited in (0.0, MOST_REST - 1):
        disk.now += waited
        disk.tier.step(prompts=True)
        assert disk.tier.busy
        assert disk.tier.staged == 0
    disk.now += 1
    while disk.tier.busy or disk.work():
        disk.tier.step(prompts=True)
    assert disk.tier.catalog.blocks == 4


def test_restore_goes_on_while_prompts_are_computed() -> None:
    """A request waits for it."""
    disk = written(TOKENS)
    restore = disk.restoring(NAME, [*TOKENS, 9])
    while disk.work() or disk.tier.busy:
        disk.tier.step(prompts=True)
    assert restore.over()
    assert disk.prefixes.reuse(NAME, [*TOKENS, 9]) == TOKENS


def test_shared_beginning_is_written_once() -> None:
    """A prompt that goes on elsewhere adds its own blocks alone."""
    disk = written(TOKENS, prompt(1, 2, 5), prompt(1, 2, 3, 4, 6))
    assert disk.tier.catalog.blocks == 6
    for tokens in (TOKENS, prompt(1, 2, 5), prompt(1, 2, 3, 4, 6)):
        assert disk.restore(NAME, [*tokens, 9]) == tokens


@pytest.mark.parametrize("parts", [PLAIN, HYBRID])
@pytest.mark.parametrize("restarted", [False, True])
def test_invalidated_prefix_is_not_found_again(parts: PrefixSpec, restarted: bool) -> None:
    """The prompt and all that go on from it; others stay."""
    other = prompt(5, 6)
    disk = written(TOKENS, prompt(1, 2, 3, 4, 5), other, parts=parts)
    disk.prefixes.cache.forget_prefix(NAME, prompt(1, 2, 3, tail=2))
    disk.work()
    assert disk.tier.settled
    if restarted:
        disk = FakeDisk(FakePrefixes(parts=parts), disk.files)
        disk.settle()
    assert len(disk.restore(NAME, [*TOKENS, 9])) < 3 * BLOCK_TOKENS
    assert len(disk.restore(NAME, [*prompt(1, 2, 3, 4, 5), 9])) < 3 * BLOCK_TOKENS
    assert disk.restore(NAME, [*other, 9]) == other


def test_invalidated_namespace_leaves_no_file() -> None:
    """Not even of a piece that is being written, or of one that waits."""
    disk = written(TOKENS)
    for tokens in (prompt(5, 6), prompt(7, 8)):
        disk.prefixes.store(NAME, tokens)
        disk.prefixes.reuse(NAME, [*tokens, 9])
    while disk.tier.busy and not disk.tier.writer.underway:
        disk.tier.step()
    assert disk.tier.writer.underway
    disk.prefixes.cache.clear()
    assert not disk.tier.settled
    disk.settle()
    assert disk.tier.settled
    assert disk.files.content == {}


def test_restore_of_an_invalidated_prefix_ends() -> None:
    """What was read ahead is not copied into the cache any more."""
    disk = written(TOKENS)
    restore = disk.restoring(NAME, [*TOKENS, 9])
    disk.work()
    disk.prefixes.cache.clear()
    assert restore.over()
    disk.settle()
    assert disk.prefixes.reuse(NAME, [*TOKENS, 9]) == []


@pytest.mark.parametrize("parts", [PLAIN, WINDOWED, HYBRID])
def test_restore_ends_where_its_beginning_is_evicted(parts: PrefixSpec) -> None:
    """Between two pieces. The rest cannot be stored without it, which is no fault of the disk."""
    disk = written(TOKENS, prompt(1, 2, 3, 4, 5), parts=parts)
    restore = disk.restoring(NAME, [*prompt(1, 2, 3, 4, 5), 9])
    while disk.work() or not disk.prefixes.cache.trie.walk(NAME, block_keys(TOKENS)):
        disk.tier.step()
    assert not restore.over()
    disk.prefixes.cache.shed(10**9)
    disk.settle()
    assert restore.over()
    assert disk.tier.work.counters.faults == 0
    assert disk.prefixes.reuse(NAME, [*prompt(1, 2, 3, 4, 5), 9]) == []
    assert disk.restore(NAME, [*TOKENS, 9]) == TOKENS
    disk.check()


def test_request_restores_its_own_namespace_alone() -> None:
    """The model is loaded before the directory is open, which has prefixes of it with another layout."""
    files = written(TOKENS).files
    disk = FakeDisk(FakePrefixes(), files)
    restore = disk.tier.restore()
    restore.begin([*TOKENS, 9], lambda: NAME)
    restore.go("n/other", disk.prefixes.parts)
    disk.settle()
    assert restore.over()
    assert disk.prefixes.cache.memory_usage() == 0
    assert disk.tier.work.counters.read_bytes == 0


def test_least_recently_used_piece_makes_room() -> None:
    """Within the budget, and a beginning stays as long as something goes on from it."""
    small = FakeDisk(FakePrefixes(), wanted=10_000)
    small.settle()
    small.knows(NAME)
    for letter in range(5, 22):
        small.now += 4000
        small.prefixes.store(NAME, prompt(letter, 2))
        small.prefixes.reuse(NAME, [*prompt(letter, 2), 9])
        if letter % 3 == 0:
            small.prefixes.reuse(NAME, [*prompt(5, 2), 9])
        small.settle()
        small.check()
    small.prefixes.cache.shed(10**9)
    assert small.restore(NAME, [*prompt(21, 2), 9]) == prompt(21, 2)
    assert small.restore(NAME, [*prompt(7, 2), 9]) == []


def test_clock_that_goes_back_lets_old_pieces_go_first() -> None:
    """Else all that is written until the clock has caught up would go at once."""
    disk = FakeDisk(FakePrefixes(), wanted=10_000)
    disk.settle()
    disk.knows(NAME)
    for letter in range(10, 30):
        disk.jumped = 10**7 if letter < 20 else 0
        disk.now += 30_000
        disk.prefixes.store(NAME, prompt(letter, 2))
        disk.prefixes.reuse(NAME, [*prompt(letter, 2), 9])
        disk.settle()
        disk.check()
    disk.prefixes.cache.shed(10**9)
    assert disk.restore(NAME, [*prompt(27, 2), 9]) == prompt(27, 2)
    assert disk.restore(NAME, [*prompt(19, 2), 9]) == []


def test_last_tenth_of_the_disk_stays_free() -> None:
    """A disk that others fill makes the tier give back what it has."""
    disk = written(TOKENS)
    disk.files.disk = Space(10**9, 10**8 + 10)
    disk.now += 400
    disk.tier.touched(list(disk.tier.catalog))
    disk.tier.tick()
    disk.settle()
    assert disk.tier.catalog.nbytes == 0
    assert disk.files.content == {}


def test_idle_tier_gives_back_what_others_need() -> None:
    """It looks every five minutes, and writes no index for that."""
    disk = written(TOKENS)
    disk.now += INDEX_SECONDS
    disk.tier.tick()  # writes the index
    disk.settle()
    disk.files.disk = Space(10**9, 10**6)
    hours = disk.files.hours = []

    disk.now += INDEX_SECONDS - 1
    disk.tier.tick()
    assert not disk.work()
    disk.now += 1
    disk.tier.tick()
    disk.settle()

    assert not disk.files.content
    assert disk.files.hours is hours
    disk.check()


def test_day_has_a_limit_of_writes() -> None:
    """Twice the budget, also after a restart; an hour of the next day is free again."""
    disk = written()
    disk.tier._wanted = 50_000
    disk.knows(NAME)

    def write(letters: range) -> int:
        before = disk.tier.work.counters.written_bytes
        for letter in letters:
            disk.prefixes.store(NAME, prompt(letter, 2))
            disk.prefixes.reuse(NAME, [*prompt(letter, 2), 9])
            disk.settle()
        return disk.tier.work.counters.written_bytes - before

    assert 0 < write(range(1, 200)) <= 100_000
    assert write(range(200, 220)) == 0
    disk.now += 400
    disk.tier.tick()
    disk.settle()
    disk = FakeDisk(FakePrefixes(), disk.files, 50_000, disk.now)
    disk.settle()
    disk.knows(NAME)
    assert write(range(300, 320)) == 0
    disk.now += 25 * 3600
    assert write(range(300, 320)) > 0


def test_evicted_prefix_is_not_written_and_no_fault() -> None:
    """It may go between two of its slices."""
    disk = FakeDisk(FakePrefixes(parts=ALL))
    disk.settle()
    disk.knows(NAME)
    disk.prefixes.store(NAME, TOKENS)
    disk.prefixes.reuse(NAME, [*TOKENS, 9])
    disk.tier.step()
    assert disk.tier.staged
    disk.prefixes.cache.shed(10**9)
    disk.settle()
    assert disk.tier.work.counters.faults == disk.tier.staged == disk.tier.catalog.blocks == 0


@pytest.mark.parametrize("how", ["damaged", "failing"])
def test_nothing_counts_as_restored_if_no_piece_could_be_read(how: str) -> None:
    """What the request finds in memory then was computed by another one."""
    disk = written(TOKENS)
    if how == "damaged":
        disk.files.content = {name: data[:-1] + b"~" for name, data in disk.files.content.items()}
    else:
        disk.files.fault = OSError(5, "fault")
    restore = disk.restoring(NAME, [*TOKENS, 9])
    assert restore.in_memory == 0
    disk.settle()
    assert restore.over()
    assert restore.in_memory is None


def test_piece_that_was_read_counts_as_restored() -> None:
    """Also for a request that waited for the same piece."""
    disk = written(TOKENS)
    restores = [disk.restoring(NAME, [*TOKENS, 9]) for _ in range(2)]
    disk.settle()
    assert [restore.in_memory for restore in restores] == [0, 0]


@pytest.mark.parametrize("parts", LAYOUTS)
def test_prefix_of_short_pieces_is_restored(parts: PrefixSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has fewer tokens than are worth reusing; together they are worth it. Of large models one has 3 blocks."""
    monkeypatch.setattr(write_behind, "PIECE_BYTES", 1)  # a piece for each block
    disk = FakeDisk(FakePrefixes(parts=parts, min_prefix_len=3 * BLOCK_TOKENS))
    disk.settle()
    disk.knows(NAME)
    disk.prefixes.store(NAME, TOKENS)
    disk.prefixes.reuse(NAME, [*TOKENS, 9])
    disk.settle()
    disk.prefixes.cache.shed(10**9)
    assert disk.restore(NAME, [*TOKENS, 9]) == TOKENS
