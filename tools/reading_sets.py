"""
Count how much of the code answers three questions of a newcomer, and print it with other measures of size.

A question is an ordered list of steps. A step is a function or a class, and it is named in a step before it; a line
that begins with `--` is a hand-over to another thread, process or turn, after which a way begins anew. Logs, flow
control and errors around the way are left out. Run `python -m tools.reading_sets`; `tests/meta/test_reading_sets.py`
holds the bounds.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parent.parent
DAEMON = ROOT / "daemon"

QUESTIONS = {
    "how Generate reaches the model": """
        server/interceptor.py:CallInterceptor._streaming
        server/interceptor.py:_request
        server/request_decoder.py:parse
        -- handler
        server/servicer.py:SidecarService.Generate
        server/generate_validation.py:check_generate
        server/admission.py:Admission.admit
        server/supervision/call_router.py:CallRouter.open
        server/supervision/engine_call.py:EngineCall
        -- the send function that the supervisor connected
        server/supervision/engine_process.py:EngineProcess.send
        shared/frames.py:encode_frame
        -- socket
        engine/loop.py:Link._listen
        engine/loop.py:Loop.command
        -- queue of the MLX thread
        engine/loop.py:Loop.run
        -- work of the loop
        engine/engine.py:Engine.handle
        engine/calls/driver.py:CallDriver.begin
        engine/calls/generate.py:generate
        engine/calls/generate.py:_prepare_and_load
        engine/calls/model_lookup.py:ModelLookup.find
        cache/resolver.py:Resolver.resolve
        cache/identity.py:identify
        cache/digests.py:Digests.digest
        engine/background/background.py:Background.run
        engine/calls/generate.py:_prepare
        engine/prompt/preparation.py:prepare_request
        engine/prompt/preparation.py:prepare_prompt
        engine/prompt/tokenizer.py:Tokenizer.encode_turns
        engine/prompt/preparation.py:render
        engine/prompt/tokenizer.py:Tokenizer.render
        engine/prompt/chat_templates.py:Templates.render
        engine/calls/driver.py:Services.load
        cache/model_cache.py:ModelCache.get_or_load
        cache/load.py:Ticket
        engine/calls/generate.py:sequence_of
        engine/execution/sequence.py:Sequence
        engine/execution/runner.py:Runner.add
        -- turn
        engine/engine.py:Engine.step
        engine/execution/runner.py:Runner.step
        engine/scheduling/prefill_plan.py:WaitingList.starting
        engine/execution/prefill_queue.py:PrefillQueue.step
        engine/scheduling/prefill_plan.py:PrefillTurn.place
        engine/execution/prefill_queue.py:PrefillQueue._begin
        engine/execution/prefill.py:Prefill.begin
        engine/execution/prefill_queue.py:PrefillQueue._compute
        engine/execution/prefill.py:Prefill.step
        engine/execution/prefill.py:Prefill._compute
        """,
    "how a prefix block is stored and restored (full attention)": """
        engine/execution/prefill.py:Prefill._store
        engine/execution/prefill.py:Prefill._store_blocks
        engine/execution/sequence_kv.py:SequenceKV.store
        kv/mlx/request_kv.py:RequestKV
        kv/prefix_cache.py:PrefixCache.store
        kv/spec.py:KVSource
        kv/spec.py:PrefixSpec
        kv/keys.py:block_keys
        kv/trie.py:PrefixTrie.match
        kv/nodes.py:Tree.walk
        kv/nodes.py:Tree.follow
        kv/nodes.py:Node.child
        kv/lease.py:PrefixLease
        kv/evictor.py:Evictor.make_room
        kv/evictor.py:Evictor._evict
        kv/evictor.py:Evictor._drop
        kv/trie.py:PrefixTrie.drop_oldest
        kv/trie.py:PrefixTrie._drop_leaf
        kv/eviction_queue.py:EvictionQueue.pop
        kv/prefix_cache.py:PrefixCache._append
        kv/spec.py:packed
        kv/mlx/request_kv.py:RequestKV.pack
        kv/mlx/layout.py:Layout.pack
        kv/mlx/adapters/kv_cache.py:KVCacheAdapter.pack
        kv/trie.py:PrefixTrie.insert
        kv/trie.py:PrefixTrie._add
        kv/nodes.py:Tree.grow
        kv/extent_ledger.py:ExtentLedger.take
        -- the next prompt
        engine/execution/prefill.py:Prefill.begin
        engine/execution/sequence_kv.py:SequenceKV.look_up
        kv/prefix_cache.py:PrefixCache.lookup
        engine/execution/sequence_kv.py:SequenceKV.restore
        kv/prefix_cache.py:PrefixCache.runs
        kv/extent_ledger.py:runs
        kv/mlx/layout.py:Layout.restored_cache
        kv/mlx/adapters/kv_cache.py:KVCacheAdapter.restore
        -- the end of the request
        engine/execution/sequence_kv.py:SequenceKV.release
        kv/lease.py:PrefixLease.release
        -- callback of the lease
        kv/trie.py:PrefixTrie._release
        """,
    "how a model is evicted": """
        engine/engine.py:Engine._sweep
        cache/model_cache.py:ModelCache.evict_stale
        cache/entry.py:Entry.is_stale
        cache/model_cache.py:ModelCache._evict
        cache/model_cache.py:ModelCache._drop
        engine/memory/pressure.py:Relief.check
        engine/memory/engine_memory.py:EngineMemory.make_room
        engine/memory/memory_budget.py:MemoryBudget.shortfall
        cache/model_cache.py:ModelCache.shed
        cache/model_cache.py:ModelCache._evict_until
        -- a model is asked for
        cache/model_cache.py:ModelCache.get_or_load
        cache/model_cache.py:ModelCache._fresh
        cache/limits.py:ModelLimits.refuse_if_never
        cache/load_queue.py:LoadQueue.join
        -- its load begins
        cache/load_queue.py:LoadQueue.step
        cache/load_queue.py:LoadQueue._advance
        -- callback of the load queue
        cache/model_cache.py:ModelCache._begin
        cache/model_cache.py:ModelCache._make_room
        cache/limits.py:in_use
        -- its load ends
        cache/model_cache.py:ModelCache._finish
        cache/model_cache.py:ModelCache._trim
        """,
}
"""Questions and the steps of their answers, in order: files below daemon/, then what is in them."""

PERSONS = re.compile(r"\b(nobody|somebody|whoever|anybody|everybody|who|whom|whose)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Step:
    """
    One function or class on the way.

    Attributes:
        path: Its file, below daemon/.
        name: Its name in the file, with those of the classes and functions around it.
        handed_over: Whether the way begins anew with it.
    """

    path: str
    name: str
    handed_over: bool

    @property
    def called(self) -> str:
        """The name that a caller writes: that of the class for a constructor."""
        *outer, last = self.name.split(".")
        return outer[-1] if last == "__init__" else last

    def node(self) -> ast.AST | None:
        """Return its definition; None if there is none."""
        found: ast.AST | None = _tree(self.path) if (DAEMON / self.path).is_file() else None
        for part in self.name.split("."):
            found = _definition(found, part) if found is not None else None
        return found

    @property
    def is_function(self) -> bool:
        """Whether it counts as a function; a class counts with its file alone."""
        return isinstance(self.node(), ast.FunctionDef | ast.AsyncFunctionDef)


def steps(question: str) -> list[Step]:
    """Return the steps of a question, in order."""
    way: list[Step] = []
    handed_over = True
    for line in QUESTIONS[question].split("\n"):
        text = line.strip()
        if text.startswith("--"):
            handed_over = True
        elif text:
            path, name = text.split(":")
            way.append(Step(path, name, handed_over))
            handed_over = False
    return way


def mistakes(question: str) -> list[str]:
    """Return what of a question's steps the code does not bear out, as sentences; empty if all is well."""
    wrong: list[str] = []
    named: set[str] = set()
    for step in steps(question):
        node = step.node()
        if node is None:
            wrong.append(f"{step.path} has no {step.name}")
            continue
        if step.handed_over:
            named = set()
        elif step.called not in named:
            wrong.append(f"no step before {step.path}:{step.name} names {step.called}")
        named |= _names(node)
    return wrong


def files(question: str) -> list[str]:
    """Return the files of a question, in the order of reading."""
    return list(dict.fromkeys(step.path for step in steps(question)))


def functions(question: str) -> list[str]:
    """Return the functions of a question, each once."""
    return list(dict.fromkeys(f"{step.path}:{step.name}" for step in steps(question) if step.is_function))


def root_files(folder: str) -> int:
    """Return how many modules lie in a folder itself, not below it; `folder` is relative to the repository."""
    return sum(1 for _ in (ROOT / folder).glob("*.py"))


def persons() -> dict[str, int]:
    """Return how often each file of the daemon has a word for a person, where it has any."""
    found = {_short(path): len(PERSONS.findall(path.read_text())) for path in sources()}
    return {path: number for path, number in found.items() if number}


def test_names() -> list[str]:
    """Return the names of all test functions."""
    return [
        node.name
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]


def file_lengths() -> dict[str, int]:
    """Return the lines of each file of the daemon that was written by hand."""
    return {_short(path): len(path.read_text().splitlines()) for path in sources()}


def function_lengths() -> list[int]:
    """Return the lines of each function of the daemon, signature and docstring included."""
    return [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def p90(lengths: list[int]) -> float:
    """Return the 90th percentile."""
    return quantiles(lengths, n=10)[-1]


def sources() -> Iterator[Path]:
    """Yield the modules of the daemon that were written by hand."""
    return (path for path in sorted(DAEMON.rglob("*.py")) if "_pb2" not in path.name)


def report() -> Iterator[str]:
    """Yield the lines that are printed."""
    for question in QUESTIONS:
        yield f"{question}: {len(files(question))} files, {len(functions(question))} functions"
        for step in steps(question):
            yield f"  {'>' if step.handed_over else ' '} {step.path}:{step.name}"
        yield from (f"  WRONG: {mistake}" for mistake in mistakes(question))
    lengths = file_lengths()
    longest = max(lengths, key=lambda path: lengths[path])
    words = persons()
    yield f"files in daemon/: {root_files('daemon')}, in daemon/engine/: {root_files('daemon/engine')}"
    yield f"longest file: {longest}, {lengths[longest]} lines"
    yield f"functions: median {median(function_lengths()):g} lines, 90th percentile {p90(function_lengths()):g}"
    yield f"names of tests: median {median(map(len, test_names())):g} characters of {len(test_names())}"
    yield f"words for persons in daemon/: {sum(words.values())}"
    yield from (f"    {number:3} {path}" for path, number in sorted(words.items(), key=lambda pair: -pair[1])[:10])


def _short(path: Path) -> str:
    return path.relative_to(DAEMON).as_posix()


@cache
def _tree(path: str) -> ast.Module:
    return ast.parse((DAEMON / path).read_text())


def _definition(within: ast.AST, name: str) -> ast.AST | None:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return next((node for node in getattr(within, "body", []) if isinstance(node, kinds) and node.name == name), None)


def _names(node: ast.AST) -> set[str]:
    """Return the names that a definition uses, those of attributes included."""
    nodes = list(ast.walk(node))
    names = {each.id for each in nodes if isinstance(each, ast.Name)}
    return names | {each.attr for each in nodes if isinstance(each, ast.Attribute)}


if __name__ == "__main__":
    print("\n".join(report()))
