"""
A tool loop side by side with `mlx_lm.server`: `python -m benchmarks.tool_loop`.

OpenAI's SDK runs the same loop against both, in turns: a system prompt, a tool, ten calls with their results, and last
words. The weights of the model spell the calls, so that both servers give the same answers; the work is that of its
shape. Each round has a prompt of its own, so that its first turn is cold.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine, words
from benchmarks.figures import OURS
from benchmarks.http_peer import MLX_LM, HttpPeer, StartsMlxLm, free_port
from benchmarks.page import RESULTS
from benchmarks.shapes import SHAPES
from benchmarks.sidecar import Sidecar
from benchmarks.systems import closed_on_failure, wait_until
from tests.http.sdks import python as sdk_python
from tests.support.scripted_model import scripted_model

PROGRAM = Path(__file__).with_name("tool_loop_program.py")
CALLS, PROMPT_WORDS, RESULT_WORDS, ROUNDS = 10, 1000, 60, 3
ARGUMENT_WORDS = 24
"""Words of a call's arguments; each is a token."""
GO_ON, END = "<|go on|>", "<|come to an end|>"
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for tool_call in m.tool_calls or [] %}{% if tool_call.function %}"
    "{% set tool_call = tool_call.function %}{% endif %}<tool_call>\n"
    '{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "</{{ m.role }}>{% endfor %}{% if add_generation_prompt %}{% if messages | selectattr('role', 'equalto', 'tool') "
    "| list | length < CALLS %}GO_ON{% else %}END{% endif %}{% endif %}"
)
"""Of JSON in tags, as Hermes has it. It tells the model how many results there are, by the last token."""


@dataclass(frozen=True, slots=True)
class Served:
    """A server with what an SDK needs to reach it."""

    name: str
    url: str
    token: str


def main() -> int:
    """Measure, print a table, and write JSON unless the run is quick."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round: does it work?")
    quick = parser.parse_args().quick
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, it ends the servers
    if not quick:
        machine.preload_openblas("benchmarks.tool_loop")
    with tempfile.TemporaryDirectory(prefix="mlxs-", dir="/tmp") as name:
        figures = measure(Path(name), quick=quick)
    for what, value in figures.items():
        print(f"{what:<42} {value:10.2f}")
    if not quick:
        report = {"benchmark": "a tool loop", "rounds": ROUNDS, **machine.describe(), "figures": figures}
        (RESULTS / "tool_loop.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0


def measure(folder: Path, *, quick: bool) -> dict[str, float]:
    """Return all figures, by name: medians of the rounds."""
    model = _model(folder / "model", quick=quick)
    seen: dict[str, list[list[dict[str, Any]]]] = {OURS: [], MLX_LM: []}
    with ExitStack() as stack:
        servers = [_daemon(folder / "daemon", model, stack.enter_context), _peer(folder / "peer", model, stack)]
        for server in servers:
            _loop(server, model, -1, quick=quick)  # warms it up
        for number in range(1 if quick else ROUNDS):
            # Each is first in every second round.
            for server in servers[:: 1 if number % 2 else -1]:
                seen[server.name].append(_loop(server, model, number, quick=quick))
    _same([[turn["calls"] for turn in loop] for loops in seen.values() for loop in loops])
    figures = {f"{name}: {what}": value for name, loops in seen.items() for what, value in _figures(loops).items()}
    for what in ("all turns, s", "a later first token, ms", "prompt tokens computed"):
        figures[f"ours / {MLX_LM}: {what}"] = figures[f"{OURS}: {what}"] / figures[f"{MLX_LM}: {what}"]
    return figures


def _model(path: Path, *, quick: bool) -> Path:
    argument = [f"folder{number}/" for number in range(ARGUMENT_WORDS)]
    call = ["<tool_call>", '\n{"name": "read", "arguments": {"path": "', *argument, '"}}\n', "</tool_call>"]
    template = TEMPLATE.replace("CALLS", str(CALLS)).replace("GO_ON", GO_ON).replace("END", END)
    shape = {"max_position_embeddings": 40960} if quick else {**SHAPES["small"], "tie_word_embeddings": False}
    shape.pop("vocab_size", None)
    return scripted_model(path, {GO_ON: call, END: ["All files are read."]}, template, **shape)


def _daemon(folder: Path, model: Path, enter: Callable[[Any], Any]) -> Served:
    sidecar = Sidecar(folder, settings={"MLX_SIDECAR_HTTP_LISTEN": f"127.0.0.1:{free_port()}"})
    with closed_on_failure(sidecar):
        sidecar.wait()
        sidecar.client.load(str(model))
        wait_until(lambda: sidecar.client.stats().daemon.http.state == "serving", sidecar.process)
    enter(closing(sidecar))
    token = (folder / "http_token").read_text().strip()
    return Served(OURS, f"http://{sidecar.client.stats().daemon.http.address}/v1", token)


def _peer(folder: Path, model: Path, stack: ExitStack) -> Served:
    peer = StartsMlxLm()(folder, [model])
    assert isinstance(peer, HttpPeer)
    stack.enter_context(closing(peer))
    return Served(MLX_LM, f"http://127.0.0.1:{peer.port}/v1", "none")


def _loop(server: Served, model: Path, number: int, *, quick: bool) -> list[dict[str, Any]]:
    """Run the loop once, and return its turns."""
    prompt = words.prompt(f"loop {number}", 50 if quick else PROMPT_WORDS)
    result = words.prompt("result", 5 if quick else RESULT_WORDS)
    command = [str(sdk_python()), str(PROGRAM), server.url, server.token, str(model), prompt, result]
    shown = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    turns: list[dict[str, Any]] = json.loads(shown.stdout)
    return turns


def _same(loops: Sequence[Sequence[Any]]) -> None:
    for loop in loops:
        if len(loop) != CALLS + 1 or loop != loops[0]:
            raise RuntimeError(f"the loops are not the same: {[len(one) for one in loops]} turns")


def _figures(loops: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float]:
    return {
        "all turns, s": median(sum(turn["seconds"] for turn in loop) for loop in loops),
        "first token of the first turn, ms": 1000 * median(loop[0]["first"] for loop in loops),
        "a later first token, ms": 1000 * median(turn["first"] for loop in loops for turn in loop[1:]),
        "prompt tokens": median(sum(turn["prompt"] for turn in loop) for loop in loops),
        "prompt tokens computed": median(sum(turn["prompt"] - turn["cached"] for turn in loop) for loop in loops),
        "tokens of answers": median(sum(turn["completion"] for turn in loop) for loop in loops),
    }


if __name__ == "__main__":
    sys.exit(main())
