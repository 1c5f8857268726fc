"""
Speed of streams whose calls would be kept to a grammar, beside streams without tools: `python -m benchmarks.guard`.

A daemon answers the same prompts with ten tools and without any, in turn within one run. The template shows no tools,
so that both prompts have the same tokens, and the model makes no call.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import mlx.core as mx

from benchmarks import machine, shapes
from benchmarks.page import RESULTS
from benchmarks.sidecar import Sidecar
from benchmarks.words import prompt
from mlx_sidecar import Client, Delta, Message, Tool

STREAMS = (1, 8)
TOKENS = 128
PROMPT_TOKENS = 32
ROUNDS = 7
MARK = "<tool_call>"
LINE = (
    "{streams} streams: {with_tools:6.0f} tok/s, {without:6.0f} without tools, {ratio:.3f} x; "
    "time of processors {processor_ratio:.3f} x"
)
TEMPLATE = """\
{%- for message in messages %}{{ message.content }}
{%- for call in message.tool_calls or [] %}{{ '<tool_call>' ~ call.function | tojson ~ '</tool_call>' }}{% endfor %}
{%- endfor %}
{%- if tools %}{% endif %}"""
SCHEMA = {
    "type": "object",
    "properties": {"path": {"type": "string"}, "line": {"type": "integer"}, "kind": {"enum": ["file", "folder"]}},
    "required": ["path"],
    "additionalProperties": False,
}
TOOLS = [Tool(f"tool_{number}", "Does something to a file", SCHEMA) for number in range(10)]


def main() -> int:
    """Measure, print a table, and write JSON."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="mlxs-", dir="/tmp") as folder:
        model = write(Path(folder))
        with closing(Sidecar(Path(folder, "d"))) as sidecar:
            sidecar.wait()
            for streams in STREAMS:
                row = compared(sidecar.client, str(model), streams)
                rows.append(row)
                print(LINE.format_map(row))
    report = {"benchmark": "decode with ten tools, tokens/s", "rounds": ROUNDS, **machine.describe(), "rows": rows}
    (RESULTS / "guard.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0


def write(folder: Path) -> Path:
    """Write a model of the shape `small` that knows the mark of a call and never writes it; return its directory."""
    path = shapes.write(folder, "small")
    file = path / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    number = vocabulary.pop(last)
    vocabulary[MARK] = number
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"].append({"id": number, "content": MARK, **flags})
    file.write_text(json.dumps(tokenizer))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    weights = mx.load(str(path / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["model.embed_tokens.weight"][number] = 0  # as for the end token, see `shapes`
    mx.eval(weights)
    mx.save_safetensors(str(path / "model.safetensors"), weights, {"format": "mlx"})
    return path


def compared(client: Client, model: str, streams: int) -> dict[str, float]:
    """Return the tokens per second of all streams together: medians, and the median of the ratios of turns."""
    chats = [[Message("user", prompt(f"guard/{stream}", PROMPT_TOKENS))] for stream in range(streams)]
    turns: list[tuple[_Turn, _Turn]] = []
    for number in range(ROUNDS + 1):
        order = (TOOLS, []) if number % 2 else ([], TOOLS)
        turn = {len(tools): _turn(client, model, chats, tools) for tools in order}
        turns.append((turn[len(TOOLS)], turn[0]))
    kept = turns[1:]  # the first round warms up
    return {
        "streams": streams,
        "with_tools": median(guarded.speed for guarded, _ in kept),
        "without": median(free.speed for _, free in kept),
        "ratio": median(guarded.speed / free.speed for guarded, free in kept),
        "processor_ratio": median(guarded.processor_ms / free.processor_ms for guarded, free in kept),
    }


@dataclass(frozen=True, slots=True)
class _Turn:
    """
    One answer to each prompt.

    Attributes:
        speed: Tokens of all streams after their first ones, for each second between the first and the last.
        processor_ms: The engine's time on processors for each token, which other programs hardly change.
    """

    speed: float
    processor_ms: float


def _turn(client: Client, model: str, chats: Sequence[list[Message]], tools: Sequence[Tool]) -> _Turn:

    def ask(chat: list[Message]) -> tuple[float, float, int]:
        with client.generate(model, chat, tools=tools, max_tokens=TOKENS, ignore_eos=True) as stream:
            arrivals = [time.monotonic() for event in stream if isinstance(event, Delta)]
            answer = stream.result()
        assert answer.usage.completion_tokens == TOKENS
        assert not answer.tool_calls
        return arrivals[0], arrivals[-1], TOKENS - 1

    engine = client.stats().engine.pid
    before = _processor_seconds(engine)
    with ThreadPoolExecutor(len(chats)) as pool:
        begins, ends, tokens = zip(*pool.map(ask, chats), strict=True)
    computed = _processor_seconds(engine) - before
    return _Turn(sum(tokens) / (max(ends) - min(begins)), 1000 * computed / sum(tokens))


def _processor_seconds(pid: int) -> float:
    """Return the time that a process has spent on processors, as Linux tells it; elsewhere that of this process."""
    stat = Path("/proc", str(pid), "stat")
    if not stat.exists():
        return time.process_time()
    user, system = stat.read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
