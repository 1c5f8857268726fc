"""The place where a model computes is another one after each change of what computes there."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from daemon.cache.mlx import computing_place
from daemon.cache.mlx.computing_place import place_of


def test_place_depends_on_device_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    here = place_of("gpu: M4")
    assert place_of("gpu: M4") == here
    assert place_of("gpu: M2") != here
    monkeypatch.setenv("MLX_SIDECAR_MAX_MODELS", "7")
    assert place_of("gpu: M4") == here
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")
    assert place_of("gpu: M4") != here


@pytest.mark.parametrize("name", ["mlx", "mlx-lm"])
def test_place_depends_on_the_libraries(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = place_of("cpu")
    monkeypatch.setattr(computing_place, "version", lambda package: "0" if package == name else version(package))
    assert place_of("cpu") != here


@pytest.mark.parametrize("package", ["mlx_lm", "daemon"])
def test_place_depends_on_code_that_is_edited_in_place(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = place_of("cpu")
    real = computing_place._stamp
    edited = f"/{package}/"
    monkeypatch.setattr(
        computing_place, "_stamp", lambda file: (*real(file)[:2], 0) if edited in str(file) else real(file)
    )
    assert place_of("cpu") != here


@pytest.mark.parametrize("name", ["build", "processor"])
def test_place_depends_on_the_machine(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = tmp_path / "SystemVersion.plist"
    build.write_text("25A354")
    monkeypatch.setattr(computing_place, "_SYSTEM_FILES", (str(build),))
    here = place_of("cpu")
    if name == "build":
        build.write_text("25A362")
    else:
        monkeypatch.setattr(computing_place, "_processor", lambda: ["flags: avx512"])
    assert place_of("cpu") != here
