"""Generate over the real socket, with the real engine and the embedded model: what callers rely on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import pytest

import mlx_sidecar
from mlx_sidecar import Client, Delta, Finished, Message, PrefillProgress, Started
from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.support.daemons import RunningDaemon, idle, raw, wait_until
from tests.support.models import copy_of_embedded
from tools.embedded import corpus

ENDLESS = pb.Stop(ignore_eos=True)
PROMPT = next(corpus.held_out(seed=1, tokens_hint=300)).completion()


def conversation(example: corpus.Example) -> list[Message]:
    """Return an example as chat messages."""
    return [Message(message["role"], message["content"]) for message in example.messages()]


def test_generate_events_are_ordered_and_gapless(daemon: RunningDaemon) -> None:
    """Every stream has `started`, deltas and `finished`, with consecutive sequence numbers."""
    events = raw(daemon, pb.GenerateRequest(model="embedded", text=PROMPT, max_tokens=12))
    kinds = [event.WhichOneof("event") for event in events]
    assert [event.seq for event in events] == list(range(len(events)))
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert set(kinds[1:-1]) <= {"prefill", "delta"}
    assert "delta" in kinds


def test_second_request_reuses_prefix_and_answers_same(client: Client) -> None:
    """Warm equals cold, and `cached_tokens` proves that reuse really happened."""
    for number, example in enumerate(islice(corpus.held_out(seed=2, tokens_hint=400), 4)):
        salt = f"warm-{number}"
        cold = client.complete("embedded", example.completion(), max_tokens=12, top_logprobs=3, salt=salt)
        warm = client.complete("embedded", example.completion(), max_tokens=12, top_logprobs=3, salt=salt)
        assert cold.usage.cached_tokens == 0
        assert warm.usage.cached_tokens == warm.usage.prompt_tokens - 1
        assert (warm.text, warm.token_ids, warm.logprobs) == (cold.text, cold.token_ids, cold.logprobs)


def test_similar_prompts_get_their_own_answers(client: Client) -> None:
    """Contexts that differ in one code share most of their prefix, and each gets its own answer."""
    rng = corpus.held_out_rng(3)
    right = 0
    for example in islice(corpus.held_out(seed=3, tokens_hint=200), 5):
        for variant in (example, corpus.contrast(rng, example)):
            shared = client.complete("embedded", variant.completion(), max_tokens=16, salt="contrast")
            alone = client.complete("embedded", variant.completion(), max_tokens=16, cache_mode="bypass")
            assert shared.text == alone.text
            right += shared.text.strip() == variant.answer
    assert right >= 8, f"{right} of 10 held-out answers are right"


def test_second_chat_turn_reuses_the_first(client: Client) -> None:
    """History that is sent again is not computed again, the generated answer included."""
    example = next(corpus.held_out(seed=4, tokens_hint=300))
    history = conversation(example)
    first = client.complete("embedded", history, max_tokens=32, salt="turns")
    history += [first.message, Message("user", corpus.question(example.facts[1]))]
    second = client.complete("embedded", history, max_tokens=32, salt="turns")
    assert second.usage.cached_tokens >= first.usage.prompt_tokens
    assert second.text == client.complete("embedded", history, max_tokens=32, cache_mode="bypass").text


def test_cache_salts_and_modes_keep_requests_apart(client: Client) -> None:
    """Another salt shares nothing; BYPASS neither reads nor writes; READ_ONLY writes nothing."""
    example = next(corpus.held_out(seed=5, tokens_hint=200)).completion()

    def cached(**options: str) -> int:
        return client.complete("embedded", example, max_tokens=1, **options).usage.cached_tokens  # type: ignore[arg-type]

    assert cached(salt="a", cache_mode="read_only") == 0
    assert cached(salt="a", cache_mode="bypass") == 0
    assert cached(salt="a") == 0
    assert cached(salt="a", cache_mode="read_only") > 0
    assert cached(salt="a", cache_mode="bypass") == 0
    assert cached(salt="b") == 0


def test_joined_deltas_are_whole_characters(client: Client) -> None:
    """Random bytes of a byte-level vocabulary make many broken characters; no delta ends inside a whole one."""
    with client.generate("embedded", PROMPT, max_tokens=150, temperature=3.0, seed=7, ignore_eos=True) as stream:
        events = list(stream)
    deltas = [event for event in events if isinstance(event, Delta)]
    ids = [token for delta in deltas for token in delta.token_ids]
    assert len(ids) == 150
    whole = client.complete("embedded", PROMPT, max_tokens=150, temperature=3.0, seed=7, ignore_eos=True)
    assert "".join(delta.text for delta in deltas) == whole.text
    for delta in deltas:
        assert delta.text.encode("utf-8").decode("utf-8") == delta.text


def test_stop_string_itself_is_never_sent(client: Client) -> None:
    """A stop string that spans several tokens ends the completion right before it."""
    plain = client.complete("embedded", PROMPT, max_tokens=10).text
    assert len(plain) > 12
    for start in range(2, len(plain) - 6):
        stop = plain[start : start + 6]
        cut = client.complete("embedded", PROMPT, max_tokens=10, stop=["never met", stop])
        assert cut.text == plain[: plain.index(stop)]
        assert (cut.reason, cut.stop_match) == ("stop", stop)


def test_stop_ids_and_max_tokens_end_a_completion(client: Client) -> None:
    """The id that stops is not sent; `length` says that there was more."""
    plain = client.complete("embedded", PROMPT, max_tokens=6)
    assert (plain.reason, plain.usage.completion_tokens) == ("length", 6)
    cut = client.complete("embedded", PROMPT, max_tokens=6, stop_token_ids=[plain.token_ids[3]])
    assert cut.reason == "stop"
    assert cut.token_ids == plain.token_ids[: plain.token_ids.index(plain.token_ids[3])]


def test_seed_repeats_a_completion_beside_others(client: Client) -> None:
    """Seeded requests give the same alone and beside others; another seed gives something else."""

    def sample(seed: int) -> tuple[int, ...]:
        options = {"max_tokens": 40, "temperature": 1.5, "top_p": 0.95, "top_k": 200, "min_p": 0.001}
        return client.complete("embedded", PROMPT, seed=seed, ignore_eos=True, **options).token_ids  # type: ignore[arg-type]

    alone = [sample(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(sample, range(4)))
    assert together == alone
    assert len(set(alone)) == 4


def test_log_probabilities_belong_to_the_tokens(client: Client) -> None:
    """Greedy takes the likeliest; alternatives are sorted; none are sent unless asked for."""
    answer = client.complete("embedded", PROMPT, max_tokens=5, top_logprobs=4)
    assert [entry.token_id for entry in answer.logprobs] == list(answer.token_ids)
    for entry in answer.logprobs:
        assert entry.top[0].token_id == entry.token_id
        assert [top.logprob for top in entry.top] == sorted((top.logprob for top in entry.top), reverse=True)
        assert entry.logprob <= 0
    assert client.complete("embedded", PROMPT, max_tokens=5).logprobs == ()
    bare = client.complete("embedded", PROMPT, max_tokens=5, top_logprobs=0)
    assert [entry.top for entry in bare.logprobs] == [()] * 5


def test_usage_and_timings_sum_up(client: Client) -> None:
    """Token counts match what was sent, and no time is negative or longer than the whole."""
    answer = client.complete("embedded", PROMPT, max_tokens=8, ignore_eos=True, salt="usage")
    assert answer.usage.completion_tokens == len(answer.token_ids) == 8
    times = answer.timings
    spans = [times.queue, times.load, times.lookup, times.restore, times.prefill, times.decode, times.first_token]
    assert all(span is not None and span >= 0 for span in spans)
    assert (times.first_token or 0) >= (times.prefill or 0) > 0


def test_a_long_prompt_reports_prefill_progress(client: Client, tmp_path: Path) -> None:
    """Progress grows and stays below the prompt. A step has 2,048 tokens at most, however fast the machine is."""
    model = str(copy_of_embedded(tmp_path, max_position_embeddings=8192))
    with client.generate(model, [5 + i * i % 700 for i in range(5000)], max_tokens=1) as stream:
        events = list(stream)
    done = [event.done for event in events if isinstance(event, PrefillProgress)]
    assert isinstance(events[0], Started)
    assert done == sorted(done)
    assert done
    assert done[-1] < events[0].prompt_tokens


def test_cancelled_request_frees_slot_and_keeps_prefix(daemon: RunningDaemon) -> None:
    """After a cancel nothing runs, and a retry finds the prefix."""
    prompt = next(corpus.held_out(seed=8, tokens_hint=600)).completion()
    with daemon.client() as client:
        with client.generate("embedded", prompt, max_tokens=2000, ignore_eos=True, salt="cancel") as stream:
            assert any(isinstance(event, Delta) for event in stream)
        wait_until(lambda: idle(client), "nothing runs")
        assert client.complete("embedded", prompt, max_tokens=1, salt="cancel").usage.cached_tokens > 0
        assert client.stats().prefix_cache.leases == 0


def test_a_deadline_ends_a_request(daemon: RunningDaemon) -> None:
    """The call ends with DEADLINE_EXCEEDED, and its slot is free again."""
    with daemon.client() as client:
        client.stats()  # it listens
    request = pb.GenerateRequest(model="embedded", text=PROMPT, max_tokens=3000, stop=pb.Stop(ignore_eos=True))
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub = SidecarServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(request, timeout=0.3))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


READER = """
import sys
from mlx_sidecar import Client
with Client(sys.argv[1]) as client:
    for event in client.generate("embedded", sys.argv[2], max_tokens=3500, ignore_eos=True):
        print(flush=True)
"""


def test_killed_client_frees_slot_and_keeps_prefix(daemon: RunningDaemon) -> None:
    """kill -9 leaves no time for a cancel; the connection that breaks is enough."""
    prompt = next(corpus.held_out(seed=9, tokens_hint=300)).completion()
    command = [sys.executable, "-c", READER, str(daemon.socket), prompt]
    with daemon.client() as client, subprocess.Popen(command, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        for _ in range(3):
            assert reader.stdout.readline()
        reader.kill()
        wait_until(lambda: idle(client), "nothing runs")
        assert client.complete("embedded", prompt, max_tokens=1).usage.cached_tokens > 0
        stats = client.stats()
        assert stats.prefix_cache.leases == 0
        assert all(model.in_use == 0 for model in stats.models)


def test_deadline_in_the_queue_computes_nothing(
    start_daemon: Callable[..., RunningDaemon],
) -> None:
    """The running request continues, and nothing of the waiting request remains."""
    with start_daemon(max_batch="1").client() as client:
        client.stats()  # it listens
        with client.generate("embedded", "The", max_tokens=3500, ignore_eos=True) as running:
            events = iter(running)
            assert any(isinstance(event, Delta) for event in events)
            with pytest.raises(mlx_sidecar.DeadlineExceeded):
                client.complete("embedded", PROMPT, max_tokens=1, timeout=0.5)
            wait_until(lambda: client.stats().engine.queued == 0, "no request waits")
            assert any(isinstance(event, Delta) for event in events)
            wait_until(lambda: client.stats().engine.prompt_tokens > 0, "fresh figures are there")
            assert client.stats().engine.prompt_tokens == 1  # the prompt of the one that runs


def test_concurrent_requests_get_their_own_answers(client: Client) -> None:
    """Twelve different prompts on eight slots: each answer equals the one it gets alone."""
    prompts = [example.completion() for example in islice(corpus.held_out(seed=9, tokens_hint=120), 12)]

    def ask(prompt: str) -> str:
        return client.complete("embedded", prompt, max_tokens=12, salt="many").text

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, prompts))
    alone = [client.complete("embedded", prompt, max_tokens=12, cache_mode="bypass").text for prompt in prompts]
    assert together == alone


def test_end_of_sequence_is_reported_as_stop(client: Client) -> None:
    """A chat answer that ends with the end-of-sequence token finishes with "stop"."""
    example = next(corpus.held_out(seed=10, tokens_hint=100))
    with client.generate("embedded", conversation(example), max_tokens=64) as stream:
        last = list(stream)[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.stop_match) == ("stop", "")


@contextmanager
def unread(daemon: RunningDaemon) -> Iterator[Any]:
    """Begin a stream of a megabyte that is not read, on a connection that takes in little ahead of its reader."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16384)]
    request = pb.GenerateRequest(model="embedded", text="The", max_tokens=3500, top_logprobs=20, stop=ENDLESS)
    with grpc.insecure_channel(f"unix:{daemon.socket}", options) as channel:
        yield SidecarServiceStub(channel).Generate(request, wait_for_ready=True)


@pytest.mark.slow
def test_paused_client_gets_all_text_afterwards(
    daemon: RunningDaemon,
) -> None:
    """The engine holds its stream once much waits for it; when it reads again, the text is as it would have been."""
    with daemon.client() as other, unread(daemon) as stream:
        wait_until(lambda: other.stats().engine.decoding == 1, "it runs")
        generated = -1
        while (now := other.stats().engine.generated_tokens) != generated:
            other.complete("embedded", "A man", max_tokens=20, ignore_eos=True)
            generated = now + 20  # unless the held stream got some as well
        assert other.stats().engine.decoding == 1
        text = "".join(event.delta.text for event in stream)
        assert text == other.complete("embedded", "The", max_tokens=3500, ignore_eos=True).text


@pytest.mark.slow
def test_client_that_never_reads_again_is_ended(daemon: RunningDaemon) -> None:
    """After half a minute its slot is free; when it comes back it is told."""
    with daemon.client() as other, unread(daemon) as stream:
        wait_until(lambda: other.stats().engine.decoding == 1, "it runs")
        wait_until(lambda: other.stats().engine.decoding == 0, "it was ended")
        with pytest.raises(grpc.RpcError, match="nothing was read") as told:
            list(stream)
        assert told.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert other.complete("embedded", "A man", max_tokens=2).text
