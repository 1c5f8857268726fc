"""Frameworks of agents and of structured output on the door: `make frameworks`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.http.agents_model import agents_model
from tests.http.conftest import Door
from tests.http.sdks import FRAMEWORKS, FRAMEWORKS_OPENAI2, results

pytestmark = pytest.mark.slow
"""Their environments take minutes to make."""
CITIES = [{"city": "Bergen"}, {"city": "Oslo"}]
KEPT, LOST = "It rains.", "It is wet, and all is forgotten."
"""The model's last words, where a framework gives back what the model thought, and where it does not."""
FORM = {"city": "Oslo", "degrees": 7}
ADVICE = "nothing/there is not in the local Hub cache; fetch it with: mlx-sidecar pull nothing/there"
SECONDS = 300


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a model that knows what each framework asks for."""
    return str(agents_model(tmp_path_factory.mktemp("models") / "agents"))


@pytest.fixture(name="seen", scope="module")
def _seen(port_door: Door, model: str) -> dict[str, Any]:
    """Return what the frameworks of agents saw."""
    arguments = (port_door.base_url, port_door.token, model)
    return results("agents_program.py", *arguments, pins=FRAMEWORKS, seconds=SECONDS)


@pytest.fixture(name="formed", scope="module")
def _formed(port_door: Door, model: str) -> dict[str, Any]:
    """Return what instructor and LlamaIndex saw."""
    arguments = (port_door.base_url, port_door.token, model)
    return results("structured_program.py", *arguments, pins=FRAMEWORKS_OPENAI2, seconds=SECONDS)


@pytest.mark.parametrize(("api", "text"), [("responses", KEPT), ("chat", LOST), ("chat that replays", KEPT)])
def test_openai_agents_run_a_tool_loop(seen: dict[str, Any], api: str, text: str) -> None:
    """Whole and streamed. Chat completions lose the reasoning unless the SDK is told to give it back."""
    found = seen["agents"][api]
    assert (found["texts"], found["called"], found["form"]) == ([text, text], CITIES, FORM)
    items = ["reasoning_item_created", "message_output_created", *["tool_called"] * 2, *["tool_output"] * 2]
    assert found["kinds"] == [*items, "message_output_created"]
    assert found["usage"][0] == found["usage"][1] > 0


@pytest.mark.parametrize("api", ["chat", "responses", "anthropic", "ollama"])
def test_pydantic_ai_runs_a_tool_loop(seen: dict[str, Any], api: str) -> None:
    """Whole and streamed. Its provider for Ollama gives reasoning back between tags of the content."""
    found = seen["pydantic"][api]
    assert (found["texts"], found["called"]) == ([KEPT, KEPT], CITIES)
    _, output, requests = found["usage"]
    assert (output > 0, requests) == (True, 2)


@pytest.mark.parametrize("api", ["chat", "responses", "anthropic", "ollama"])
def test_pydantic_ai_gets_forms(seen: dict[str, Any], api: str) -> None:
    """By a tool, by a prompt, and by a schema, which it does not ask of a model of Anthropic that it does not know."""
    by_tool, *others = seen["pydantic"][api]["forms"]
    assert by_tool == {"city": "Kiel", "degrees": 8}
    assert others == [FORM] * (1 if api == "anthropic" else 2)


def test_smolagents_call_tools_and_write_code(seen: dict[str, Any]) -> None:
    """Whole and streamed. Calls are forced, code ends at a stop string, and code as JSON follows a schema."""
    found = seen["smolagents"]
    assert (found["called"], found["coded"]) == (["It is wet."] * 2, ["wet Pau"] * 2)
    assert found["structured"] == ["wet Lyon"] * 2
    assert all(found["usage"])


def test_dspy_reads_its_fields(seen: dict[str, Any]) -> None:
    """Whole and streamed."""
    found = seen["dspy"]
    assert (found["thought"], found["streamed"]) == (["It is so.", "yes"], "yes")
    assert all(found["usage"])


def test_agent_frameworks_tell_an_error_in_our_words(seen: dict[str, Any]) -> None:
    """With the class that each has for a model that is not there."""
    refused = {
        **{f"agents {api}": (found["refused"], "NotFoundError") for api, found in seen["agents"].items()},
        **{f"pydantic {api}": (found["refused"], "ModelNotFoundError") for api, found in seen["pydantic"].items()},
        "smolagents": (seen["smolagents"]["refused"], "NotFoundError"),
        "dspy": (seen["dspy"]["refused"], "LMInvalidRequestError"),
    }
    for name, ((kind, words), expected) in refused.items():
        assert (kind, ADVICE in words) == (expected, True), name


@pytest.mark.parametrize(
    ("mode", "whole", "last"),
    [
        ("TOOLS", {"city": "Bonn", "degrees": 9}, {"city": "Graz", "degrees": 19}),
        ("JSON_SCHEMA", FORM, FORM),
        ("JSON", FORM, FORM),
        ("MD_JSON", {"city": "Ulm", "degrees": 3}, {"city": "Ulm", "degrees": 3}),
    ],
)
def test_instructor_gets_forms(formed: dict[str, Any], mode: str, whole: Any, last: Any) -> None:
    """Whole and in parts, for which the tool has another name."""
    found = formed["instructor"][mode]
    assert (found["whole"], found["last"]) == (whole, last)
    assert found["tokens"] > 0


def test_instructor_tells_errors(formed: dict[str, Any]) -> None:
    """Of a model that is not there, and of an answer that does not fit."""
    (kind, words), (unfit, why) = (formed["instructor"][name] for name in ("refused", "unfit"))
    assert (kind, ADVICE in words) == ("InstructorRetryException", True)
    assert (unfit, "greater than or equal to 100" in why) == ("InstructorRetryException", True)


@pytest.mark.parametrize(
    ("api", "text", "form"), [("like", LOST, {"city": "Bonn", "degrees": 9}), ("ollama", KEPT, FORM)]
)
def test_llama_index_runs_a_tool_loop(formed: dict[str, Any], api: str, text: str, form: Any) -> None:
    """Whole and streamed. `OpenAILike` drops what the model thought, and `Ollama` gives it back."""
    found = formed["llama"][api]
    assert (found["texts"], found["called"], found["forms"]) == ([text, text], CITIES * 2, [form, form])


def test_llama_index_embeds_and_tells_errors(formed: dict[str, Any]) -> None:
    """In the words of the door, with the classes of the SDKs below it."""
    found = formed["llama"]
    assert found["vectors"] == [128, 128]
    kinds = {name: kind for name, (kind, _) in found["refused"].items()}
    assert kinds == {"like": "NotFoundError", "ollama": "ResponseError", "embedding": "ResponseError"}
    words = {name: text for name, (_, text) in found["refused"].items()}
    assert ADVICE in words["like"]
    assert "nothing/there is not in the local Hub cache" in words["ollama"]
    assert "pooling is needed" in words["embedding"]
