"""
The bill of running requests: bytes that they take at their peak, beside weights and the prefix cache.

KV lives as long as its request, so each request pays its own. A prefix that several requests read is billed once.
What a pass, a join or a growing layer takes is free again before the next one begins. So the largest of them is
billed once, for all requests together:

    bill = sum of KV  +  the largest of: a prefill pass, a pass over short prompts, a decode step with its join

A prompt that waits until another one has computed what both begin with holds nothing before that. So the passes of the
other are billed up to there without the KV of those that wait for it, and behind it with all of them.

A request is admitted with the smallest pass that is worth computing. Wider ones take what is free at the moment
(`widest`), and are made narrower if that is less. So a long prompt starts where its KV fits, and computes in small
pieces, rather than being refused for the workspace of pieces that it does not need.

Copies follow from the code: a layer of all rows is copied at a time, and the layers before it are free again
(`Batch.join`, `Batch.settle`, and mlx-lm's caches when they grow). docs/memory-ledger.md compares bills with peaks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows
from itertools import accumulate, chain

from daemon.cache.identity import ModelKey
from daemon.cache.mlx.loader import LoadedModel
from daemon.engine.execution.prefill import SHORT
from daemon.engine.execution.row_bills import (
    JOINED,
    LEAST_WIDTH,
    MOVED,
    Bill,
    BilledRow,
    decoding_bill,
    prompt_bill,
)
from daemon.engine.execution.sampling import row_vectors
from daemon.engine.execution.sequence import Sequence
from daemon.engine.execution.sequence_kv import SequenceKV
from daemon.engine.execution.speculation import most_guesses
from daemon.engine.memory.memory_budget import DECODE_ROOM, SCORED_TOKENS, scoring_need
from daemon.engine.scheduling.prefill_plan import PASS_TOKENS
from daemon.kv.mlx.shared_prefix import SharedPrefix
from daemon.kv.mlx.workspace import PROBE


def bill(prefilling: Iterable[Sequence], groups: Iterable[Rows[Sequence]], width: int = LEAST_WIDTH) -> Bill:
    """
    Return the bill of running sequences.

    Args:
        prefilling: Sequences with a prompt to compute.
        groups: Those that decode, by the batch that they share.
        width: Tokens of a pass.
    """
    prompts, batches = list(prefilling), list(groups)
    bills = _prompts(prompts, width)
    bills += [decoding_bill(_models(rows[0]), list(map(_row, rows))) for rows in batches]
    works = [_joining(alike, batches, width) for alike in _by_model(prompts)]
    read = {prefix.memory for sequence in (*prompts, *chain(*batches)) for prefix in _read(sequence)}
    kv = sum(part.kv for part in bills) + sum(memory.nbytes for memory in read)
    kv += sum(_of_head(sequence) for sequence in (*prompts, *chain(*batches)))
    return Bill(kv, max([0, *works, *(part.work for part in bills)]))


def widest(prefilling: Rows[Sequence], wanted: int, spare: Callable[[int], int]) -> int:
    """
    Return the most tokens of the next pass over prompts of a model that memory allows.

    Args:
        prefilling: Sequences of the model with a prompt to compute.
        wanted: As many as time allows.
        spare: Frees cached prefixes until so many bytes are free, as far as that helps, and returns how many are.
    """
    if wanted <= LEAST_WIDTH:
        return LEAST_WIDTH
    least = bill(prefilling, ()).total
    more = bill(prefilling, (), wanted).total - least
    free = spare(more)
    while wanted > LEAST_WIDTH and more > free:
        wanted = max(LEAST_WIDTH, wanted * 3 // 4)
        more = bill(prefilling, (), wanted).total - least
    return wanted


def _prompts(prompts: Rows[Sequence], width: int) -> list[Bill]:
    """Return the bill of each prompt. Those that wait for it hold nothing beside its passes up to where they part."""
    bills = [_prompt(prompt, width) for prompt in prompts]
    stages = list(bills)
    for index, prompt in enumerate(prompts):
        waits = [(_awaits(other, prompt), own.kv) for other, own in zip(prompts, bills, strict=True)]
        if any(stop for stop, _ in waits):
            begin = _row(prompt).done
            works = (
                _prompt(prompt, width, done).work - sum(kv for stop, kv in waits if stop > done)
                for done in {begin, *(stop for stop, _ in waits if stop > begin)}
            )
            stages[index] = Bill(bills[index].kv, max(works))
    return stages


def _awaits(prompt: Sequence, other: Sequence) -> int:
    """Return how many tokens another sequence has to have computed before a prompt begins; 0 if it may begin now."""
    if len(prompt.kvs) != len(other.kvs):
        return 0
    pairs = [(kv, before, kv.alike.get(before, 0)) for kv, before in zip(prompt.kvs, other.kvs, strict=True)]
    return min(stop if stop > max(kv.leased, before.held) else 0 for kv, before, stop in pairs)


def _prompt(sequence: Sequence, width: int, done: int = 0) -> Bill:
    """Return the bill of a prompt that has computed so many tokens, or those that it has if they are more."""
    scored = sequence.request.prompt_logprobs is not None
    width = min(width, SCORED_TOKENS) if scored else width
    models, rows, row = _models(sequence), sequence.rows, _row(sequence)
    row = row._replace(done=max(row.done, done))
    own = prompt_bill(models, row, rows, width)
    # A prompt that has not begun shall hold no wide chunk yet when another one is computed.
    kv = own.kv if sequence.kv.cache is not None else prompt_bill(models, row, rows).kv
    work = own.total - kv + scoring_need(sequence.loaded.vocab_size) * scored
    # A pass behind a shared prefix builds a layer of prefix and tail as one array, and MLX prepares others.
    work += max(int(JOINED * kv.loaded.layout.layer_bytes(_apart(kv))) if _apart(kv) else 0 for kv in sequence.kvs)
    return Bill(kv, work)


def head_bytes(model: LoadedModel, tokens: int) -> int:
    """Return the bytes of the KV of a model's MTP head for so many tokens."""
    return 0 if isinstance(model.mtp, str) or not tokens else model.mtp.kv_bytes(tokens)


def _of_head(sequence: Sequence) -> int:
    row = _row(sequence)
    return 0 if sequence.head is None else head_bytes(sequence.loaded, row.held + row.room)


def _read(sequence: Sequence) -> set[SharedPrefix]:
    """Return the prefixes that a sequence reads together with others: they are billed once."""
    return {prefix for kv in sequence.kvs if kv.common is not None for prefix in kv.common.path}


def _apart(kv: SequenceKV) -> int:
    """Return the leading tokens of a sequence whose full attention is in no array of its own."""
    return max(kv.base, kv.expected)


def _joining(prompts: Rows[Sequence], batches: Iterable[Rows[Sequence]], width: int) -> int:
    """
    Return the work of prompts of one model that share passes, and then join rows that decode.

    Rows share a batch if they read the same prefix, or none. The sequence that others are to read is cut in two then.
    """
    key = prompts[0].model_key
    running = [row for batch in batches if batch[0].model_key == key for row in batch]
    rows = {row: _row(row) for row in (*prompts, *running)}
    cuts: dict[SequenceKV, int] = {}
    for before, stop in (pair for prompt in prompts for pair in prompt.kv.alike.items()):
        cuts[before] = min(stop, cuts.get(before, stop))
    readers = {row: billed._replace(base=billed.base or cuts.get(row.kv, 0)) for row, billed in rows.items()}
    alone = {row: billed for row, billed in rows.items() if not billed.base}
    return max(
        _together([(prompt, part[prompt]) for prompt in prompts if prompt in part], list(part.values()), width)
        for part in (alone, {row: billed for row, billed in readers.items() if billed.base})
    )


def _together(prompts: Rows[tuple[Sequence, BilledRow]], rows: Rows[BilledRow], width: int) -> int:
    """Return the work of rows of one batch, of which some are prompts."""
    if len(rows) < 2 or not prompts:
        return 0
    loaded = prompts[0][0].loaded
    layers = [loaded.layout.layer_bytes(row.held + row.room, reserved=True) for row in rows]  # no prefix has windows
    if loaded.layout.latent:
        layers = [loaded.layout.layer_bytes(row.held - row.base + row.room) for row in rows]
    # What their steps take then includes a copy of a layer of all rows: full attention joins without padding.
    joined = max(int(JOINED * sum(layers)), decoding_bill([loaded], rows).work)
    if not loaded.layout.parts.resumes_anywhere:
        return joined  # windows and states share no pass
    own = [loaded.layout.layer_bytes(row.held - row.base + row.room) for _, row in prompts]
    tokens = _most_together([min(SHORT, row.held - row.done) for _, row in prompts], width)
    # A row sees no tokens of the others, unless all read a prefix: then they are one row behind it, as one array.
    base, longest = max(row.base for _, row in prompts), max(row.held for _, row in prompts)
    behind = base and not loaded.layout.latent
    seen = base + sum(row.held - row.base for _, row in prompts) if behind else longest
    shared = loaded.work.bytes(tokens, seen - tokens) + int(MOVED * sum(own))
    shared += int(JOINED * loaded.layout.layer_bytes(seen)) if behind else 0  # and MLX prepares others
    if loaded.layout.latent:
        # A layer of each row is built as one array and expanded, however few tokens of the row are computed.
        expanded = loaded.work.bytes(PROBE, longest) - loaded.work.bytes(PROBE)
        shared += sum(loaded.layout.layer_bytes(row.base) + expanded for _, row in prompts)
    return max(shared, joined)


def _most_together(lengths: Rows[int], width: int) -> int:
    """
    Return the most tokens of a pass that prompts may share, padding included.

    Args:
        lengths: What each has left.
        width: Most tokens of the pass, without padding.
    """
    ordered = sorted(lengths)
    sums = list(accumulate(ordered))
    most = 0
    for longest in set(ordered):
        others = min(bisect_right(ordered, longest) - 1, bisect_right(sums, width - longest))
        most = max(most, longest * min(1 + others, max(1, width // max(1, longest - PASS_TOKENS))))
    return most


def _by_model(prompts: Iterable[Sequence]) -> Iterable[list[Sequence]]:
    """Return the prompts that may join others, by model."""
    alike: dict[ModelKey, list[Sequence]] = {}
    for prompt in prompts:
        if prompt.draft is None:
            alike.setdefault(prompt.model_key, []).append(prompt)
    return alike.values()


def _models(sequence: Sequence) -> list[LoadedModel]:
    return [kv.loaded for kv in sequence.kvs]


def _row(sequence: Sequence) -> BilledRow:
    """Return what a sequence is billed for."""
    request, done = sequence.request, len(sequence.generated)
    masked, scored = sequence.constraint is not None, request.top_logprobs is not None
    return BilledRow(
        len(sequence.prompt) + done,
        min(request.max_tokens - done, DECODE_ROOM),
        row_vectors(request.sampling, masked=masked, scored=scored),
        fed=1 + most_guesses(sequence),
        grows=request.max_tokens > DECODE_ROOM,
        # Of a draft and its model, each may read another prefix: what is apart for both is no memory of the row's.
        base=min(map(_apart, sequence.kvs)),
        generated=done,
        reused=min(kv.leased if kv.begun else max(kv.leased, kv.expected) for kv in sequence.kvs),
        done=min(max(kv.held, kv.leased, kv.expected) for kv in sequence.kvs),
    )
