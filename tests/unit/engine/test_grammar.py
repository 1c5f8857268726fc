"""Response formats: the answer has the form of the request, for any weights and sampling options."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.engine.prompt.answer_constraints import response_format
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.engine.structured_output.grammar import of_response
from daemon.engine.structured_output.matcher import GrammarMatcher
from daemon.shared.errors import SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Answer, Harness, Reference, generate
from tests.unit.engine.schemas import SCHEMAS

PROMPT = "The code of the blue box is 74. The code of the red box is 12. The blue"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
WILD = pb.Sampling(temperature=20, seed=5)
"""Nearly every token is as likely as any other."""
NEVER_ENDING = pb.Sampling(temperature=5, seed=1, logit_bias={2: -100})


def schema(value: Any) -> pb.ResponseFormat:
    """Return the form of a JSON schema."""
    return pb.ResponseFormat(json_schema=json.dumps(value))


def ask(harness: Harness, form: pb.ResponseFormat, **fields: Any) -> Answer:
    """Generate an answer in a form."""
    return harness.run(generate(PROMPT, response_format=form, **{"max_tokens": 600, **fields}))


@pytest.fixture(name="shared", scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """Return one engine for all examples."""
    return Harness(state_dir=tmp_path_factory.mktemp("state"))


@settings(deadline=None, max_examples=30)
@given(SCHEMAS, st.sampled_from([0.0, 1.0, 20.0]), st.integers(0, 2**64 - 1))
def test_answer_under_a_schema_is_valid_json(
    shared: Harness, wanted: dict[str, Any], temperature: float, seed: int
) -> None:
    """This holds for any schema, temperature and seed, unless max_tokens cuts the answer."""
    form = schema({**wanted, "x-guidance": {"whitespace_pattern": " ?"}})  # or most of it would be white space
    sampling = pb.Sampling(temperature=temperature, seed=seed if temperature else None)
    answer = ask(shared, form, max_tokens=400, sampling=sampling)
    assert answer.finished.reason == pb.FINISH_REASON_STOP, answer.failure
    jsonschema.validate(json.loads(answer.text), wanted)


@pytest.mark.parametrize("seed", range(3))
def test_answer_matches_its_regular_expression(harness: Harness, seed: int) -> None:
    """The expression matches the whole text and not a part of it."""
    regex = r"[A-Z][a-z]{2,9}-\d{4}(é|漢)"
    answer = ask(harness, pb.ResponseFormat(regex=regex), sampling=pb.Sampling(temperature=20, seed=seed))
    assert re.fullmatch(regex, answer.text)


def test_answer_matches_its_grammar(harness: Harness) -> None:
    """The grammar is in the notation of Lark."""
    grammar = 'start: "(" part ")" | part\npart: NAME ("+" NAME){0,3}\nNAME: /[a-z]{1,3}/'
    assert re.fullmatch(r"\(?[a-z]{1,3}(\+[a-z]{1,3}){0,3}\)?", ask(harness, pb.ResponseFormat(grammar=grammar)).text)


def test_json_object_format_gives_a_json_object(harness: Harness) -> None:
    """If max_tokens cuts it, the text is the beginning of an object."""
    form = pb.ResponseFormat(json_object=pb.JsonObject())
    whole = [ask(harness, form, sampling=pb.Sampling(temperature=3, seed=seed), max_tokens=80) for seed in range(3)]
    assert all(answer.text.startswith("{") for answer in whole)
    ended = [json.loads(answer.text) for answer in whole if answer.finished.reason == pb.FINISH_REASON_STOP]
    assert all(isinstance(value, dict) for value in ended)


def test_max_tokens_cuts_a_structured_answer_short(harness: Harness) -> None:
    """The text is the beginning of the form."""
    whole = ask(harness, schema(PERSON), sampling=WILD)
    cut = ask(harness, schema(PERSON), sampling=WILD, max_tokens=3)
    assert cut.finished.reason == pb.FINISH_REASON_LENGTH
    assert whole.ids[:3] == cut.ids
    assert whole.text.startswith(cut.text)


def test_logprobs_are_those_before_the_token_mask(harness: Harness, reference: Reference) -> None:
    """A forced token has the low log-probability that the model gives it."""
    answer = ask(harness, pb.ResponseFormat(regex="@+#"), top_logprobs=2, max_tokens=1, sampling=WILD)
    prompt = mx.array([reference.tokenizer.encode(PROMPT)])
    logits = reference.model(prompt)[0, -1].astype(mx.float32)
    expected = float((logits[answer.ids[0]] - mx.logsumexp(logits)).item())
    assert answer.logprobs[0].logprob == pytest.approx(expected, abs=1e-4)
    assert answer.logprobs[0].top[0].token_id == int(mx.argmax(logits).item())  # type: ignore[arg-type]
    assert answer.ids[0] != answer.logprobs[0].top[0].token_id


@pytest.mark.parametrize(
    "sampling",
    [
        pb.Sampling(temperature=1, top_p=0.1, seed=1),
        pb.Sampling(temperature=1, top_k=1, seed=1),
        pb.Sampling(temperature=1, min_p=1, seed=1),
        pb.Sampling(repetition_penalty=10, presence_penalty=10, frequency_penalty=10),
        pb.Sampling(logit_bias=dict.fromkeys(range(3, 737), -100), temperature=1, seed=1),
        pb.Sampling(logit_bias={2: 100}),
    ],
)
def test_sampling_options_act_within_the_grammar(harness: Harness, sampling: pb.Sampling) -> None:
    """No option makes a masked token possible, not even a bias towards the end of the sequence."""
    answer = ask(harness, schema(PERSON), sampling=sampling)
    jsonschema.validate(json.loads(answer.text), PERSON)


def test_stop_string_ends_a_structured_answer(harness: Harness) -> None:
    """A stop string works as without a form."""
    answer = ask(harness, schema(PERSON), stop=pb.Stop(strings=['"age"']))
    assert (answer.finished.reason, answer.finished.stop_match) == (pb.FINISH_REASON_STOP, '"age"')
    assert '"age"' not in answer.text


def test_grammar_rows_share_a_batch_with_free_rows(
    engine: Callable[..., Harness],
) -> None:
    """Each row equals its answer alone, bit for bit, log-probabilities included."""
    requests = [
        generate(PROMPT, max_tokens=40, top_logprobs=1, cache=pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS), **fields)
        for fields in (
            {"sampling": WILD, "response_format": schema(PERSON)},
            {"sampling": pb.Sampling(temperature=1, seed=3), "stop": pb.Stop(ignore_eos=True)},
            {"response_format": pb.ResponseFormat(regex="[a-z ]{30,}")},
            {"stop": pb.Stop(ignore_eos=True)},
        )
    ]
    alone = [engine().run(request).content for request in requests]
    harness = engine()
    calls = [harness.begin(request) for request in requests]
    most = 0

    def done() -> bool:
        nonlocal most
        for decoder in harness.engine._runner._decoders.values():
            most = max([most, *(len(batch) for batch in decoder._batches)])
        return not harness.engine.busy and not harness.engine._calls

    harness.until(lambda: bool(harness.of(calls[0])))
    harness.until(done)
    assert most == len(requests)
    assert [Answer(harness.of(call)).content for call in calls] == alone


def test_structured_answer_can_be_cancelled(harness: Harness) -> None:
    """A cancelled request releases everything."""
    call = harness.begin(generate(PROMPT, max_tokens=600, response_format=pb.ResponseFormat(regex="[a-z ]{500,}")))
    harness.until(lambda: harness.decoding(call))
    harness.cancel(call)
    harness.settle()


BAD = {
    "no json": pb.ResponseFormat(json_schema="{"),
    "no object": pb.ResponseFormat(json_schema="[]"),
    "deep json": pb.ResponseFormat(json_schema='{"not":' * 9000 + "{}" + "}" * 9000),
    "unknown keyword": schema({"type": "array", "uniqueItems": True}),
    "unknown keyword, forgiven by itself": schema({"not": {}, "x-guidance": {"lenient": True}}),
    "not exclusive": schema({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
    "reference elsewhere": schema({"$ref": "http://localhost:1/schema.json"}),
    "contradiction": schema({"type": "integer", "minimum": 3, "maximum": 2}),
    "multiple": schema({"type": "integer", "multipleOf": 1_000_003}),
    "multiples": schema({"items": {"anyOf": [{"multipleOf": 97}, {"multipleOf": 101.5}]}}),
    "choices": schema({"allOf": [{"anyOf": [{"properties": {f"p{i}": {}}}, {"required": ["a"]}]} for i in range(30)]}),
    "no regex": pb.ResponseFormat(regex="(a"),
    "looking around": pb.ResponseFormat(regex="(?=a)b"),
    "nothing matches": pb.ResponseFormat(regex=r"[^\s\S]"),
    "parentheses": pb.ResponseFormat(regex="(" * 3000 + "a" + ")" * 3000),
    "no grammar": pb.ResponseFormat(grammar="start: nobody"),
    "rule of itself": pb.ResponseFormat(grammar="start: start"),
    "deep grammar": pb.ResponseFormat(grammar="start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
    "not in the notation": pb.ResponseFormat(grammar='{"grammars": [{"json_schema": {"multipleOf": 1000003}}]}'),
    "its own temperature": pb.ResponseFormat(grammar='start: a\na[temperature=0.5]: "x"'),
    "multiple in a grammar": pb.ResponseFormat(grammar='start: %json {"multiple\\u004ff": 1000003, "type": "integer"}'),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_unsupported_grammar_is_refused_with_its_field(tokenizer: Tokenizer, name: str) -> None:
    """The refusal comes before the model runs, and quickly."""
    wanted = response_format(BAD[name])
    with pytest.raises(SidecarError) as caught:
        GrammarMatcher(wanted.field, of_response(wanted), tokenizer.vocabulary("response_format"))
    assert caught.value.reason == "INVALID_ARGUMENT"
    assert caught.value.field == f"response_format.{BAD[name].WhichOneof('kind')}"
    assert len(caught.value.message) < 500


HEAVY = {
    "repeated": pb.ResponseFormat(grammar='start: ((("a"{1,1000}){1,1000}){1,1000}){1,1000}'),
    "counted": pb.ResponseFormat(regex="((a{1,1000}){1,1000}){1,1000}"),
    "many choices": pb.ResponseFormat(
        grammar=f"start: {' | '.join(f'r{i}' for i in range(2000))}"
        + "".join(f'\nr{i}: "{i}" start' for i in range(2000))
    ),
    "properties": schema({"type": "object", "properties": {f"p{i}": {} for i in range(2000)}}),
    "two ends": pb.ResponseFormat(regex=".*a" + ".{0,200}b.*" * 30),
}


@pytest.mark.parametrize("name", HEAVY)
def test_too_complex_grammar_fails_its_own_call_only(harness: Harness, name: str) -> None:
    """The error has the field, and other requests go on."""
    other = harness.begin(generate(PROMPT, max_tokens=150, stop=pb.Stop(ignore_eos=True)))
    harness.until(lambda: harness.decoding(other))
    answer = ask(harness, HEAVY[name], max_tokens=700, sampling=NEVER_ENDING)
    assert answer.failure.field == f"response_format.{HEAVY[name].WhichOneof('kind')}"
    assert Answer(harness.finish(other)).finished.usage.completion_tokens == 150
    harness.settle()


@pytest.mark.parametrize(
    "form",
    [
        schema({"type": "array", "items": {"$ref": "#"}, "maxItems": 2}),
        schema({"type": "string", "minLength": 100_000, "maxLength": 2_000_000}),
        schema({"type": "array", "minItems": 100_000, "items": {"type": "integer"}}),
        schema({"enum": [f"value {number}" for number in range(3000)]}),
        pb.ResponseFormat(regex="(a|b)*a" + "(a|b)" * 200),
        pb.ResponseFormat(regex="(a|b){1,100000}c"),
        pb.ResponseFormat(grammar='start: s\ns: s s | "a" | '),
    ],
)
def test_large_grammars_run(harness: Harness, form: pb.ResponseFormat) -> None:
    """The size of a form is no problem; the work for it is limited."""
    answer = ask(harness, form, max_tokens=20)
    assert answer.finished.reason in (pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH), answer.failure


def test_model_without_eos_supports_no_grammar(tokenizer: Tokenizer) -> None:
    """Without such a token, a form has no end."""
    endless = Tokenizer(tokenizer._wrapper, tokenizer._templates)
    endless.eos_ids = frozenset()
    with pytest.raises(SidecarError, match="end-of-sequence"):
        endless.vocabulary("response_format")
