"""Samples and scores over the real socket: several ends in one call, and a reader of any pace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_sidecar import Client, Delta, Finished, InvalidArgument
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.daemons import RunningDaemon, idle, raw, run, wait_until
from tests.support.models import copy_of_embedded
from tools.embedded import corpus

PROMPT = next(corpus.held_out(seed=72, tokens_hint=200)).completion()


def test_samples_repeat_alone_with_their_seeds(client: Client) -> None:
    """Each end is its own; the prompt is computed once, and the request is counted once."""
    counted = sum(client.stats().latency.total.counts)
    before = client.stats().engine.prompt_tokens
    samples = client.complete_samples("embedded", PROMPT, samples=4, temperature=3.0, max_tokens=20, seed=1)
    usage = samples[0].usage
    assert client.stats().engine.prompt_tokens - before == usage.prompt_tokens - usage.cached_tokens
    assert sum(client.stats().latency.total.counts) == counted + 1
    assert len({sample.text for sample in samples}) > 1
    for index, sample in enumerate(samples):
        single = client.complete("embedded", PROMPT, temperature=3.0, max_tokens=20, seed=sample.seed)
        assert (sample.index, sample.text, sample.token_ids) == (index, single.text, single.token_ids)


def test_stream_of_samples_ends_with_the_last_finished(daemon: RunningDaemon) -> None:
    """Without gaps in `seq`, and with no delta of a sample after its end."""
    sampling = pb.Sampling(temperature=3.0, seed=3)
    events = raw(daemon, pb.GenerateRequest(model="embedded", text=PROMPT, samples=8, sampling=sampling, max_tokens=60))
    assert [event.seq for event in events] == list(range(len(events)))
    ended: list[int] = []
    for event in events:
        if event.HasField("finished"):
            ended.append(event.finished.index)
        elif event.HasField("delta"):
            assert event.delta.index not in ended
    assert sorted(ended) == list(range(8))
    assert events[-1].HasField("finished")


def test_slow_reader_gets_all_of_its_samples(client: Client) -> None:
    """It begins to read when several times what a backlog holds is on its way."""
    options = {"samples": 4, "temperature": 3.0, "seed": 4, "max_tokens": 150, "ignore_eos": True, "top_logprobs": 20}
    expected = client.complete_samples("embedded", PROMPT, **options)  # type: ignore[arg-type]
    wait_until(lambda: idle(client), "the samples that are expected have ended")
    before = client.stats().engine.generated_tokens
    with client.generate("embedded", PROMPT, **options) as stream:  # type: ignore[arg-type]
        next(stream)
        wait_until(lambda: client.stats().engine.generated_tokens >= before + 40, "the samples are decoded unread")
        got = stream.results()
    assert [sample.text for sample in got] == [sample.text for sample in expected]
    assert [sample.logprobs for sample in got] == [sample.logprobs for sample in expected]


def test_leaving_a_stream_ends_all_samples(client: Client) -> None:
    """In the engine as well."""
    with client.generate("embedded", PROMPT, samples=8, temperature=3.0, max_tokens=3000, ignore_eos=True) as stream:
        assert any(isinstance(event, Delta) for event in stream)
    wait_until(lambda: idle(client), "all samples end")


def test_scored_prompt_tells_its_tokens(client: Client) -> None:
    """Without an answer, and before one."""
    scored = client.complete("embedded", PROMPT, max_tokens=0, prompt_logprobs=1)
    assert (scored.text, scored.reason, scored.usage.completion_tokens) == ("", "length", 0)
    assert len(scored.prompt_logprobs) == scored.usage.prompt_tokens - 1
    assert PROMPT.endswith("".join(entry.text for entry in scored.prompt_logprobs[-5:]))
    assert scored.timings.first_token is not None
    answered = client.complete("embedded", PROMPT, max_tokens=5, prompt_logprobs=1)
    assert answered.text == client.complete("embedded", PROMPT, max_tokens=5).text
    assert [entry.token_id for entry in answered.prompt_logprobs] == [one.token_id for one in scored.prompt_logprobs]


def test_run_samples_as_the_model_recommends(daemon: RunningDaemon, client: Client, tmp_path: Path) -> None:
    """Unless flags say otherwise; without a recommendation it is greedy."""
    model = copy_of_embedded(tmp_path)
    (model / "generation_config.json").write_text('{"do_sample": true, "temperature": 3.0}')
    info = client.load(str(model), estimate_only=True)
    assert (info.default_sampling.temperature, info.default_sampling.top_p) == (3.0, None)
    prompt = ["run", str(model), PROMPT, "--raw", "--max-tokens", "20"]
    greedy = client.complete(str(model), PROMPT, max_tokens=20).text
    assert run(daemon, *prompt, "--greedy").stdout == run(daemon, *prompt, "--temperature", "0").stdout == greedy + "\n"
    samples = json.loads(run(daemon, *prompt, "--seed", "5", "--samples", "2", "--json").stdout)
    expected = client.complete_samples(str(model), PROMPT, max_tokens=20, temperature=3.0, seed=5, samples=2)
    assert [sample["text"] for sample in samples] == [sample.text for sample in expected]


def test_samples_without_effect_name_their_field(client: Client) -> None:
    """Where the model's own sampling decides, the engine says so."""
    with pytest.raises(InvalidArgument) as refused:
        client.complete_samples("embedded", "Hi", samples=2, model_defaults=True)
    assert refused.value.field == "samples"
    with client.generate("embedded", "Hi", model_defaults=True, max_tokens=1) as stream:
        assert isinstance(list(stream)[-1], Finished)
