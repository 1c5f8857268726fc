"""
The allow list of log fields: each with the kind of value that it may have. Pure.

More people read a log than may read a request. So a field that is not on the list is dropped and counted, and so is a
value of another kind: nothing is logged by oversight. Spans are made of the same fields.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from typing import Any

from google.rpc import code_pb2

from daemon.shared.errors import Reason, SidecarError
from daemon.shared.sampling_options import RANGES
from mlx_sidecar.v1 import sidecar_pb2 as pb

MAX_NAME = 1024
"""Characters of a model's name."""
DROPPED = "dropped"
"""Field with the number of fields that were dropped."""

Kind = Callable[[Any], bool]


class Words(str):
    """Text that may be logged as it is. Only code that knows that no part of a request is in it may make one."""

    __slots__ = ()


def _pattern(expression: str) -> Kind:
    pattern = re.compile(expression)
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _one_of(*values: str) -> Kind:
    known = frozenset(values)
    return lambda value: isinstance(value, str) and value in known


def _names(enum: Any) -> set[str]:
    """Return the names of an API enum's values as the log writes them: lower case, without the prefix."""
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.DESCRIPTOR.name).upper() + "_"
    return {name.removeprefix(prefix).lower() for name in enum.DESCRIPTOR.values_by_name}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _words(value: Any) -> bool:
    return isinstance(value, Words)


def _model(value: Any) -> bool:
    """Return whether a text can be a model's name: an absolute path, or a name without spaces."""
    if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable():
        return False
    return value.startswith("/") or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value) is not None


def _models(value: Any) -> bool:
    return isinstance(value, list) and all(map(_model, value))


def _options(value: Any) -> bool:
    return isinstance(value, list) and all(name in (*RANGES, "do_sample") for name in value)


_CAUSE = _pattern(r"[A-Za-z_][\w.]*(: [A-Z][A-Z0-9_]*)?")


def _cause(value: Any) -> bool:
    return _words(value) or _CAUSE(value)


def _field_names() -> tuple[set[str], set[str]]:
    """Return the names of all fields that an error can name, and which of them are maps."""
    names, maps = {"request", "target", "input", "prompt"}, set()
    todo, seen = [method.input_type for method in _SERVICE.methods], set()
    while todo:
        message = todo.pop()
        if message.full_name in seen:
            continue
        seen.add(message.full_name)
        for field in message.fields:
            names.add(field.name)
            if field.message_type is not None:
                todo.append(field.message_type)
                if field.message_type.GetOptions().map_entry:
                    maps.add(field.name)
    return names, maps


_SERVICE = pb.DESCRIPTOR.services_by_name["SidecarService"]
_FIELD_NAMES, _MAPS = _field_names()
_STEP = re.compile(r"(\w+)(\[\d+\])?")
_KEYS = re.compile(rf"\b({'|'.join(_MAPS)})\[[^\]]*\]")


def _request_field(value: Any) -> bool:
    """Return whether a text is the path of a field, such as "chat.tools[3].name". Keys of maps are callers' words."""
    if not isinstance(value, str) or _KEYS.search(value):
        return False
    steps = [_STEP.fullmatch(step) for step in value.split(".")]
    return all(step is not None and step[1] in _FIELD_NAMES for step in steps)


HTTP_REFUSALS = ("invalid_framing", "invalid_host", "invalid_origin", "invalid_api_key", "request_too_large")
"""Why the HTTP door refuses a request before it reads the body."""

_TIME = _pattern(r"[0-9T:.Z-]{10,40}")
_PATH = _pattern(r"/[^\x00-\x1f\x7f]{1,4096}")
_IDENTIFIER = _pattern(r"[\w.<>-]{1,200}")

_NUMBERS = """
    blocks budget_bytes bytes_freed cached_tokens caller_pid calls characters completion_tokens disk_tokens dropped
    duration_s files
    limit_s lived_s load_s model_bytes pid prefix_bytes prompt_tokens retry_in_s seconds silent_s starts status
    step_age_s stuck threads miss_character miss_message miss_resume_token miss_seen_s miss_token warnings
    rank ranks queue_s lookup_s restore_s prefill_s decode_s first_token_s texts
"""

FIELDS: Mapping[str, Kind] = {
    **dict.fromkeys(_NUMBERS.split(), _number),
    **dict.fromkeys(("known", "reuses", "joinable", "shares", "dry_run"), _flag),
    **dict.fromkeys(("guess_exactness", "guess_exactness_together"), _one_of("wrong", "rounded", "shared", "exact")),
    "address": _pattern(r"[0-9.]{7,15}(:\d{1,5})?"),
    "began": _TIME,
    "caller": _pattern(r"[\w.+()@-]{1,64}"),
    "code": _one_of(*code_pb2.Code.keys()),
    "directory": _PATH,
    "error": _cause,
    "error_id": _pattern(r"[0-9a-f]{12}"),
    "event": _words,
    "exception": _words,
    "field": _request_field,
    "file": _pattern(r"[\w.+-]{1,200}\.safetensors|(measurements|verdicts)\.json"),
    "last_seen": _TIME,
    "level": _one_of("debug", "info", "warning", "error", "critical"),
    "line": _words,
    "logger": _IDENTIFIER,
    "miss": _one_of(*_names(pb.MissReason)),
    "miss_differs": _pattern(r"(weights|adapter|layout|salt)(,(adapter|layout|salt))*"),
    "model": _model,
    "models": _models,
    "options": _options,
    "outcome": _one_of(*_names(pb.LoadOutcome)),
    "pressure": _one_of("normal", "warning", "critical"),
    "process": _one_of("engine", "http"),
    "program": _PATH,
    "python": _pattern(r"\d+\.\d+\.\d+\S{0,20}"),
    "reason": _one_of(*Reason, *_names(pb.FinishReason), *HTTP_REFUSALS),
    "request_id": _pattern(r"[!-~]{1,128}"),
    "rpc": _one_of(*(method.name for method in _SERVICE.methods), "Check", "Watch", "ServerReflectionInfo"),
    "socket": _PATH,
    "source": _pattern(r"[\w./<>-]{1,200}:\d+"),
    "state": _one_of("starting", "warming", "ready", "stalled", "restarting", "stopped"),
    "target": _one_of("model", "prefix", "all"),
    "template": _pattern(r"[0-9a-f]{16}"),
    "timestamp": _TIME,
    "version": _pattern(r"[\w.+-]{1,100}"),
    "work": _one_of("lookup", "list", "read", "fetch", "tokenizer", "template", "prompt", "kv_disk"),
}
"""Each field that may be logged, with the test of its values. None is a value of each field."""


def permitted(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that may be logged, and in `dropped` the number of the others."""
    kept = {name: value for name, value in fields.items() if name in FIELDS and (value is None or FIELDS[name](value))}
    lost = len(fields) - len(kept)
    if lost:
        kept[DROPPED] = kept.get(DROPPED, 0) + lost
    return kept


def cause(error: BaseException) -> str:
    """Return an exception for the log: its class, and its reason or the name of the system's error."""
    name = type(error).__qualname__
    if isinstance(error, SidecarError):
        return f"{name}: {error.reason}"
    code = errno.errorcode.get(error.errno) if isinstance(error, OSError) and error.errno is not None else None
    return f"{name}: {code}" if code else name


_OUR_WORDS = frozenset(Reason) - {Reason.INVALID_ARGUMENT, Reason.INTERNAL}
"""Reasons with messages that contain only our words, names of models, paths and figures."""


def refusal(error: SidecarError) -> dict[str, Any]:
    """
    Return the log fields of an error.

    The message is among them only for reasons in _OUR_WORDS. Templates, grammars and schemas quote requests.
    """
    fields: dict[str, Any] = {"reason": str(error.reason)}
    if error.reason in _OUR_WORDS:
        fields["error"] = Words(error.message)
    if error.field:
        fields["field"] = _KEYS.sub(r"\1", error.field)
    if "error_id" in error.metadata:
        fields["error_id"] = error.metadata["error_id"]
    return fields
