"""What moves the tensors of a group: JACCL where each rank has it and its devices are known, else MLX's ring."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from daemon.engine.group.backends import BackendError, chosen, has_jaccl, join
from daemon.v1 import ipc_pb2 as ipc

ROWS = [[None, "rdma_en5"], ["rdma_en4", None]]
BOTH = [ipc.GroupMember(jaccl=True)] * 2
ONE = [ipc.GroupMember(jaccl=True), ipc.GroupMember()]


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    path = tmp_path / "devices.json"
    path.write_text(json.dumps(ROWS))
    return path


@pytest.fixture(name="environ", autouse=True)
def _environ() -> Iterator[None]:
    with mock.patch.dict(os.environ):
        yield


def fake(**given: Any) -> Any:
    """Stand for `mx.distributed.init`: return what it would read."""
    name = "MLX_IBV_DEVICES" if given["backend"] == "jaccl" else "MLX_HOSTFILE"
    return given["backend"], os.environ["MLX_RANK"], json.loads(Path(os.environ[name]).read_text())


def test_ranks_with_jaccl_use_it_if_devices_are_known(file: Path) -> None:
    """Nothing has to be said but the devices."""
    assert json.loads(chosen("auto", file, BOTH)) == json.loads(chosen("jaccl", file, BOTH)) == ROWS


def test_ranks_use_the_ring_otherwise(file: Path) -> None:
    """A rank without JACCL, no devices, or the wish of the operator."""
    assert [chosen("auto", file, ONE), chosen("auto", None, BOTH), chosen("ring", file, BOTH)] == ["", "", ""]


def test_jaccl_that_cannot_be_had_is_refused(file: Path) -> None:
    """With the rank, or the key that is missing."""
    with pytest.raises(BackendError, match="no JACCL on rank 1"):
        chosen("jaccl", file, ONE)
    with pytest.raises(BackendError, match="group_devices is not set"):
        chosen("jaccl", None, BOTH)
    with pytest.raises(BackendError, match="cannot be read"):
        chosen("jaccl", file.with_name("none"), BOTH)


@pytest.mark.parametrize("text", ["", "{}", '[["a"]]', '[[null, ""], ["a", null]]', '[[null, "a"], 7]'])
def test_devices_of_another_form_are_refused(file: Path, text: str) -> None:
    """Each rank needs one to each other."""
    file.write_text(text)
    with pytest.raises(BackendError, match="a row for each of 2 ranks"):
        chosen("auto", file, BOTH)


def test_mlx_is_told_of_devices_and_coordinator() -> None:
    """As its own launcher does it."""
    setup = ipc.GroupSetup(ring=["10.0.0.1:7", "10.0.0.2:8"], devices=json.dumps(ROWS))
    joined: Any = join(setup, 1, fake)
    assert joined == ("jaccl", "1", ROWS)
    assert os.environ["MLX_JACCL_COORDINATOR"] == "10.0.0.1:7"


def test_mlx_is_told_of_the_addresses_of_a_ring() -> None:
    """One address for each rank."""
    setup = ipc.GroupSetup(ring=["10.0.0.1:7", "10.0.0.2:8"])
    joined: Any = join(setup, 0, fake)
    assert joined == ("ring", "0", [["10.0.0.1:7"], ["10.0.0.2:8"]])


@pytest.mark.skipif(not os.path.exists("/proc"), reason="a Mac may have it")
def test_linux_has_no_jaccl() -> None:
    """MLX says so itself."""
    assert not has_jaccl()
