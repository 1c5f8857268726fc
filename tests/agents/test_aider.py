"""aider on the daemon, started by `mlx-sidecar launch`: its model writes a file as text, and aider commits it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import short_folder
from tests.http.sdks import python
from tests.support.daemons import RunningDaemon, wait_until
from tests.support.scripted_model import scripted_model

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PINS = Path(__file__).with_name("aider.txt")
RUN_SECONDS = 300
LONG = {"max_position_embeddings": 131072, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
NEW = "new words\n"
OPTIONS = (
    "--yes-always",
    "--no-check-update",
    "--no-show-release-notes",
    "--analytics-disable",
    "--no-show-model-warnings",
)

TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' ~ message.role ~ '\\n' }}
{%- if message.reasoning_content %}{{- '<think>\\n' ~ message.reasoning_content ~ '\\n</think>\\n\\n' }}{% endif %}
{{- message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' }}
{{- 'a message for a commit' if 'commit message' in messages[0].content.lower() else 'a file' }}
"""
ANSWERS = {
    "a file": [
        "<think>\nI think ", "of words.\n", "</think>\n\n",
        "Here it is.\n\n", "notes.txt\n", "```\n", "new words\n", "``", "`\n",
    ],
    "a message for a commit": ["docs: new", " words"],
}  # fmt: skip


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, and return what it prints."""
    named = ["-c", "user.name=A", "-c", "user.email=a@localhost"]
    done = subprocess.run(["git", *named, "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_aider_changes_a_file_and_commits_it(tmp_path: Path) -> None:
    """It applies the whole file that the model writes, shows the thinking apart, and asks for the commit's message."""
    programs = python(PINS).parent
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work, tmp_path / "temporary"):
        folder.mkdir()
    file = work / "notes.txt"
    file.write_text("old words\n")
    git(work, "init", "--quiet")
    git(work, "add", "-A")
    git(work, "commit", "--quiet", "-m", "docs: begin")
    model = scripted_model(tmp_path / "model", ANSWERS, TEMPLATE, **LONG)
    with short_folder() as state:
        daemon = RunningDaemon.start(state).serving()
        environment = {
            **{key: value for key, value in daemon.environ.items() if key.startswith("MLX_SIDECAR_")},
            "HOME": str(home),
            "TMPDIR": str(tmp_path / "temporary"),
            "PATH": f"{programs}:{os.defpath}",
            "PYTHONPATH": str(ROOT),
            "TERM": "dumb",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # prices of models, from the package instead of the net
        }
        command = [sys.executable, "-m", "daemon", "launch", "aider", "--model", str(model), "--", *OPTIONS]
        done = subprocess.run(
            [*command, "--message", "Change the notes.", file.name], env=environment, cwd=work,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=RUN_SECONDS,
        )  # fmt: skip
        wait_until(lambda: not list(tmp_path.glob("temporary/mlx-sidecar-*")), "the door has ended")
        calls = [line for line in daemon.log() if line.get("rpc") == "Generate"]
        assert daemon.stop() == 0
    assert (done.returncode, file.read_text()) == (0, NEW), done.stdout
    assert git(work, "log", "-1", "--format=%s") == "docs: new words"
    assert "THINKING" in done.stdout
    assert [line["code"] for line in calls] == ["OK", "OK"]
