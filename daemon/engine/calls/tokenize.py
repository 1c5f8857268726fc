"""A Tokenize call: a prompt becomes ids as Generate would get them, or ids become text. No weights are read."""

from __future__ import annotations

from functools import partial

from daemon.cache.identity import ModelSource
from daemon.cache.resolver import Wanted
from daemon.engine.background.task import PROMPT, TEMPLATE, Task
from daemon.engine.calls.driver import Call, Services
from daemon.engine.calls.model_lookup import Found
from daemon.engine.prompt.preparation import render
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.shared.errors import invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb


def tokenize(services: Services, call_id: int, request: pb.TokenizeRequest) -> Call:
    """
    Serve a Tokenize call: one answer.

    Raises:
        SidecarError: INVALID_ARGUMENT if the conversation cannot be rendered, or an id is none of the model's; or why
            the model cannot be found.
    """

    def prepare(found: Found) -> Task[pb.TokenizeResponse]:
        assert isinstance(found, ModelSource)
        return services.with_tokenizer(found, partial(_convert, request, found))

    # An estimate names the model without reading its weights from end to end.
    wanted = Wanted(request.model, estimate=True, offline=True)
    answer = yield from services.lookup.find(wanted, prepare)
    services.outbox.tokenized(call_id, answer)


def _convert(request: pb.TokenizeRequest, source: ModelSource, tokenizer: Tokenizer) -> Task[pb.TokenizeResponse]:
    """Return the task that does it, in the lane that Generate would use."""
    kind = request.WhichOneof("input")
    text_lane = source.path, "text"
    if kind == "tokens":
        return Task(PROMPT, source.name, (source.path, kind), lambda: _written(request, source, tokenizer))
    if kind == "text":
        return Task(PROMPT, source.name, text_lane, lambda: _counted(request, source, tokenizer, None))

    def rendered() -> Task[pb.TokenizeResponse]:
        text = render(pb.GenerateRequest(chat=request.chat), tokenizer).text
        return Task(PROMPT, source.name, text_lane, lambda: _counted(request, source, tokenizer, text))

    return Task(TEMPLATE, source.name, source.path, rendered)


def _counted(
    request: pb.TokenizeRequest, source: ModelSource, tokenizer: Tokenizer, rendered: str | None
) -> pb.TokenizeResponse:
    """Return the ids of a text, or of the rendered conversation."""
    if rendered is not None:
        ids: list[int] = tokenizer.encode(rendered, special=False)
    else:
        ids = tokenizer.encode_prompt(request.text)
    return _answer(request, source, tokenizer, ids, rendered or "")


def _written(request: pb.TokenizeRequest, source: ModelSource, tokenizer: Tokenizer) -> pb.TokenizeResponse:
    """Return the text of ids."""
    ids, vocab = request.tokens.ids, source.vocab_size or tokenizer.size
    for index, token in enumerate(ids):
        if token >= vocab:
            raise invalid(f"tokens.ids[{index}]", f"is token {token}, but this model has {vocab} token ids")
    text = "" if request.count_only else tokenizer.written(ids)
    return _answer(request, source, tokenizer, list(ids), text)


def _answer(
    request: pb.TokenizeRequest, source: ModelSource, tokenizer: Tokenizer, ids: list[int], text: str
) -> pb.TokenizeResponse:
    answer = pb.TokenizeResponse(
        count=len(ids), context_length=source.context_length, vocab_size=source.vocab_size or tokenizer.size
    )
    if not request.count_only:
        answer.ids.extend(ids)
        answer.text = text
    return answer
