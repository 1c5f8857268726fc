"""The API needs no Python: a Node program calls every RPC with nothing but the proto file and stock gRPC."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NODE = ROOT / "tests" / "node"
MODEL = "embedded"


@pytest.fixture(name="seen", scope="module")
def _seen(daemon: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the Node program saw of the running daemon."""
    if "CI" not in os.environ and not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node or npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "client.mjs"):
        shutil.copy(NODE / name, folder)
    if (NODE / "node_modules").is_dir():
        (folder / "node_modules").symlink_to(NODE / "node_modules")
    else:
        run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)
    answer = run("node", "client.mjs", str(daemon.socket), str(ROOT / "protos"), MODEL, cwd=folder)
    seen = json.loads(answer)
    assert isinstance(seen, dict)
    return seen


def run(*command: str, cwd: Path) -> str:
    """Return what a command prints; fail with what it complains about."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def events(stream: dict[str, Any], kind: str) -> list[Any]:
    """Return a stream's events of one kind."""
    return [message[kind] for message in stream["messages"] if message["event"] == kind]


def test_node_client_load_ends_with_the_model(seen: dict[str, Any]) -> None:
    """The stream may have progress events, and ends with `ready` and the model's description."""
    load = seen["load"]
    assert load["error"] is None
    kinds = [message["event"] for message in load["messages"]]
    assert kinds == ["progress"] * (len(kinds) - 1) + ["ready"]
    assert all(progress["stage"] != "LOAD_STAGE_UNSPECIFIED" for progress in events(load, "progress"))
    (ready,) = events(load, "ready")
    assert ready["model"] == MODEL
    assert ready["outcome"] in ("LOAD_OUTCOME_HIT", "LOAD_OUTCOME_LOADED")
    assert ready["fingerprint"]
    assert min(ready["size_bytes"], ready["num_layers"], ready["vocab_size"]) > 0


def test_node_client_chat_events_are_ordered(seen: dict[str, Any]) -> None:
    """The stream begins with `started`, ends with `finished`, and misses no message."""
    generate = seen["generate"]
    assert generate["error"] is None
    messages = generate["messages"]
    kinds = [message["event"] for message in messages]
    assert [message["seq"] for message in messages] == list(range(len(messages)))
    assert (kinds[0], kinds[-1]) == ("started", "finished")
    assert set(kinds[1:-1]) <= {"prefill", "delta"}
    assert "prefill" not in kinds[kinds.index("delta") :]


def test_node_client_chat_returns_text(seen: dict[str, Any]) -> None:
    """The token counts match the tokens that were sent."""
    (started,) = events(seen["generate"], "started")
    (finished,) = events(seen["generate"], "finished")
    deltas = events(seen["generate"], "delta")
    usage = finished["usage"]
    assert (started["request_id"], started["model"]) == ("from-node", MODEL)
    assert "".join(delta["text"] for delta in deltas)
    assert usage["prompt_tokens"] == started["prompt_tokens"] > 0
    assert usage["cached_tokens"] == started["cached_tokens"]
    assert 0 < sum(len(delta["token_ids"]) for delta in deltas) <= usage["completion_tokens"] <= 8
    assert finished["reason"] in ("FINISH_REASON_STOP", "FINISH_REASON_LENGTH")
    assert finished["timings"]["first_token"] is not None


def test_node_client_cancels_a_call(seen: dict[str, Any]) -> None:
    """A cancelled call ends as cancelled and never finishes."""
    assert seen["cancelled"]["error"]["code"] == "CANCELLED"
    assert events(seen["cancelled"], "finished") == []


def test_node_client_error_has_a_reason(seen: dict[str, Any]) -> None:
    """The reason and the field are in `grpc-status-details-bin`, as for any gRPC client."""
    error = seen["refused"]["error"]
    assert seen["refused"]["messages"] == []
    assert error["code"] == "INVALID_ARGUMENT"
    assert error["ErrorInfo"]["reason"] == "INVALID_ARGUMENT"
    assert error["ErrorInfo"]["domain"] == "mlx-sidecar"
    assert error["BadRequest"]["field_violations"][0]["field"] == "sampling.temperature"


def test_node_client_counts_lists_and_embeds(seen: dict[str, Any]) -> None:
    """The same number of tokens as Generate counted, the model in the list, and a vector for each text."""
    (started,) = events(seen["generate"], "started")
    assert seen["counted"]["count"] == len(seen["counted"]["ids"]) == started["prompt_tokens"]
    (model,) = [model for model in seen["listed"]["models"] if model["model"] == MODEL]
    assert (model["loaded"], model["can"]["chat"], model["place"]) == (True, True, "MODEL_PLACE_EMBEDDED")
    vectors, (finished,) = events(seen["embedded"], "embedding"), events(seen["embedded"], "finished")
    assert [vector["index"] for vector in vectors] == [0, 1]
    assert {len(vector["values"]) for vector in vectors} == {finished["dimensions"]}


def test_node_client_stats_list_the_model(seen: dict[str, Any]) -> None:
    """Every section of Stats is present."""
    stats = seen["stats"]
    assert MODEL in [model["info"]["model"] for model in stats["models"]]
    assert stats["daemon"]["pid"] > 0
    assert stats["engine"]["state"] == "ENGINE_STATE_READY"
    assert stats["model_cache"]["cached_models"] >= 1
    assert stats["prefix_cache"]["block_tokens"] == 16
    assert stats["memory"]["limit_bytes"] > 0


def test_node_client_invalidates_prefixes(seen: dict[str, Any]) -> None:
    """Prefixes are dropped and weights stay."""
    assert seen["invalidated"]["models"] == []
    assert seen["invalidated"]["blocks"] >= 0
